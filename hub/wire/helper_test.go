package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
)

// unhex turns "10 0c 'MQTT'" into bytes: hexadecimal, blanks, and text in quotes.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var out []byte
	for i, part := range strings.Split(s, "'") {
		if i%2 == 1 {
			out = append(out, part...)
			continue
		}
		b, err := hex.DecodeString(strings.Join(strings.Fields(part), ""))
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		out = append(out, b...)
	}
	return out
}

// framed puts a fixed header before a body: the first byte, then the body's
// length.
func framed(first byte, body []byte) []byte {
	return append(appendVarint([]byte{first}, len(body)), body...)
}

// reading returns a Reader over b as one that has agreed on version sees it.
func reading(b []byte, version byte, sender direction) *Reader {
	r := NewReader(bytes.NewReader(b), 1<<20)
	r.SetVersion(version)
	if sender == fromServer {
		r.Client()
	}
	return r
}

// mustRead returns the only packet in b.
func mustRead(t testing.TB, b []byte, version byte, sender direction) Packet {
	t.Helper()
	r := reading(b, version, sender)
	p, err := r.Next()
	if err != nil {
		t.Fatalf("% x: %v", b, err)
	}
	if r.Buffered() {
		t.Fatalf("% x: bytes are left behind the packet", b)
	}
	return p
}

// mustAppend encodes p.
func mustAppend(t testing.TB, p Packet, version byte) []byte {
	t.Helper()
	b, err := Append(nil, p, version)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// loop is a connection that says the same again and again, in one piece.
type loop struct {
	b  []byte
	at int
}

func (l *loop) Read(p []byte) (int, error) {
	n := copy(p, l.b[l.at:])
	l.at = (l.at + n) % len(l.b)
	return n, nil
}

// chunks is a connection that delivers one chunk a Read and counts them; err
// is what follows, io.EOF if it is nil.
type chunks struct {
	list  [][]byte
	reads int
	err   error
}

var errDeadline = errors.New("deadline")

func (c *chunks) Read(p []byte) (int, error) {
	c.reads++
	if len(c.list) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		return 0, io.EOF
	}
	if c.list[0] == nil { // a deadline that has passed
		c.list = c.list[1:]
		return 0, errDeadline
	}
	n := copy(p, c.list[0])
	if c.list[0] = c.list[0][n:]; len(c.list[0]) == 0 {
		c.list = c.list[1:]
	}
	return n, nil
}

// packet turns "30: 0001 't'" into a packet whose remaining length is that of
// what follows the colon; without a colon it is the bytes as they are.
func packet(t testing.TB, s string) []byte {
	t.Helper()
	first, body, ok := strings.Cut(s, ":")
	if !ok {
		return unhex(t, s)
	}
	return framed(unhex(t, first)[0], unhex(t, body))
}
