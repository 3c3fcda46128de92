package wire

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"
	"testing/iotest"
)

// FuzzReader reads a stream of packets as a server or a client of either
// version does. Whatever comes, the reader neither panics nor holds more than
// it was sent, says the same however the bytes are cut, and every packet that
// it accepts can be written, and read again as the same.
func FuzzReader(f *testing.F) {
	for _, v := range violations {
		f.Add(packet(f, v.bad), v.version, v.sender == fromServer)
		if v.good != "" {
			f.Add(packet(f, v.good), v.version, v.sender == fromServer)
		}
	}
	for _, p := range places {
		var all string
		for id := byte(1); id <= 42; id++ {
			if p.allows(id) {
				all += sample[id] + " "
			}
		}
		f.Add(packet(f, p.packet(all)), p.version, p.sender == fromServer)
	}
	f.Fuzz(func(t *testing.T, b []byte, version byte, fromAServer bool) {
		switch version % 3 {
		case 0:
			version = 0
		case 1:
			version = V311
		case 2:
			version = V5
		}
		sender := fromClient
		if fromAServer {
			sender = fromServer
			if version == 0 {
				return
			}
		}
		whole := readAll(t, bytes.NewReader(b), version, sender, len(b))
		cut := readAll(t, iotest.OneByteReader(bytes.NewReader(b)), version, sender, len(b))
		if !reflect.DeepEqual(whole, cut) {
			t.Errorf("in one piece: %v\nbyte by byte: %v", whole, cut)
		}
	})
}

// readAll reads to the end or to the first thing that is wrong. It returns what
// it read as bytes, with the error's words last.
func readAll(t *testing.T, src io.Reader, version byte, sender direction, size int) (read []string) {
	r := NewReader(src, 1<<28)
	r.SetVersion(version)
	if sender == fromServer {
		r.Client()
	}
	defer r.Release()
	for {
		p, err := r.Next()
		if r.s != nil && len(r.s.buf) > max(2*size, smallBuffer) {
			t.Errorf("the reader holds %d bytes for a stream of %d", len(r.s.buf), size)
		}
		if err != nil {
			var wrong *Error
			if !errors.As(err, &wrong) && err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Errorf("error %v is neither the peer's nor the connection's", err)
			}
			if wrong != nil && byTheCodec(wrong) {
				t.Errorf("a packet passed every rule and not the codec: %v", wrong)
			}
			return append(read, err.Error())
		}
		v := version
		if c, ok := p.(*Connect); ok {
			if v = c.Version; v != V311 && v != V5 {
				return append(read, "another version")
			}
			version = v
			r.SetVersion(v)
		}
		read = append(read, string(roundTrip(t, p, v, sender)))
	}
}

// roundTrip writes p, reads it again, and returns what it wrote.
func roundTrip(t *testing.T, p Packet, version byte, sender direction) []byte {
	b, err := Append(nil, p, version)
	if c, ok := p.(*Connect); ok && err != nil && unsaid(c) {
		return nil
	}
	if err != nil {
		t.Fatalf("%+v was read and can't be written: %v", p, err)
	}
	agreed := version
	if p.Type() == TypeConnect {
		agreed = 0
	}
	again := mustRead(t, b, agreed, sender)
	if !sameSaid(again, p) {
		t.Fatalf("%+v was read again as %+v", p, again)
	}
	if e, ok := p.(*Publish); ok {
		encoded, err := EncodePublish(e, version)
		if err != nil || !bytes.Equal(encoded.AppendTo(nil, e.ID, e.Dup), b) {
			t.Fatalf("%+v is encoded otherwise for many than for one: %v", p, err)
		}
	}
	return b
}

// unsaid reports whether c has a will that the codec can't write.
func unsaid(c *Connect) bool {
	if c.Will == nil {
		return false
	}
	m := &c.Will.Message
	return m.Expiry != nil && *m.Expiry == 0 || m.Props != nil && m.Props.Correlation != nil && len(m.Props.Correlation) == 0
}

// FuzzAppend writes packets whose strings come from anywhere: what Append
// writes, a strict reader accepts as the same packet.
func FuzzAppend(f *testing.F) {
	f.Add("topic", "reason", []byte("payload"), byte(1), uint16(7), byte(0), true)
	f.Add("$share/g/#", "\xff", []byte{}, byte(2), uint16(1), byte(0x87), false)
	f.Add("a\x00b", "", []byte{0}, byte(3), uint16(0), byte(0x10), true)
	f.Fuzz(func(t *testing.T, a, b string, c []byte, small byte, id uint16, code byte, five bool) {
		version := V311
		if five {
			version = V5
		}
		users := []User{{a, b}, {b, a}}
		for _, p := range []Packet{
			&Publish{Topic: a, Payload: c, QoS: small, ID: id, Alias: id, Props: &MessageProperties{Format: code, ContentType: b, ResponseTopic: a, Correlation: c, User: users}},
			&Publish{Topic: a, Payload: c, SubIDs: []int{int(id), int(small)}},
			&Ack{Kind: Type(small), ID: id, Code: Code(code), Reason: b, User: users},
			&Subscribe{ID: id, Filters: []Subscription{{Filter: a, QoS: small, NoLocal: five, RetainHandling: code}}, SubID: int(code), User: users},
			&Unsubscribe{ID: id, Filters: []string{a, b}, User: users},
			&Suback{Kind: Type(small), ID: id, Codes: []Code{Code(code)}, Reason: b, User: users},
			&Connack{Code: Code(code), Reason: a, AssignedClientID: b, AuthMethod: a, AuthData: c, User: users},
			&Disconnect{Code: Code(code), Reason: a, ServerReference: b, User: users},
			&Auth{Code: Code(code), Method: a, Data: c, Reason: b},
			&Connect{Version: small, ProtocolName: a, ClientID: a, Username: b, Password: c},
			&Connect{ClientID: a, Will: &Will{Message: Publish{Topic: b, Payload: c, QoS: small}, Delay: uint32(id)}, AuthMethod: b, AuthData: c},
			&Ping{Kind: Type(small)},
		} {
			out, err := Append(nil, p, version)
			if err != nil {
				if len(out) != 0 {
					t.Fatalf("%+v: % x was written along with error %v", p, out, err)
				}
				continue
			}
			if len(out) > 0 && !accepted(t, out, version, p.Type()) {
				t.Fatalf("%+v was written as % x, which neither a server nor a client accepts", p, out)
			}
		}
	})
}

// accepted reports whether one side or the other reads b as one packet of kind.
func accepted(t *testing.T, b []byte, version byte, kind Type) bool {
	if kind == TypeConnect {
		version = 0
	}
	for _, sender := range []direction{fromClient, fromServer} {
		r := reading(b, version, sender)
		r.SetLimit(1 << 28)
		if p, err := r.Next(); err == nil && p.Type() == kind && !r.Buffered() {
			return true
		}
	}
	return false
}
