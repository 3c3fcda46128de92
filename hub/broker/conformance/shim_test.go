package conformance

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
)

// shim is plain TCP on loopback in front of the hub's mutual TLS, for suites that know
// neither TLS nor our names. It speaks for one service and changes names and nothing
// else: client identifiers become the service's ("myclientid" is sent as
// "interop:myclientid"), topics move below one level ("TopicA" is sent as "i/TopicA"),
// and back. What it can't read it passes on as it is, malformed packets above all.
// Topics that begin with $ stay, and so do those that it is told to leave: a suite
// expects them to be refused.
type shim struct {
	t        *testing.T
	hub      string // HOST:PORT
	service  certtest.Credential
	leave    []string
	listener net.Listener
	serving  sync.WaitGroup
}

// startShim listens until the test's end.
func startShim(t *testing.T, hub string, service certtest.Credential, leave ...string) *shim {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &shim{t: t, hub: hub, service: service, leave: leave, listener: listener}
	s.serving.Go(func() {
		for {
			plain, err := listener.Accept()
			if err != nil {
				return // closed by the cleanup below
			}
			s.serving.Go(func() { s.serve(plain) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		s.serving.Wait()
	})
	return s
}

// port is the number of the port that the shim listens on.
func (s *shim) port() int { return s.listener.Addr().(*net.TCPAddr).Port }

// serve carries packets both ways until either side ends.
func (s *shim) serve(plain net.Conn) {
	defer plain.Close()
	secure, err := tls.Dial("tcp", s.hub, s.service.ClientConfig())
	if err != nil {
		s.t.Errorf("the shim can't reach the hub: %v", err)
		return
	}
	defer secure.Close()
	c := &carriage{shim: s}
	var back sync.WaitGroup
	back.Go(func() {
		c.carry(plain, secure, c.fromHub)
		_ = plain.(*net.TCPConn).CloseWrite()
		_ = plain.SetReadDeadline(time.Now().Add(patience)) // for a client that does not take the hint
	})
	c.carry(secure, plain, c.fromClient)
	secure.NetConn().Close() // no close_notify: a client that vanishes says nothing either
	back.Wait()
	_, _ = io.Copy(io.Discard, plain) // what is unread at Close would cost the client the hub's last packet
}

// carriage is one connection through the shim.
type carriage struct {
	shim    *shim
	mu      sync.Mutex // guards version
	version byte       // of the CONNECT
}

// carry copies packets from src to dst, changed.
func (c *carriage) carry(dst io.Writer, src io.Reader, change func([]byte, []byte) []byte) {
	in := bufio.NewReader(src)
	for {
		head, body, err := readFrame(in)
		if len(head) > 0 {
			out := slices.Concat(head, body)
			if err == nil {
				out = change(head, body)
			}
			if _, err := dst.Write(out); err != nil {
				return
			}
		}
		if errors.Is(err, errNoFrame) {
			_, err = io.Copy(dst, in)
		}
		if err != nil {
			return
		}
	}
}

var errNoFrame = errors.New("the remaining length has no end")

// readFrame reads a packet's fixed header and the rest, whatever came of it.
func readFrame(in *bufio.Reader) (head, body []byte, err error) {
	length := 0
	for shift := -7; ; shift += 7 {
		b, err := in.ReadByte()
		if err != nil {
			return head, nil, err
		}
		head = append(head, b)
		if shift >= 0 {
			length |= int(b&0x7f) << shift
			if b&0x80 == 0 {
				break
			}
		}
		if shift == 21 {
			return head, nil, errNoFrame
		}
	}
	body = make([]byte, length)
	n, err := io.ReadFull(in, body)
	return head, body[:n], err
}

// cursor takes a packet's body apart. It is out of step once anything was missing.
type cursor struct {
	rest []byte
	out  []byte
	bad  bool
}

// pass copies n bytes.
func (c *cursor) pass(n int) []byte {
	if n > len(c.rest) {
		c.bad = true
		return make([]byte, n)
	}
	b := c.rest[:n]
	c.out, c.rest = append(c.out, b...), c.rest[n:]
	return b
}

// text replaces a string.
func (c *cursor) text(change func(string) string) {
	if len(c.rest) < 2 || len(c.rest) < 2+int(binary.BigEndian.Uint16(c.rest)) {
		c.bad = true
		return
	}
	n := int(binary.BigEndian.Uint16(c.rest))
	c.out = append(c.out, str(change(string(c.rest[2:2+n])))...)
	c.rest = c.rest[2+n:]
}

// properties copies a properties field; version 3.1.1 has none.
func (c *cursor) properties(version byte) {
	if version != 5 {
		return
	}
	n := 0
	for shift := 0; shift < 28; shift += 7 {
		b := c.pass(1)[0]
		n |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			break
		}
	}
	c.pass(n)
}

// done is the packet with what has been changed, or as it was if it could not be read.
func (c *cursor) done(head, body []byte) []byte {
	if c.bad {
		return slices.Concat(head, body)
	}
	return packet(head[0], c.out, c.rest)
}

func (c *carriage) fromClient(head, body []byte) []byte {
	at := &cursor{rest: body}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch head[0] >> 4 {
	case 1: // CONNECT
		at.text(func(name string) string { return name })
		level, flags := at.pass(1)[0], at.pass(1)[0]
		at.pass(2)
		c.version = level
		at.properties(c.version)
		at.text(func(id string) string {
			if id == "" {
				return ""
			}
			return c.shim.service.Identity.ID + ":" + id
		})
		if flags&flagWill != 0 {
			at.properties(c.version)
			at.text(c.shim.inward)
		}
	case 3: // PUBLISH
		at.text(c.shim.inward)
	case 8: // SUBSCRIBE
		at.pass(2)
		at.properties(c.version)
		for len(at.rest) > 0 && !at.bad {
			at.text(c.shim.inward)
			at.pass(1)
		}
	case 10: // UNSUBSCRIBE
		at.pass(2)
		at.properties(c.version)
		for len(at.rest) > 0 && !at.bad {
			at.text(c.shim.inward)
		}
	default:
		return slices.Concat(head, body)
	}
	return at.done(head, body)
}

func (c *carriage) fromHub(head, body []byte) []byte {
	if head[0]>>4 != 3 {
		return slices.Concat(head, body)
	}
	at := &cursor{rest: body}
	at.text(func(topic string) string { return strings.TrimPrefix(topic, below) })
	return at.done(head, body)
}

// inward is a topic name or filter as the hub gets it.
func (s *shim) inward(topic string) string {
	if topic == "" || slices.Contains(s.leave, topic) {
		return topic // an alias stands for it, or it shall be refused
	}
	if share, ok := strings.CutPrefix(topic, "$share/"); ok {
		name, filter, ok := strings.Cut(share, "/")
		if !ok || filter == "" {
			return topic
		}
		return "$share/" + name + "/" + below + filter
	}
	if topic[0] == '$' {
		return topic
	}
	return below + topic
}
