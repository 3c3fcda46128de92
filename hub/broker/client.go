package broker

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/session"
	"github.com/fleethub/fleethub/hub/wire"
)

// client is one connection. To package session it is a live connection.
type client struct {
	b       *Broker
	peer    mtls.Peer
	subject policy.Subject
	remote  net.Addr
	address string // remote's
	conn    *listener.Conn
	number  uint32       // counts connections
	packet  atomic.Int64 // Unix nanoseconds of the last packet taken; 0: none yet

	// Set by the reader before the session knows the connection, never changed.
	clientID   string
	version    byte
	limit      uint32        // bytes of the largest packet that the client takes; 0: any
	window     int           // QoS 1 and 2 messages that may be out at a time
	keepAlive  time.Duration // one and a half times the client's; 0: none
	noReasons  bool          // the client asked not to be told reasons [MQTT-3.1.2-29]
	session    *Session
	before     *client // whose place it took, if any
	aliasLimit uint16  // topic aliases that the client takes

	// Touched by who reads alone.
	reader  *wire.Reader
	armed   time.Time     // when the read deadline was set
	refused bool          // and logged
	broken  bool          // the peer broke the protocol
	aliases []string      // topics by the client's aliases, from 1 on
	rate    *bucket       // of the identity; nil before the CONNECT is accepted
	denied  atomic.Uint32 // publishes and subscriptions refused by policy
	tally   tally         // of messages; its reader's

	flow *flow // of the client's QoS 1 and 2 messages; nil: it sent none

	// ready is whether the CONNACK is out, so that messages may follow. Set under the
	// session's mu; QoS 0 messages look without.
	ready atomic.Bool

	told bool // that its certificate is to be renewed; the sweeper's

	online, over bool // its presence was announced, and its end; guarded by Session.presence

	out outAliases

	cut     atomic.Bool   // it is condemned: nothing more is taken or sent
	closing atomic.Bool   // Disconnect was called
	gone    chan struct{} // closed when the reader is done

	mu     sync.Mutex // guards reason
	reason string     // why the hub ended the connection; "" if it didn't
}

var _ session.Conn = (*client)(nil)

// Serve greets one connection: its CONNECT is taken and answered. What it returns
// reads packets until the connection ends. It is a listener.Config.Handle.
func (b *Broker) Serve(conn *listener.Conn) (serve func()) {
	if !b.enter() {
		return nil
	}
	id := conn.Peer.Identity
	c := &client{b: b, peer: conn.Peer, subject: b.subjectOfPeer(conn.Peer), remote: conn.RemoteAddr(), address: conn.RemoteAddr().String(), conn: conn, number: b.connections.Add(1), gone: make(chan struct{})}
	c.reader = wire.NewReader(conn, b.config.MaxPacketSize)
	// First track, then look: see package session.
	b.live.Track(id, c)
	err := c.contained(c.greet)
	if err == nil {
		err = c.contained(c.attend)
	}
	if !errors.Is(err, errLasting) {
		c.finish(err)
		return nil
	}
	return func() {
		err := c.contained(c.read)
		conn.Apart(func() { c.finish(err) })
	}
}

// contained calls one part of the connection's life; a panic in it is an error. Without
// one the connection goes on.
func (c *client) contained(part func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			c.b.counters.panics.Add(1)
			c.b.log.Error("panic while serving a connection", "id", c.peer.Identity.ID, "remote", c.remote, "panic", r, "stack", string(debug.Stack()))
			err = errPanic
			if c.session == nil {
				c.b.refused(c, c.refusal(ReasonPanic, "its CONNECT could not be processed"))
			}
		}
	}()
	return part()
}

// finish cleans up behind the connection.
func (c *client) finish(err error) {
	c.reader.Release()
	if c.session != nil {
		c.b.leave(c, err)
	}
	if c.rate != nil {
		c.b.rates.leave(c.rate, time.Now())
	}
	c.conn.Close()
	c.b.live.Untrack(c.peer.Identity, c)
	close(c.gone)
	c.b.serving.Done()
}

// greet looks at the peer once more and takes its CONNECT.
func (c *client) greet() error {
	if err := c.b.admission.Check(c.peer); err != nil {
		c.b.refused(c, err)
		return errRefused
	}
	return c.begin()
}

