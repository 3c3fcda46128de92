package link

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// alertWait is how long a connection whose write broke is still read for the
// alert that explains why.
const alertWait = time.Second

// conn is the TLS connection below one paho client. It gives every read and
// write a deadline, keeps the hub's TLS alert, and can be cut for a stated
// cause.
type conn struct {
	*tls.Conn
	idle  time.Duration // a hub silent for so long after CONNACK is gone
	write time.Duration // deadline of one write after CONNACK

	// settled is set once CONNACK has arrived: until then the deadline of the
	// whole attempt holds, afterwards those above.
	settled atomic.Bool
	wire    *meter  // of this connection
	connect Traffic // until CONNACK; valid once settled

	mu    sync.Mutex // guards what follows; never held across I/O
	alert tls.AlertError
	told  bool  // alert is valid
	cause error // why the link itself cut the connection
}

// open dials address and completes the TLS handshake within ctx. Under TLS
// 1.3 a nil error doesn't mean that the hub accepts the device: its refusal
// is an alert on the first read, which the conn keeps.
func open(ctx context.Context, address string, config *tls.Config, o *offer) (*tls.Conn, error) {
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, &dialError{err}
	}
	c := tls.Client(&metered{Conn: raw, own: &o.wire, all: o.total}, config)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's error is the one that matters
		return nil, err
	}
	return c, nil
}

// dialError marks an attempt that never reached the hub.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// SetDeadline passes the deadline on. paho clears it when, and only when,
// CONNACK has arrived; from then on every read and write sets its own.
func (c *conn) SetDeadline(t time.Time) error {
	if t.IsZero() {
		c.connect = c.wire.read()
		c.settled.Store(true)
	}
	return c.Conn.SetDeadline(t)
}

func (c *conn) Read(p []byte) (int, error) {
	if c.settled.Load() {
		// The keep-alive's answers come more often than this, so a read that
		// reaches it means that the hub or the path to it is gone, even when
		// paho is stuck in a write.
		if err := c.Conn.SetReadDeadline(time.Now().Add(c.idle)); err != nil {
			return 0, c.explain(err)
		}
	}
	n, err := c.Conn.Read(p)
	if err != nil {
		err = c.explain(err)
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	if c.settled.Load() {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(c.write)); err != nil {
			return 0, c.explain(err)
		}
	}
	n, err := c.Conn.Write(p)
	if err == nil {
		return n, nil
	}
	if !c.settled.Load() {
		// A hub that refuses in TLS 1.3 alerts and closes: our CONNECT may
		// meet the reset first, with the alert still unread.
		var one [1]byte
		if e := c.Conn.SetReadDeadline(time.Now().Add(alertWait)); e == nil {
			_, e = c.Conn.Read(one[:])
			c.keepAlert(e)
		}
	}
	return n, c.explain(err)
}

// cut closes the connection and makes its reads and writes report cause. A
// plain Close won't do: paho takes "use of closed network connection" for its
// own doing and tells nobody.
func (c *conn) cut(cause error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = cause
	}
	c.mu.Unlock()
	_ = c.NetConn().Close() // no TLS goodbye: it could block behind a stuck write
}

// explain keeps the alert in err, if it is one, and replaces the error of a
// connection that the link itself has cut.
func (c *conn) explain(err error) error {
	c.keepAlert(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return c.cause
	}
	return err
}

func (c *conn) keepAlert(err error) {
	if alert, ok := alertOf(err); ok {
		c.mu.Lock()
		c.alert, c.told = alert, true
		c.mu.Unlock()
	}
}

// refusal returns the alert with which the hub ended the connection.
func (c *conn) refusal() (alert tls.AlertError, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alert, c.told
}
