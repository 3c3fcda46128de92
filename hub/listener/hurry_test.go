package listener

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"syscall"
	"testing"
	"time"
)

// partings are the ways in which a connection is when it is closed here.
var partings = map[string]func(*Conn){
	"with nothing to say":             func(*Conn) {},
	"with much that is still to go":   func(c *Conn) { c.Write(make([]byte, 16<<10)) },
	"long after its last write":       func(c *Conn) { c.raw.Conn.SetWriteDeadline(longAgo) },
	"while TLS writes for its peer":   func(c *Conn) { c.raw.writers.Add(1) },
	"while somebody waits for a read": func(c *Conn) { go io.Copy(io.Discard, c) },
}

// TestLastWordArrivesBeforeTheEnd: whole, and with TLS's own end behind it.
func TestLastWordArrivesBeforeTheEnd(t *testing.T) {
	for name, prepare := range partings {
		for _, version := range versions {
			t.Run(name+" "+tls.VersionName(version), func(t *testing.T) {
				h := start(t, func(c *Conn) {
					c.Connected()
					c.Write([]byte("hello "))
					prepare(c)
					c.CloseHere([]byte("bye"))
					<-c.Done()
				})
				config := h.pki.Device("pi-1").ClientConfig()
				config.MaxVersion = version
				conn, err := tls.Dial("tcp", h.addr, config)
				must(t, err)
				defer conn.Close()
				must(t, conn.SetDeadline(time.Now().Add(patience)))
				got, err := io.ReadAll(conn) // an error unless close_notify comes last
				must(t, err)
				if !bytes.HasPrefix(got, []byte("hello ")) || !bytes.HasSuffix(got, []byte("bye")) {
					t.Errorf("%d bytes: %.20q", len(got), got)
				}
			})
		}
	}
}

// TestLastWordArrivesThoughSomethingIsUnread: the kernel resets such a stream.
func TestLastWordArrivesThoughSomethingIsUnread(t *testing.T) {
	ready := make(chan struct{})
	h := start(t, func(c *Conn) {
		c.Connected()
		close(ready) // what comes with the handshake is read with it
		until(t, "something is unread", func() bool { n, ok := unread(c.raw.Conn); return !ok || n > 0 })
		c.CloseHere([]byte("bye"))
	})
	conn := h.mustDial("pi-1")
	<-ready
	_, err := conn.Write([]byte("more than anybody reads"))
	must(t, err)
	got, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	if string(got) != "bye" {
		t.Errorf("%q", got)
	}
}

// TestCloseHereDoesNotWaitForAPeerThatStoppedReading, nor for a lock that crypto/tls holds
// while it answers one.
func TestCloseHereDoesNotWaitForAPeerThatStoppedReading(t *testing.T) {
	h := start(t, func(c *Conn) {
		c.Connected()
		c.Write(make([]byte, 16<<20))
		c.CloseHere([]byte("bye"))
	}, func(c *Config) { c.WriteTimeout, c.CloseTimeout = time.Hour, 50*time.Millisecond })
	h.deaf("pi-1")
	until(t, "nothing is open", func() bool { return h.Open() == 0 })
}

// TestHurriedWriteGivesUpAtAFullSocket instead of waiting for its peer.
func TestHurriedWriteGivesUpAtAFullSocket(t *testing.T) {
	result := make(chan error, 1)
	h := start(t, func(c *Conn) {
		c.Connected()
		if !c.raw.hurry() {
			t.Error("a connection at rest can't be hurried")
		}
		var err error
		for err == nil {
			_, err = c.raw.Write(make([]byte, 64<<10))
		}
		result <- err
		c.Cut()
	})
	h.deaf("pi-1")
	if err := <-result; err == nil {
		t.Error("no error")
	}
}
