// Package listener accepts the hub's MQTT connections: TCP, then mutual TLS,
// then a handler that must see a CONNECT in time. It knows nothing of MQTT.
//
// A connection passes these stations, each with its own bound:
//
//  1. Accept. A transient error (out of file descriptors, a connection aborted
//     in the queue) waits and tries again, as net/http does; it never ends the
//     loop. Beyond Config.MaxConnections a connection is closed at once.
//  2. TLS handshake, under Config.HandshakeTimeout. Config.Verify judges the
//     peer inside the handshake, on full and on resumed ones.
//  3. Handler, under Config.ConnectTimeout until it calls Conn.Connected.
//  4. Every write has a deadline and goes through a bounded buffer; see Conn.
//
// Handshake and handler run on goroutines of their own: the handshake's grown
// stack ends with it, and a slow or hostile peer delays nobody else.
package listener

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// Reasons of refusals that arise here. Those of certificates and admission come
// from Config.Verify, as the Reason of a *mtls.Refusal.
const (
	ReasonTooMany          = "too-many-connections"
	ReasonHandshakeTimeout = "handshake-timeout"
	ReasonHandshakeAborted = "handshake-aborted" // the peer went away
	ReasonHandshakeFailed  = "handshake-failed"  // no common version, suite or curve; a malformed message
	ReasonNotTLS           = "not-tls"
	ReasonPeerAlert        = "peer-alert" // the peer refused us
	ReasonPanic            = "panic"
)

// Observer is told what happens, for metrics. Its methods are called on the
// connections' goroutines, must be safe for concurrent use and must not block.
type Observer interface {
	// OnRefused reports a connection that was turned away: the reason, the
	// peer's address, and the identity that it claimed ("" if none, and not
	// to be trusted).
	OnRefused(reason string, remote net.Addr, id string)
	// OnHandshake reports a completed handshake and how long it took.
	OnHandshake(resumed bool, took time.Duration)
}

// Config is what a Listener needs. TLS, Verify and Handle are required.
type Config struct {
	// TLS is the server's configuration, such as mtls.ServerConfig returns. It is
	// cloned; VerifyConnection and GetConfigForClient are replaced.
	TLS *tls.Config
	// Verify judges the peer and returns who it is. It runs inside the handshake.
	Verify func(tls.ConnectionState) (mtls.Peer, error)
	// Handle serves one connection, which is closed when Handle returns. A panic
	// in it is logged and ends that connection only.
	Handle func(*Conn)

	HandshakeTimeout time.Duration // 0: 5 s
	ConnectTimeout   time.Duration // until Conn.Connected; 0: 10 s
	WriteTimeout     time.Duration // without progress of a write; 0: 10 s
	CloseTimeout     time.Duration // for what is still to be written at Close; 0: 500 ms
	MaxConnections   int           // those in their handshake included; 0: 15,000
	WriteBuffer      int           // bytes that a peer may lag behind; 0: 1 MiB

	Observer Observer     // nil: nobody is told
	Log      *slog.Logger // nil: nothing is logged
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.HandshakeTimeout, 5 * time.Second},
		{&c.ConnectTimeout, 10 * time.Second},
		{&c.WriteTimeout, 10 * time.Second},
		{&c.CloseTimeout, 500 * time.Millisecond},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if c.MaxConnections <= 0 {
		c.MaxConnections = 15_000
	}
	if c.WriteBuffer <= 0 {
		c.WriteBuffer = 1 << 20
	}
	if c.Observer == nil {
		c.Observer = nobody{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

type nobody struct{}

func (nobody) OnRefused(string, net.Addr, string) {}
func (nobody) OnHandshake(bool, time.Duration)    {}

// Listener serves connections of any number of net.Listeners.
type Listener struct {
	config  Config
	tls     *tls.Config // one for all connections, so that they share ticket keys
	buffers sync.Pool   // of *[]byte, for Conn's writes
	serving sync.WaitGroup
	open    atomic.Int64 // connections accepted and not finished

	mu        sync.Mutex // guards what follows
	closed    bool
	stop      chan struct{} // closed by Close
	listeners map[net.Listener]struct{}
	conns     map[*Conn]struct{}
}

// New returns a Listener that serves nothing yet.
func New(config Config) *Listener {
	config.setDefaults()
	l := &Listener{
		config:    config,
		tls:       config.TLS.Clone(),
		stop:      make(chan struct{}),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*Conn]struct{}),
	}
	l.tls.GetConfigForClient = l.configFor
	return l
}

// Serve accepts connections from ln until Close, and returns nil then. It
// returns an error only if somebody else closes ln.
func (l *Listener) Serve(ln net.Listener) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		ln.Close()
		return nil
	}
	l.listeners[ln] = struct{}{}
	l.serving.Add(1)
	l.mu.Unlock()
	defer l.serving.Done()

	var delay time.Duration
	for {
		raw, err := ln.Accept()
		if err == nil {
			delay = 0
			l.accept(raw)
			continue
		}
		if l.isClosed() {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
		}
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		l.config.Log.Error("accept failed, trying again", "addr", ln.Addr(), "error", err, "delay", delay)
		select {
		case <-time.After(delay):
		case <-l.stop:
			return nil
		}
	}
}

