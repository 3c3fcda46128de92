// Package broker is the MQTT side of the hub. For now it runs on mochi-mqtt's
// Server behind exactly one Hook; hub/DESIGN.md lists mochi's defects and where
// each is contained, and issue 4 replaces it by a session core of our own.
//
// A connection arrives from package listener with its peer known. Serve tracks
// it among the live sessions, asks admission once more, and gives it to mochi,
// whose sessions are keyed by role and client identifier together, so that they
// belong to identities. Every publish, will, subscription and delivery passes
// package policy.
//
//   - broker.go: the Broker, and a connection's way through it
//   - client.go: one connection, as mochi sees it and as package session does
//   - hook.go, connect.go, publish.go, subscribe.go, deliver.go: the Hook
//   - seat.go: one live connection per client identifier, whatever races
//   - presence.go, watch.go: presence/<id>, and what operators see
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/session"
)

// Reasons of refusals that arise here, besides those of package admission.
const (
	ReasonConnectTimeout   mtls.Reason = "connect-timeout"    // no CONNECT in time
	ReasonNoConnect        mtls.Reason = "no-connect"         // went away without one
	ReasonFirstPacket      mtls.Reason = "first-packet"       // something else came first [MQTT-3.1.0-1]
	ReasonMalformedConnect mtls.Reason = "malformed-connect"  // or larger than the limit
	ReasonVersion          mtls.Reason = "protocol-version"   // neither 3.1.1 nor 5.0
	ReasonAuthMethod       mtls.Reason = "auth-method"        // enhanced authentication is not offered
	ReasonTakeover         mtls.Reason = "takeover-timed-out" // the connection before it didn't end
	ReasonPanic            mtls.Reason = "panic"
)

// Config is what a Broker needs. Devices is required.
type Config struct {
	// Devices answers from memory whether a device may connect. fleet.Fleet does.
	Devices admission.Devices
	// Seen is told of every device whose CONNECT was accepted, and again when its
	// connection has ended. It must not block.
	// Nil: nobody is told.
	Seen func(id string, at time.Time)
	// Sessions is the table of live connections. Nil: a table of the broker's own.
	Sessions *session.Table

	MaxPacketSize int           // bytes of the largest packet accepted; 0: 256 KiB
	SessionExpiry time.Duration // how long a session outlives its connection at most; 0: 7 days
	WatchQueue    int           // messages that a watcher may lag behind; 0: 1,024

	// OnRefused is told of every connection that was turned away after its
	// handshake; see listener.Observer. Nil: nobody is told.
	OnRefused func(reason string, remote net.Addr, id string)

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: nothing is logged
}

// Limits that are not configurable yet.
const (
	maxSubscriptions   = 256     // of one session
	maxInflight        = 1024    // messages queued for or unacknowledged by one session
	receiveMaximum     = 1024    // QoS 2 messages that a client may leave unreleased
	serviceWriteBuffer = 8 << 20 // services take the whole fleet's messages
	deviceWriteBuffer  = 512 << 10
	writesPending      = 64 // wills on their way to one connection; everything else goes there directly
	takeoverTimeout    = 5 * time.Second
	sweepInterval      = time.Second
)

// Broker serves MQTT connections. It is safe for concurrent use.
type Broker struct {
	config    Config
	log       *slog.Logger
	admission *admission.Admission
	sessions  *session.Table
	mqtt      *mqtt.Server
	seats     seats
	counters  counters
	retention retention
	sequence  atomic.Int64 // of accepted messages; see publish.go
	watchID   atomic.Int64

	mu      sync.Mutex // guards closed and, while it is false, serving's growth
	closed  bool
	serving sync.WaitGroup // connections, watchers and the sweeper
	stop    chan struct{}  // closed by Close
}

