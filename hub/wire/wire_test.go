package wire

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func TestPacketsOfOneReadAreServedWithoutFurtherReads(t *testing.T) {
	var all []byte
	for range 10 {
		all = append(all, packet(t, "30: 0001 't' 'payload'")...)
	}
	src := &chunks{list: [][]byte{all}}
	r := NewReader(src, 1<<20)
	r.SetVersion(V311)
	for i := range 10 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		if src.reads != 2 {
			t.Errorf("packet %d took %d reads in all, want one for the first bytes and one for all others", i+1, src.reads)
		}
		if got, want := r.Buffered(), i < 9; got != want {
			t.Errorf("behind packet %d Buffered is %v", i+1, got)
		}
	}
}

func TestPacketsSurviveAnyFragmentation(t *testing.T) {
	var stream []byte
	var want []string
	for i, s := range []string{
		"30: 0001 't' 'payload'", "c0 00", "32: 0001 'u' 0007 'more'", "82: 0001 0001 'f' 01", "e0 00",
	} {
		stream = append(stream, packet(t, s)...)
		if i == 2 { // larger than the small buffer, twice
			for range 2 {
				stream = append(stream, framed(0x30, append([]byte{0, 1, 'b'}, bytes.Repeat([]byte{'x'}, 50_000)...))...)
			}
		}
	}
	describe := func(p Packet) string {
		if p, ok := p.(*Publish); ok {
			return p.Topic + " " + string(p.Payload)
		}
		return strings.Repeat("-", int(p.Type()))
	}
	readers := map[string]func(io.Reader) io.Reader{
		"whole":      func(r io.Reader) io.Reader { return r },
		"one byte":   iotest.OneByteReader,
		"half":       iotest.HalfReader,
		"with error": iotest.DataErrReader,
		"empty":      func(r io.Reader) io.Reader { return &hesitant{r: iotest.OneByteReader(r)} },
	}
	for _, name := range []string{"whole", "one byte", "half", "with error", "empty"} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(readers[name](bytes.NewReader(stream)), 1<<20)
			r.SetVersion(V311)
			var got []string
			for {
				p, err := r.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, describe(p))
			}
			if want == nil {
				want = got
			}
			if len(got) != 7 || !reflect.DeepEqual(got, want) {
				t.Errorf("read %d packets that differ from those of the unfragmented stream", len(got))
			}
		})
	}
}

// hesitant returns nothing and no error before every byte.
type hesitant struct {
	r     io.Reader
	ready bool
}

func (h *hesitant) Read(p []byte) (int, error) {
	if h.ready = !h.ready; h.ready {
		return 0, nil
	}
	return h.r.Read(p)
}

func TestReaderGoesOnAfterADeadline(t *testing.T) {
	b := packet(t, "32: 0001 't' 0007 'payload'")
	for cut := 1; cut < len(b); cut++ {
		src := &chunks{list: [][]byte{b[:cut:cut], nil, b[cut:]}}
		r := NewReader(src, 1<<20)
		r.SetVersion(V311)
		if _, err := r.Next(); err != errDeadline {
			t.Fatalf("cut at %d: error %v, want the deadline", cut, err)
		}
		p, err := r.Next()
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if p := p.(*Publish); p.Topic != "t" || p.ID != 7 || string(p.Payload) != "payload" {
			t.Errorf("cut at %d: read %+v", cut, p)
		}
	}
}

func TestEndOfConnection(t *testing.T) {
	b := packet(t, "30: 0001 't' 'payload'")
	for cut := 0; cut <= len(b); cut++ {
		r := reading(b[:cut], V311, fromClient)
		_, err := r.Next()
		if cut == len(b) {
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.Next()
		}
		want := io.ErrUnexpectedEOF
		if cut == 0 || cut == len(b) {
			want = io.EOF
		}
		if err != want {
			t.Errorf("connection ends after %d of %d bytes: error %v, want %v", cut, len(b), err, want)
		}
	}
	broken := errors.New("broken")
	r := NewReader(&chunks{list: [][]byte{b[:5]}, err: broken}, 1<<20)
	r.SetVersion(V311)
	if _, err := r.Next(); err != broken {
		t.Errorf("error %v, want the connection's", err)
	}
	r = NewReader(stuck{}, 1<<20)
	if _, err := r.Next(); err != io.ErrNoProgress {
		t.Errorf("error %v of a connection that returns nothing, want %v", err, io.ErrNoProgress)
	}
}

// stuck returns nothing and no error.
type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestTooLargePacketIsRefusedBeforeItsBody(t *testing.T) {
	src := &chunks{list: [][]byte{{0x30, 0x80, 0x01}}, err: errDeadline}
	r := NewReader(src, 130)
	r.SetVersion(V5)
	var wrong *Error
	if _, err := r.Next(); !errors.As(err, &wrong) || wrong.Code != PacketTooLarge {
		t.Fatalf("error %v, want too large", err)
	}
	src = &chunks{list: [][]byte{{0x30, 0x80, 0x01}, append([]byte{0, 1, 't', 0}, make([]byte, 124)...)}}
	r = NewReader(src, 10)
	r.SetVersion(V5)
	r.SetLimit(131)
	if _, err := r.Next(); err != nil {
		t.Errorf("a packet of exactly the limit: %v", err)
	}
}

func TestWhatAPeerDidWrongStaysWrong(t *testing.T) {
	r := reading(append(packet(t, "36: 0001 't' 0001"), packet(t, "c0 00")...), V311, fromClient)
	_, first := r.Next()
	_, second := r.Next()
	if first == nil || first != second {
		t.Errorf("errors %v and %v, want the same twice", first, second)
	}

	r = reading(append(packet(t, "30: 0001 't'"), packet(t, "36: 0001 't' 0001")...), V311, fromClient)
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	_, first = r.Next()
	_, second = r.Next()
	if first == nil || first != second {
		t.Errorf("errors %v and %v behind a good packet, want the same twice", first, second)
	}
}

