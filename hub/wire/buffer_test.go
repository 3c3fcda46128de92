package wire

import (
	"bytes"
	"io"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

func TestIdleReaderHoldsNoBuffer(t *testing.T) {
	src := &chunks{err: errDeadline}
	r := NewReader(src, 1<<20)
	r.SetVersion(V311)
	holds := func(when string) {
		t.Helper()
		if r.s != nil {
			t.Fatalf("%s the reader holds a buffer", when)
		}
	}
	for _, next := range []struct {
		bytes string
		kind  Type
	}{{"30: 0001 't' 'payload'", TypePublish}, {"c0 00", TypePingreq}, {"40: 0001", TypePuback}} {
		src.list = [][]byte{packet(t, next.bytes)}
		if p, err := r.Next(); err != nil || p.Type() != next.kind {
			t.Fatalf("%s: %v, %v", next.bytes, p, err)
		}
		if next.kind == TypePingreq {
			holds("behind a PINGREQ")
		}
		if _, err := r.Next(); err != errDeadline {
			t.Fatalf("error %v, want the connection's", err)
		}
		holds("while it waits")
	}
	src.list = [][]byte{{0x30}}
	if _, err := r.Next(); err != errDeadline {
		t.Fatalf("error %v, want the connection's", err)
	}
	holds("with one byte of a packet")
	if size := reflect.TypeFor[Reader]().Size(); size > 112 {
		t.Errorf("a Reader takes %d bytes of every connection", size)
	}
}

// TestAnnouncedSizeAllocatesNothing lets 256 MB be announced where they would
// be accepted, and sends some of them.
func TestAnnouncedSizeAllocatesNothing(t *testing.T) {
	for _, sent := range []int{0, 100, 10_000, 3_000_000} {
		src := &chunks{list: [][]byte{{0x30, 0xFF, 0xFF, 0xFF, 0x7F}, make([]byte, sent)}, err: errDeadline}
		r := NewReader(src, 1<<28+10)
		r.SetVersion(V311)
		if _, err := r.Next(); err != errDeadline {
			t.Fatalf("error %v, want the deadline", err)
		}
		if limit := max(2*(sent+5), smallBuffer); len(r.s.buf) > limit {
			t.Errorf("after %d bytes of 256 MB the buffer has %d, want at most %d", sent, len(r.s.buf), limit)
		}
		r.Release()
	}
}

func TestBufferShrinksWhenALargePacketHasLeft(t *testing.T) {
	big := framed(0x30, append([]byte{0, 1, 't'}, make([]byte, 300_000)...))
	src := &chunks{list: [][]byte{append(big, 0x30)}, err: errDeadline}
	r := NewReader(src, 1<<20)
	r.SetVersion(V311)
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); err != errDeadline {
		t.Fatal(err)
	}
	if len(r.s.buf) != smallBuffer {
		t.Errorf("for one byte of the next packet the reader holds %d", len(r.s.buf))
	}
}

// TestMalformedInputLeavesNothingBehind reads a great many bad packets, each on
// a connection of its own, and compares the heap before and after.
func TestMalformedInputLeavesNothingBehind(t *testing.T) {
	var bad [][]byte
	for _, v := range violations {
		if v.version == 0 && strings.HasPrefix(v.bad, "10") {
			bad = append(bad, packet(t, v.bad))
		}
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // twice, so that the pools are empty too
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range 100_000 {
		r := NewReader(bytes.NewReader(bad[i%len(bad)]), 1<<20)
		if _, err := r.Next(); err == nil {
			t.Fatalf("% x was read", bad[i%len(bad)])
		}
		r.Release()
	}
	if after := heap(); after > before+256<<10 {
		t.Errorf("the heap has grown from %d to %d bytes", before, after)
	}
}

// TestReadersDoNotShareBuffers runs many readers at once, with packets of all
// sizes, each full of a byte of its own.
func TestReadersDoNotShareBuffers(t *testing.T) {
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			mark := byte('a' + n)
			var stream []byte
			for size := 1; size < 300_000; size = size*3 + n {
				stream = append(stream, framed(0x30, append([]byte{0, 1, mark}, bytes.Repeat([]byte{mark}, size)...))...)
			}
			for range 20 {
				r := NewReader(iotest.HalfReader(bytes.NewReader(stream)), 1<<20)
				r.SetVersion(V311)
				for {
					p, err := r.Next()
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Error(err)
						return
					}
					runtime.Gosched()
					if p := p.(*Publish); p.Topic != string(mark) || strings.Trim(string(p.Payload), string(mark)) != "" {
						t.Errorf("reader %c read another's bytes", mark)
						return
					}
				}
				r.Release()
			}
		})
	}
	wg.Wait()
}

func TestHotPacketsAllocateOnlyTheirTopic(t *testing.T) {
	for _, c := range []struct {
		name    string
		packet  Packet
		version byte
		want    float64
	}{
		{"PUBLISH 3.1.1", benchPublish(1), V311, 1},
		{"PUBLISH 5.0", benchPublish(0), V5, 2}, // the second is the codec's
		{"PUBACK", &Ack{Kind: TypePuback, ID: 1}, V5, 0},
		{"PUBREL", &Ack{Kind: TypePubrel, ID: 1}, V311, 0},
		{"PINGREQ", &Ping{Kind: TypePingreq}, V5, 0},
	} {
		r := NewReader(&loop{b: bytes.Repeat(mustAppend(t, c.packet, c.version), 20)}, 1<<20)
		r.SetVersion(c.version)
		got := testing.AllocsPerRun(1000, func() {
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
		})
		if got > c.want {
			t.Errorf("reading a %s allocates %v times, want %v", c.name, got, c.want)
		}
	}
}

func TestEncodingForManyAllocatesOnce(t *testing.T) {
	p := benchPublish(1)
	if got := testing.AllocsPerRun(1000, func() {
		if _, err := EncodePublish(p, V5); err != nil {
			t.Fatal(err)
		}
	}); got > 2 {
		t.Errorf("EncodePublish allocates %v times, want the packet and the Encoded", got)
	}
	dst := make([]byte, 0, 512)
	for name, p := range map[string]Packet{"PUBLISH": p, "PUBACK": &Ack{Kind: TypePuback, ID: 1}} {
		if got := testing.AllocsPerRun(1000, func() {
			if _, err := Append(dst, p, V5); err != nil {
				t.Fatal(err)
			}
		}); got > 0 {
			t.Errorf("appending a %s to a large enough slice allocates %v times", name, got)
		}
	}
}

// TestSmallPacketsNeedNoLargeBuffer reads a long stream in pieces that fit
// neither the packets nor the buffer.
func TestSmallPacketsNeedNoLargeBuffer(t *testing.T) {
	stream := bytes.Repeat(framed(0x30, append([]byte{0, 1, 't'}, make([]byte, 700)...)), 100)
	for _, piece := range []int{333, 3000, 4095, 4096, 5000} {
		src := &chunks{}
		for rest := stream; len(rest) > 0; {
			n := min(piece, len(rest))
			src.list, rest = append(src.list, rest[:n]), rest[n:]
		}
		r := NewReader(src, 1<<20)
		r.SetVersion(V311)
		read := 0
		for {
			_, err := r.Next()
			if r.s != nil && len(r.s.buf) != smallBuffer {
				t.Fatalf("pieces of %d bytes: behind packet %d the buffer has %d bytes", piece, read, len(r.s.buf))
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			read++
		}
		if read != 100 {
			t.Errorf("pieces of %d bytes: %d packets were read", piece, read)
		}
	}
}
