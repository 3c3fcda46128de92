package conformance

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/wire"
)

// shim is plain TCP on loopback in front of the hub's mutual TLS, for suites that know
// neither. It speaks for one service, whose certificate it has, and so it changes
// client identifiers: "myclientid" is sent as "interop:myclientid". Nothing else, and
// what it can't read it passes on as it is, malformed packets above all.
type shim struct {
	t        *testing.T
	hub      string // HOST:PORT
	service  certtest.Credential
	listener net.Listener
	serving  sync.WaitGroup
}

// startShim listens until the test's end.
func startShim(t *testing.T, hub string, service certtest.Credential) *shim {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &shim{t: t, hub: hub, service: service, listener: listener}
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
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(plain, secure)
		_ = plain.(*net.TCPConn).CloseWrite()
		_ = plain.SetReadDeadline(time.Now().Add(patience)) // for a client that does not take the hint
	})
	s.forward(secure, plain)
	secure.NetConn().Close() // no close_notify: a client that vanishes says nothing either
	back.Wait()
	_, _ = io.Copy(io.Discard, plain) // what is unread at Close would cost the client the hub's last packet
}

// forward copies a client's packets, changed.
func (s *shim) forward(dst io.Writer, src io.Reader) {
	in := bufio.NewReader(src)
	for {
		head, body, err := readFrame(in)
		if len(head) > 0 {
			out := slices.Concat(head, body)
			if err == nil && head[0]>>4 == byte(wire.TypeConnect) {
				out = s.rename(head[0], body)
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

// rename returns a CONNECT with the client identifier that the service's certificate
// lets it have. An empty one stays: it shall be refused.
func (s *shim) rename(first byte, body []byte) []byte {
	unchanged := packet(first, body)
	name, rest, ok := cutText(body)
	if !ok || len(rest) < 4 {
		return unchanged
	}
	at := len(name) + 2 + 4 // behind version, flags and keep-alive
	if rest[0] == wire.V5 {
		if len(rest) < 5 || rest[4] >= 0x80 { // no suite's CONNECT has 128 octets of properties
			return unchanged
		}
		at += 1 + int(rest[4])
	}
	if at > len(body) {
		return unchanged
	}
	id, rest, ok := cutText(body[at:])
	if !ok || id == "" {
		return unchanged
	}
	return packet(first, body[:at], str(s.service.Identity.ID+":"+id), rest)
}

// cutText splits a string off a packet's body.
func cutText(b []byte) (text string, rest []byte, ok bool) {
	if len(b) < 2 {
		return "", nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return "", nil, false
	}
	return string(b[2 : 2+n]), b[2+n:], true
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