func TestFirstByteIsJudgedBeforeMoreIsAwaited(t *testing.T) {
	for _, first := range []byte{0x30, 0x11, 0x00, 0xC0, 0x20} {
		r := NewReader(&chunks{list: [][]byte{{first}}, err: errDeadline}, 1<<20)
		var wrong *Error
		if _, err := r.Next(); !errors.As(err, &wrong) {
			t.Errorf("first byte %#x before CONNECT: error %v", first, err)
		}
	}
}

func TestPayloadIsValidUntilTheNextCall(t *testing.T) {
	big := framed(0x30, append([]byte{0, 1, 't'}, bytes.Repeat([]byte{'x'}, 60_000)...))
	stream := append(append([]byte{}, big...), packet(t, "30: 0001 't' 'second'")...)
	r := reading(stream, V311, fromClient)
	p, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	topic, payload := p.(*Publish).Topic, p.(*Publish).Payload
	if len(payload) != 60_000 || cap(payload) != 60_000 || strings.Trim(string(payload), "x") != "" {
		t.Errorf("payload of %d bytes, capacity %d, differs from what was sent", len(payload), cap(payload))
	}
	if p, err = r.Next(); err != nil || string(p.(*Publish).Payload) != "second" {
		t.Fatalf("second packet: %v, %v", p, err)
	}
	r.Release()
	if topic != "t" {
		t.Errorf("topic %q has changed with the buffer", topic)
	}
	if r.Buffered() || r.s != nil {
		t.Error("a released reader has bytes or a buffer")
	}
}

func TestVersionSaysHowToWordARefusal(t *testing.T) {
	for _, c := range []struct {
		what, packet string
		want         byte
	}{
		{"a good CONNECT", connect5("02", "00", "0001 'c'"), V5},
		{"a bad 5.0 CONNECT", connect5("03", "00", "0001 'c'"), V5},
		{"a bad 3.1.1 CONNECT", connect311("03", "0001 'c'"), V311},
		{"a CONNECT of a version to come", "10: 0004 'MQTT' 06 ff", 6},
		{"a CONNECT of 3.1", "10: 0006 'MQIsdp' 03 02 003c 0001 'c'", 3},
		{"a CONNECT of something else", "10: 0004 'MQTX' 05 02", 0},
		{"a PINGREQ", "c0 00", 0},
	} {
		r := reading(packet(t, c.packet), 0, fromClient)
		_, _ = r.Next() // whether it is refused is not asked here
		if got := r.Version(); got != c.want {
			t.Errorf("behind %s the version is %d, want %d", c.what, got, c.want)
		}
		r.SetVersion(V311)
		if got := r.Version(); got != V311 {
			t.Errorf("the version is %d after SetVersion(4)", got)
		}
	}
}

func TestClientWithoutAVersionReadsNothing(t *testing.T) {
	r := reading(packet(t, "20: 00 00"), 0, fromServer)
	var wrong *Error
	if p, err := r.Next(); err == nil || errors.As(err, &wrong) {
		t.Errorf("read %+v, %v; want an error that is not the peer's", p, err)
	}
	r.SetVersion(V311)
	if _, err := r.Next(); err != nil {
		t.Errorf("with a version: %v", err)
	}
}

func TestConnectOfAnotherVersionIsLeftToTheCaller(t *testing.T) {
	for s, want := range map[string]Connect{
		"10: 0004 'MQTT' 06 ff ff":                   {ProtocolName: "MQTT", Version: 6},
		"10: 0004 'MQTT' 03":                         {ProtocolName: "MQTT", Version: 3},
		"10: 0006 'MQIsdp' 03 02 003c 0001 'c'":      {ProtocolName: "MQIsdp", Version: 3},
		"10: 0006 'MQIsdp' 83 02 003c 0001 'c'":      {ProtocolName: "MQIsdp", Version: 0x83},
		"10: 0004 'MQTT' 00 02 003c 00 0001 'c' ff ": {ProtocolName: "MQTT", Version: 0},
	} {
		if got := mustRead(t, packet(t, s), 0, fromClient); !reflect.DeepEqual(got, &want) {
			t.Errorf("%s: %+v, want %+v", s, got, want)
		}
	}
}

// TestWhatTheCodecChokesOnIsMalformed hands the codec what the rules would
// have kept from it: the bytes that make it panic, and some that it refuses.
func TestWhatTheCodecChokesOnIsMalformed(t *testing.T) {
	for name, f := range map[string]frame{
		"panic": {first: 0x82, body: unhex(t, "0001 00 0001 't'"), version: V5, sender: fromClient},
		"error": {first: 0x32, body: unhex(t, "0002 't'"), version: V5, sender: fromClient},
	} {
		s := new(scratch)
		p, err := s.open(&f, facts{})
		if p != nil || err == nil || err.Code != MalformedPacket || !byTheCodec(err) {
			t.Errorf("%s: %+v, %v; want malformed", name, p, err)
		}
		if name == "panic" && !strings.Contains(err.Detail, "gave up") {
			t.Errorf("the codec did not panic: %v", err)
		}
		good := frame{first: 0x82, body: unhex(t, "0001 00 0001 't' 01"), version: V5, sender: fromClient}
		if p, err := s.open(&good, facts{}); err != nil || len(p.(*Subscribe).Filters) != 1 {
			t.Errorf("%s: the next packet is %+v, %v", name, p, err)
		}
	}
}