// Close stops accepting, closes every connection, and returns when every
// handler has returned and no goroutine of the listener is left.
func (l *Listener) Close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.stop)
		for ln := range l.listeners {
			ln.Close()
		}
		for c := range l.conns {
			c.Close()
		}
	}
	l.mu.Unlock()
	l.serving.Wait()
}

// Open returns the number of connections, those in their handshake included.
func (l *Listener) Open() int { return int(l.open.Load()) }

func (l *Listener) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

func (l *Listener) accept(raw net.Conn) {
	if l.open.Add(1) > int64(l.config.MaxConnections) {
		l.open.Add(-1)
		raw.Close()
		l.refused(raw.RemoteAddr(), ReasonTooMany, "", fmt.Sprintf("%d connections are open", l.config.MaxConnections))
		return
	}
	c := newConn(raw, l)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		l.open.Add(-1)
		raw.Close()
		return
	}
	l.conns[c] = struct{}{}
	l.serving.Add(1)
	l.mu.Unlock()
	go l.handshake(c)
}

// handshake ends its goroutine, and with it a stack that has grown to some
// 30 KiB, before the connection's long life begins.
func (l *Listener) handshake(c *Conn) {
	began := time.Now()
	err := l.shake(c)
	if err != nil {
		reason, id, detail := explain(err, c)
		l.refused(c.RemoteAddr(), reason, id, detail)
		if c.judged {
			c.linger()
		}
		l.finish(c)
		return
	}
	l.config.Observer.OnHandshake(c.Peer.Resumed, time.Since(began))
	go l.handle(c)
}

// shake contains a panic in the handshake, whatever the peer sent.
func (l *Listener) shake(c *Conn) (err error) {
	defer func() {
		if r := recover(); r != nil {
			l.config.Log.Error("panic in a TLS handshake", "remote", c.RemoteAddr(), "panic", r, "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	if err := c.raw.SetDeadline(time.Now().Add(l.config.HandshakeTimeout)); err != nil {
		return err
	}
	if err := c.tls.Handshake(); err != nil {
		return err
	}
	if err := c.raw.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return c.SetReadDeadline(time.Now().Add(l.config.ConnectTimeout))
}

var errPanic = errors.New("the hub's own error, see its log")

// configFor returns a configuration whose VerifyConnection keeps the peer on the
// connection it belongs to. Ticket keys still come from the shared one.
func (l *Listener) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c := hello.Conn.(*rawConn).conn
	config := l.tls.Clone()
	config.GetConfigForClient = nil
	config.VerifyConnection = func(cs tls.ConnectionState) (err error) {
		c.judged = true
		if len(cs.PeerCertificates) > 0 {
			c.claimed = cs.PeerCertificates[0].Subject.CommonName
		}
		c.Peer, err = l.config.Verify(cs)
		return err
	}
	return config, nil
}

func (l *Listener) handle(c *Conn) {
	defer l.finish(c)
	defer func() {
		if r := recover(); r != nil {
			l.config.Log.Error("panic in a connection", "remote", c.RemoteAddr(), "id", c.Peer.Identity.ID, "panic", r, "stack", string(debug.Stack()))
		}
	}()
	l.config.Handle(c)
}

// finish closes the connection and waits until nothing of it is left.
func (l *Listener) finish(c *Conn) {
	c.Close()
	<-c.Done()
	c.flushers.Wait()
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
	l.open.Add(-1)
	l.serving.Done()
}

func (l *Listener) refused(remote net.Addr, reason, id, detail string) {
	l.config.Log.Warn("connection refused", "reason", reason, "id", id, "remote", remote, "detail", detail)
	l.config.Observer.OnRefused(reason, remote, id)
}

// explain turns a handshake's error into a reason, the identity claimed, and a
// sentence.
func explain(err error, c *Conn) (reason, id, detail string) {
	id, detail = c.claimed, err.Error()
	if len(id) > 64 {
		id = id[:64]
	}
	if refusal, ok := errors.AsType[*mtls.Refusal](err); ok {
		return string(refusal.Reason), id, refusal.Detail
	}
	var (
		alert  tls.AlertError
		header tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, errPanic):
		return ReasonPanic, id, detail
	case errors.As(err, &header):
		return ReasonNotTLS, id, "the first bytes are no TLS record"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ReasonHandshakeTimeout, id, "the handshake was not completed in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.EPIPE):
		return ReasonHandshakeAborted, id, "the connection was closed during the handshake"
	case errors.As(err, &alert):
		return ReasonPeerAlert, id, "the client refused the handshake: " + detail
	case strings.Contains(detail, "remote error"):
		return ReasonPeerAlert, id, "the client refused the handshake: " + detail
	case strings.Contains(detail, "didn't provide a certificate"):
		return string(mtls.ReasonNoCertificate), id, "the client presented no certificate"
	}
	return ReasonHandshakeFailed, id, detail
}