var (
	errPanic = errors.New("the connection could not be served")
	// errEnd ends a connection in good order.
	errEnd = errors.New("disconnected")
	// errRefused ends one that has been told why.
	errRefused = errors.New("refused")
)

// take acts on one packet.
func (c *client) take(pk wire.Packet, now time.Time) error {
	c.packet.Store(now.UnixNano())
	c.b.counters.packetsReceived.add(c.number, 1)
	switch pk := pk.(type) {
	case *wire.Publish:
		return c.publish(pk, now)
	case *wire.Ack:
		switch pk.Kind {
		case wire.TypePuback:
			return c.acknowledged(pk)
		case wire.TypePubrec:
			return c.received(pk)
		case wire.TypePubrel:
			return c.release(pk)
		default:
			return c.completed(pk)
		}
	case *wire.Subscribe:
		return c.subscribe(pk)
	case *wire.Unsubscribe:
		return c.unsubscribe(pk)
	case *wire.Ping:
		return c.send(&wire.Ping{Kind: wire.TypePingresp}) // [MQTT-3.12.4-1]
	case *wire.Disconnect:
		return c.goodbye(pk)
	case *wire.Connect:
		return &wire.Error{Code: wire.ProtocolError, Clause: "MQTT-3.1.0-2", Detail: "a second CONNECT"}
	case *wire.Auth:
		return &wire.Error{Code: wire.ProtocolError, Clause: "MQTT-4.12.0-6", Detail: "an AUTH, though no enhanced authentication is under way"}
	}
	return &wire.Error{Code: wire.ProtocolError, Detail: fmt.Sprintf("a packet of type %d, which clients don't send", pk.Type())}
}

// arm bounds the wait for the next packet by one and a half times the keep-alive
// [MQTT-3.1.2-22], or a little more: a busy connection doesn't set a timer for each
// packet.
func (c *client) arm(now time.Time) {
	if c.keepAlive == 0 {
		return
	}
	slack := c.keepAlive / 16
	if now.Sub(c.armed) < slack {
		return
	}
	c.armed = now
	c.conn.SetReadDeadline(now.Add(c.keepAlive + slack))
}

// complain tells a version 5.0 client why its connection ends, if it is to blame. A
// 3.1.1 client finds it closed: there is no DISCONNECT from the server.
func (c *client) complain(err error) {
	code := wire.Success
	fault, ok := errors.AsType[*wire.Error](err)
	switch {
	case ok:
		c.broken = true
		code = fault.Code
		c.say(slog.LevelWarn, "protocol error", "code", fmt.Sprintf("%#02x", code), "detail", fault.Error())
	case errors.Is(err, os.ErrDeadlineExceeded):
		code = wire.KeepAliveTimeout
	}
	if code == wire.Success || c.version < wire.V5 || c.whyEnded() != "" {
		return
	}
	pk := &wire.Disconnect{Code: code}
	if ok && !c.noReasons {
		pk.Reason = fault.Detail
	}
	_ = c.send(pk)
}

// send writes a packet. An error means that the connection is closed or about to be.
func (c *client) send(pk wire.Packet) error {
	var scratch [64]byte
	data, err := wire.AppendWithin(scratch[:0], pk, c.version, c.limit) // [MQTT-3.1.2-24]
	switch {
	case errors.Is(err, wire.ErrTooLarge):
		return nil // the client takes nothing of that kind
	case err != nil:
		return fmt.Errorf("encode packet of type %d: %w", pk.Type(), err)
	case len(data) == 0:
		return nil // version 3.1.1 has no such packet
	}
	return c.write(data)
}

// acknowledge sends a PUBACK, PUBREC, PUBREL or PUBCOMP.
func (c *client) acknowledge(kind wire.Type, id uint16, code wire.Code) error {
	return c.send(&wire.Ack{Kind: kind, ID: id, Code: code})
}

// write sends bytes of the protocol, unless the client has been cut off.
func (c *client) write(data []byte) error {
	if c.cut.Load() {
		return net.ErrClosed
	}
	return c.writeOut(data)
}

func (c *client) writeOut(data []byte) error {
	n, err := c.conn.Write(data)
	c.b.counters.packetsSent.add(c.number, 1)
	c.b.counters.bytesSent.add(c.number, uint64(n))
	return err
}

