// Package listener accepts the hub's MQTT connections: TCP, then mutual TLS,
// then a handler that must see a CONNECT in time. It knows nothing of MQTT.
//
// A connection passes these stations, each with its own bound:
//
//  1. Accept. A transient error (out of file descriptors, a connection aborted
//     in the queue) waits and tries again, as net/http does; it never ends the
//     loop. Beyond Config.MaxConnections, or its address's credit, a connection
//     is reset at once.
//  2. ClientHello, under Config.HandshakeTimeout, read within a bound before
//     crypto/tls is involved.
//  3. Admission lane: as many handshakes compute as the cores take, resumed
//     ones before full ones, after a bounded wait; see lanes and Limits.
//  4. TLS handshake, under Config.HandshakeTimeout again if it had to wait: that was ours.
//     Config.Verify judges the peer inside it, on full and on resumed ones.
//  5. Handler, under Config.ConnectTimeout until it calls Conn.Connected.
//  6. Every write has a deadline and goes through a bounded buffer; see Conn.
//
// Handshake and handler run on goroutines of their own: the handshake's grown
// stack ends with it, and a slow or hostile peer delays nobody else.
package listener

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Listener serves connections of any number of net.Listeners.
type Listener struct {
	config  Config
	tls     *tls.Config // one for all connections, so that they share ticket keys
	buffers sync.Pool   // of *[]byte, for Conn's writes
	serving sync.WaitGroup
	brief   *workers       // handshakes, greetings and flushes: their stacks grow
	lasting sync.WaitGroup // what serves a connection: its long life is spent on a small stack
	cpu     cpuSampler     // of handshakes; see account.go

	open        atomic.Int64 // connections accepted and not finished
	handshaking atomic.Int64 // of them, those not yet verified
	lanes       lanes
	addresses   *addresses
	issuers     *issuers
	devices     *devices
	policy      atomic.Pointer[negotiated] // see Negotiate
	most, wait  atomic.Int64               // Config.MaxConnections and Limits.Wait; see SetLimits
	refusals    refusals

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
	l.brief = newWorkers(l.stop)
	l.tls.GetConfigForClient = l.configFor
	l.addresses, l.issuers, l.devices = newAddresses(quota{}), newIssuers(quota{}), newDevices(quota{})
	l.lanes.patience = config.HandshakeTimeout / 5
	l.SetLimits(config.MaxConnections, config.Limits)
	l.Negotiate(config.TLS)
	l.refusals.log = config.Log
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
	l.brief.all.Wait()
	l.lasting.Wait()
	l.lanes.stop()
	l.refusals.close()
}

// Open returns the number of connections, those in their handshake included.
func (l *Listener) Open() int { return int(l.open.Load()) }

func (l *Listener) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

func (l *Listener) accept(raw net.Conn) {
	if l.open.Add(1) > l.most.Load() {
		l.turnAway(raw, ReasonTooMany, "as many connections as may be are open")
		return
	}
	address := addressOf(raw.RemoteAddr())
	if !l.addresses.take(address, time.Now()) {
		l.turnAway(raw, ReasonAddressLimit, "too many connections from there have proved nothing yet")
		return
	}
	c := newConn(raw, l)
	c.address = address
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
	l.handshaking.Add(1)
	accepted := time.Now()
	l.brief.run(func() { l.handshake(c, accepted) })
}

// turnAway closes a connection that was just accepted, with no goroutine and no TLS.
func (l *Listener) turnAway(raw net.Conn, reason, detail string) {
	l.open.Add(-1)
	reset(raw)
	l.refused(raw.RemoteAddr(), reason, "", detail)
}

// reset closes a connection at the least cost: the peer learns it at once and no state
// is left in the kernel.
func reset(raw net.Conn) {
	if tcp, ok := raw.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	raw.Close()
}

// handle greets a connection, then has it served.
func (l *Listener) handle(c *Conn) {
	var serve func()
	l.contained(c, func() { serve = l.config.Handle(c) })
	if serve == nil {
		l.finish(c)
		return
	}
	l.lasting.Go(func() {
		defer l.finish(c)
		l.contained(c, serve)
	})
}

// contained calls f and has a panic in it end that connection only.
func (l *Listener) contained(c *Conn, f func()) {
	defer func() {
		if r := recover(); r != nil {
			l.config.Log.Error("panic in a connection", "remote", c.RemoteAddr(), "id", c.Peer.Identity.ID, "panic", r, "stack", string(debug.Stack()))
		}
	}()
	f()
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
	l.refusals.add(remote, reason, id, detail)
	l.config.Observer.OnRefused(reason, remote, id)
}
