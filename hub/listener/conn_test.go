package listener

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func TestWritesArriveInOrderAndWholeBeforeClose(t *testing.T) {
	const n = 2000
	h := start(t, func(c *Conn) {
		for i := range n {
			if _, err := c.Write(bytes.Repeat([]byte{byte(i)}, 100)); err != nil {
				t.Error(err)
			}
		}
	})
	got, err := io.ReadAll(h.mustDial("pi-1")) // no error: it ends with close_notify
	must(t, err)
	if len(got) != n*100 {
		t.Fatalf("%d bytes of %d", len(got), n*100)
	}
	for i := range got {
		if got[i] != byte(i/100) {
			t.Fatalf("byte %d is %d", i, got[i])
		}
	}
}

// fill writes to a peer that doesn't read until the connection gives up.
func fill(c *Conn) error {
	chunk := make([]byte, 16<<10)
	for {
		if _, err := c.Write(chunk); err != nil {
			return err
		}
	}
}

// deaf dials and shrinks what the client's kernel takes.
func (h *harness) deaf(id string) net.Conn {
	conn := h.mustDial(id)
	must(h.t, conn.NetConn().(*net.TCPConn).SetReadBuffer(4096))
	return conn
}

func TestPeerThatLagsTooFarIsCut(t *testing.T) {
	result := make(chan error, 1)
	h := start(t, func(c *Conn) { result <- fill(c) }, func(c *Config) { c.WriteTimeout = time.Hour })
	h.deaf("pi-1")
	if err := <-result; !errors.Is(err, ErrSlowPeer) {
		t.Errorf("the write ended with %v", err)
	}
	until(t, "nothing is open", func() bool { return h.Open() == 0 })
}

func TestPeerThatTakesNothingIsCutAtTheWriteTimeout(t *testing.T) {
	h := start(t, func(c *Conn) {
		c.Connected()
		c.Write(make([]byte, 16<<20)) // whole, whatever the limit: nothing was outstanding
		io.Copy(io.Discard, c)
	}, func(c *Config) { c.WriteTimeout = 100 * time.Millisecond })
	h.deaf("pi-1")
	until(t, "nothing is open", func() bool { return h.Open() == 0 })
}

func TestCloseDoesNotWaitForAPeerThatStoppedReading(t *testing.T) {
	conns := make(chan *Conn, 1)
	h := start(t, func(c *Conn) {
		c.Connected()
		c.Write(make([]byte, 16<<20))
		conns <- c
		io.Copy(io.Discard, c)
	}, func(c *Config) { c.WriteTimeout, c.CloseTimeout = time.Hour, 50*time.Millisecond })
	h.deaf("pi-1")
	c := <-conns
	c.Close()
	select {
	case <-c.Done():
	case <-time.After(patience):
		t.Fatal("the socket is still open")
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

func TestCutClosesAtOnce(t *testing.T) {
	conns := make(chan *Conn, 1)
	h := start(t, func(c *Conn) {
		c.Connected()
		conns <- c
		io.Copy(io.Discard, c)
	})
	conn := h.mustDial("pi-1")
	c := <-conns
	c.Cut()
	c.Cut()
	c.Close()
	<-c.Done()
	ended(t, conn)
	until(t, "nothing is open", func() bool { return h.Open() == 0 })
}

func TestReadDeadlineCannotReviveAClosingConnection(t *testing.T) {
	done := make(chan error, 1)
	h := start(t, func(c *Conn) {
		c.Connected()
		c.Close()
		c.SetDeadline(time.Now().Add(time.Hour))
		_, err := c.Read(make([]byte, 1))
		done <- err
	})
	h.mustDial("pi-1")
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("read ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the read goes on")
	}
}

// TestConnectTimeoutBeginsWithTheHandshakesEnd: it may end after the handshake's own
// would have, and before.
func TestConnectTimeoutBeginsWithTheHandshakesEnd(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ handshake, connect time.Duration }{
		"longer":  {time.Second, 1500 * time.Millisecond},
		"shorter": {time.Hour, 300 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			took := make(chan time.Duration, 1)
			h := start(t, func(c *Conn) {
				began := time.Now()
				_, err := c.Read(make([]byte, 1))
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("read: %v", err)
				}
				took <- time.Since(began)
			}, func(config *Config) { config.HandshakeTimeout, config.ConnectTimeout = c.handshake, c.connect })
			h.mustDial("pi-1")
			if got := <-took; got < c.connect*9/10 {
				t.Errorf("it waited %s", got)
			}
		})
	}
}