// lastPacket returns when the last packet was taken from the client; zero if none was.
func (c *client) lastPacket() time.Time {
	if at := c.packet.Load(); at != 0 {
		return time.Unix(0, at).UTC()
	}
	return time.Time{}
}

// RemoteAddr returns the peer's address.
func (c *client) RemoteAddr() net.Addr { return c.remote }

// Done is closed when the socket is closed.
func (c *client) Done() <-chan struct{} { return c.conn.Done() }

// condemn is the first part of Disconnect: from now on nothing is taken from the client,
// nor sent to it. The first reason wins.
func (c *client) condemn(reason string) {
	c.mu.Lock()
	if c.reason == "" {
		c.reason = reason
	}
	c.mu.Unlock()
	c.cut.Store(true)
}

// Disconnect ends the connection for a reason of package protocol: a DISCONNECT
// for a version 5 client, then the end of the socket, within CloseTimeout of
// the listener even if the peer no longer reads.
func (c *client) Disconnect(reason string) {
	if last, ok := c.part(reason); ok {
		if len(last) > 0 {
			_ = c.writeOut(last)
		}
		c.conn.Close()
	}
}

// disconnectHere is Disconnect on the caller's goroutine; see Conn.CloseHere.
func (c *client) disconnectHere(reason string) {
	if last, ok := c.part(reason); ok {
		if len(last) > 0 {
			c.b.counters.packetsSent.add(c.number, 1)
			c.b.counters.bytesSent.add(c.number, uint64(len(last)))
		}
		c.conn.CloseHere(last)
	}
}

// part condemns the client and returns what it is told; false: somebody else parts from it.
func (c *client) part(reason string) (last []byte, ok bool) {
	c.condemn(reason)
	if c.closing.Swap(true) {
		return nil, false
	}
	if c.ready.Load() && c.version == wire.V5 {
		data, err := wire.AppendWithin(nil, &wire.Disconnect{Code: disconnectCode(c.whyEnded())}, c.version, c.limit)
		if err == nil { // it may be more than the client takes
			last = data
		}
	}
	return last, true
}

func disconnectCode(reason string) wire.Code {
	switch reason {
	case protocol.ReasonTakenOver:
		return wire.SessionTakenOver
	case protocol.ReasonRevoked, protocol.ReasonRetired, protocol.ReasonReplaced, protocol.ReasonSuspended, protocol.ReasonUntrusted, protocol.ReasonKeyProtection, protocol.ReasonExpired:
		return wire.AdministrativeAction
	case protocol.ReasonShutdown:
		return wire.ServerShuttingDown
	}
	return wire.UnspecifiedError
}

// whyEnded returns the reason of Disconnect, "" if it wasn't called.
func (c *client) whyEnded() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// isDevice reports whether the peer is one.
func (c *client) isDevice() bool { return c.peer.Identity.Role == identity.RoleDevice }

// deny counts a denial and logs the first of each connection.
func (c *client) deny(a policy.Action, topic string, d policy.Decision) {
	c.b.counters.denied.Add(1)
	if c.b.config.Observer != nil {
		c.b.config.Observer.OnDenied(c.peer.Identity, a, topic, d.Rule)
	}
	if c.denied.Add(1) == 1 {
		c.say(slog.LevelWarn, "denied by policy, further denials on this connection are only counted", "action", a, "topic", topic[:min(len(topic), 128)], "rule", d.Rule)
	}
}

// say logs a line about the connection, unless there were too many about its identity.
func (c *client) say(level slog.Level, text string, args ...any) {
	unlogged, ok := c.rate.line(time.Now())
	if !ok {
		return
	}
	about := append([]any{"id", c.clientID, "role", c.peer.Identity.Role, "remote", c.remote}, args...)
	if unlogged > 0 {
		about = append(about, "not_logged_before", unlogged)
	}
	c.b.log.Log(c.b.context, level, text, about...)
}

func (c *client) refusal(reason mtls.Reason, format string, args ...any) *admission.Refusal {
	return &admission.Refusal{Reason: reason, Identity: c.peer.Identity, Detail: fmt.Sprintf(format, args...)}
}

// isHangup reports whether err means that the peer went away.
func isHangup(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}