// New returns a Broker that is ready to Serve.
func New(config Config) (*Broker, error) {
	if config.Devices == nil {
		return nil, errors.New("start broker: Config.Devices is required")
	}
	if config.MaxPacketSize <= 0 {
		config.MaxPacketSize = 256 << 10
	}
	if config.SessionExpiry <= 0 {
		config.SessionExpiry = 7 * 24 * time.Hour
	}
	if config.WatchQueue <= 0 {
		config.WatchQueue = 1024
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.Sessions == nil {
		config.Sessions = new(session.Table)
	}
	b := &Broker{
		config:    config,
		log:       config.Log,
		admission: admission.New(config.Devices),
		sessions:  config.Sessions,
		stop:      make(chan struct{}),
	}
	b.mqtt = mqtt.New(options(config))
	if err := b.mqtt.AddHook(&hook{b: b}, nil); err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	if err := b.mqtt.Serve(); err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	b.serving.Go(b.sweep)
	return b, nil
}

// options tunes mochi, and switches off what it does wrongly.
func options(config Config) *mqtt.Options {
	c := mqtt.NewDefaultServerCapabilities()
	c.MaximumPacketSize = uint32(min(config.MaxPacketSize, math.MaxUint32))
	c.MaximumClientWritesPending = writesPending
	c.MaximumInflight = maxInflight
	c.ReceiveMaximum = receiveMaximum
	c.TopicAliasMaximum = 0                         // it authorises before it resolves them
	c.MaximumMessageExpiryInterval = 0              // else retained documents vanish after a day
	c.MaximumSessionExpiryInterval = math.MaxUint32 // seat.go expires sessions, whole ones
	c.MinimumProtocolVersion = 4
	c.Compatibilities.NoInheritedPropertiesOnAck = true // else acks echo a message's user properties
	return &mqtt.Options{
		Capabilities: c,
		// A connection's own buffer gathers writes (listener.Conn). mochi's
		// forgets what it has gathered when the last write of a burst fails.
		ClientNetWriteBufferSize: 1,
		ClientNetReadBufferSize:  2048,
		Logger:                   slog.New(quiet{config.Log.Handler()}),
		// $SYS costs a stop of the world each time, and nobody may read it.
		SysTopicResendInterval: 1 << 30,
		InlineClient:           true,
	}
}

// Serve runs one connection until it ends. It is a listener.Config.Handle.
func (b *Broker) Serve(conn *listener.Conn) {
	if !b.enter() {
		return
	}
	defer b.serving.Done()
	c := newClient(b, conn)

	// First track, then look: see package session.
	b.sessions.Track(c.peer.Identity, c)
	defer b.sessions.Untrack(c.peer.Identity, c)
	if err := b.admission.Check(c.peer); err != nil {
		b.refused(c, err)
		return
	}
	if err := c.readFirstHeader(conn, b.config.MaxPacketSize); err != nil {
		b.refused(c, err)
		return
	}
	b.run(c)
}

// run gives the connection to mochi and cleans up behind both of them.
func (b *Broker) run(c *client) {
	defer b.leave(c)
	defer func() {
		// A packet that makes mochi's decoder panic ends its connection only. It
		// holds no lock of mochi's at that point.
		if r := recover(); r != nil {
			b.counters.panics.Add(1)
			b.log.Error("panic while serving a connection", "id", c.peer.Identity.ID, "remote", c.remote, "panic", r, "stack", string(debug.Stack()))
			if !c.online {
				b.refused(c, &admission.Refusal{Reason: ReasonPanic, Identity: c.peer.Identity, Detail: "a packet before the CONNACK could not be decoded"})
			}
		}
	}()
	err := b.mqtt.EstablishConnection("mqtt", c)
	if err == nil || c.seat != nil || c.refused {
		return
	}
	refusal := &admission.Refusal{Reason: ReasonMalformedConnect, Identity: c.peer.Identity, Detail: err.Error()}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		refusal.Reason = ReasonConnectTimeout
	case errors.Is(err, net.ErrClosed), isHangup(err):
		refusal.Reason = ReasonNoConnect
	}
	b.refused(c, refusal)
}

// enter counts a connection or watcher in, unless the broker is closed.
func (b *Broker) enter() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.serving.Add(1)
	return true
}

// refused logs and counts a connection that was turned away, once.
func (b *Broker) refused(c *client, err error) {
	if c.refused {
		return
	}
	c.refused = true
	reason, detail := mtls.Reason("error"), err.Error()
	if r, ok := errors.AsType[*admission.Refusal](err); ok {
		reason, detail = r.Reason, r.Detail
	}
	id := c.peer.Identity.ID
	if conn := c.conn.Load(); conn != nil { // by way of the listener, which bounds how much is logged
		conn.LogRefusal(string(reason), id, detail)
	}
	if b.config.OnRefused != nil {
		b.config.OnRefused(string(reason), c.remote, id)
	}
}

// Disconnect cuts every connection of a device, within a second, and returns
// how many there were and when the last of them was closed. A device that is
// revoked also loses its session with everything queued for it. Neither way is
// its will published. It satisfies fleet.Sessions; reason is one of the Reason
// constants of package protocol. The caller has marked the device first.
func (b *Broker) Disconnect(ctx context.Context, id, reason string) (closed int, last time.Time) {
	closed, last = b.sessions.Disconnect(ctx, identity.RoleDevice, id, reason)
	key := sessionKey(identity.RoleDevice, id)
	if reason == protocol.ReasonRevoked {
		b.purge(ctx, key)
		b.forgetRetained(id)
	} else {
		b.withSeat(ctx, key, b.cancelWill)
	}
	return closed, last
}

// Purge removes a device's stored session: subscriptions, queued and inflight
// messages, a will that still waits for its delay. A connection that is there
// is cut.
func (b *Broker) Purge(ctx context.Context, id string) {
	b.purge(ctx, sessionKey(identity.RoleDevice, id))
}

// Live returns the newest live connection of a device.
func (b *Broker) Live(id string) (Connection, bool) {
	for _, l := range b.sessions.Live(identity.RoleDevice, id) {
		c, ok := l.Conn.(*client)
		if ok {
			return c.connection(l.Since), true
		}
	}
	return Connection{}, false
}

// Close tells every client that the hub stops, closes their connections, ends
// watchers, and returns when all of it is done. Wills are not published.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	close(b.stop)
	b.mu.Unlock()
	b.sessions.DisconnectAll(context.Background(), protocol.ReasonShutdown)
	b.serving.Wait()
	if err := b.mqtt.Close(); err != nil {
		return fmt.Errorf("stop broker: %w", err)
	}
	return nil
}
