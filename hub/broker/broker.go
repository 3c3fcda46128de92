// Package broker is the MQTT side of the hub: the session core. hub/DESIGN.md says
// why it is our own and what it promises; hub/wire/CONFORMANCE.md holds it against
// the specifications.
//
// A connection arrives from package listener with its peer known. Serve tracks
// it among the live sessions, asks admission once more, and reads packets until it
// ends. Sessions are keyed by role and client identifier together, so that they
// belong to identities. Every publish, will, subscription and delivery passes
// package policy. What is acknowledged is in the journal first: see package ingest.
//
// There is one goroutine to a connection, its reader. Writes go to the buffer of the
// listener's Conn and never block; what waits for the disk is finished by the
// journal's goroutine (publication, and the small waiters in ack.go).
//
// Locks, in the order in which they are taken: Broker.gate (held while a message is
// entered, exclusively while a checkpoint looks at sessions), one Session's mu, then
// those of the index, the deadlines and the connection. Nobody holds two sessions.
//
//   - broker.go, stats.go, peers.go, watch.go: the Broker, and what operators see
//   - cutoff.go: what becomes of whom an operator cuts off
//   - client.go: a connection; connect.go: its beginning, takeover; end.go: its end
//   - session.go, outbox.go: what outlives it
//   - publish.go: messages in; deliver.go, retained.go: messages out; ack.go: both
//   - subscribe.go, will.go, expiry.go, presence.go, retention.go, sys.go: as named
//   - quotas.go, rate.go: what one client may do; revise.go: when policy has changed
//   - observe.go, counter.go: what is told and counted
//   - recover.go, checkpoint.go: the journal's ends
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/session"
	"github.com/fleethub/fleethub/hub/topic"
)

// Reasons of refusals that arise here, besides those of package admission.
const (
	ReasonConnectTimeout   mtls.Reason = "connect-timeout"   // no CONNECT in time
	ReasonNoConnect        mtls.Reason = "no-connect"        // went away without one
	ReasonFirstPacket      mtls.Reason = "first-packet"      // something else came first [MQTT-3.1.0-1]
	ReasonMalformedConnect mtls.Reason = "malformed-connect" // or larger than the limit
	ReasonVersion          mtls.Reason = "protocol-version"  // neither 3.1.1 nor 5.0
	ReasonAuthMethod       mtls.Reason = "auth-method"       // enhanced authentication is not offered
	ReasonUnavailable      mtls.Reason = "store-unavailable" // the session can't be stored
	ReasonSessions         mtls.Reason = "too-many-sessions" // of one service
	ReasonPanic            mtls.Reason = "panic"
)

// Config is what a Broker needs. Devices and Journal are required.
type Config struct {
	// Devices answers from memory whether a device may connect. fleet.Fleet does.
	Devices admission.Devices
	// Journal is where what must not be lost is kept; State is what its replay left.
	// The Broker takes State over.
	Journal ingest.Journal
	State   *ingest.State

	// Allow is the policy; nil: policy.Allow.
	Allow func(policy.Subject, policy.Action, string) policy.Decision
	// Attributes returns from memory what policy may ask about a device, false if that
	// isn't known. Nil: what Devices says of it.
	Attributes func(id string) (policy.Attributes, bool)

	// Seen is told of every device whose CONNECT was accepted, and again when its
	// connection has ended. It must not block.
	// Nil: nobody is told.
	Seen func(id string, at time.Time)
	// Sessions is the table of live connections. Nil: a table of the broker's own.
	Sessions *session.Table

	MaxPacketSize int           // bytes of the largest packet accepted; 0: 256 KiB
	SessionExpiry time.Duration // how long a session outlives its connection at most; 0: 7 days
	WatchQueue    int           // messages that a watcher may lag behind; 0: 1,024
	Quotas        Quotas        // of one session, and of all
	// CheckpointAfter is how many octets of journal are written before the broker
	// writes its state anew, so that a restart reads no more than that and the state;
	// 0: 64 MiB. It is more if the state is.
	CheckpointAfter int64

	// ExpirySweep is how often connections are looked through for certificates that have
	// expired; 0: 15 s.
	ExpirySweep time.Duration

	// OnRefused is told of every connection that was turned away after its
	// handshake; see listener.Observer. Nil: nobody is told.
	OnRefused func(reason string, remote net.Addr, id string)

	Observer Observer // nil: nobody is told

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: nothing is logged
}

const (
	serviceWriteBuffer = 8 << 20 // services take the whole fleet's messages
	deviceWriteBuffer  = 512 << 10
	sweepInterval      = 100 * time.Millisecond
)

// Broker serves MQTT connections. It is safe for concurrent use.
type Broker struct {
	config    Config
	log       *slog.Logger
	admission *admission.Admission
	live      *session.Table
	ingest    *ingest.Log
	counters  counters

	gate     sync.RWMutex // see the package comment
	index    topic.Index[*Session, subscription]
	sessions sessions
	retained topic.Retained[*message]
	// retainedMu is held by who changes retained.
	retainedMu sync.Mutex
	// retaining is held while a message to be retained is numbered and entered, so
	// that the journal has a topic's in the order of their numbers.
	retaining sync.Mutex
	pending   map[string]*pendingRetain // by topic; guarded by retaining
	retention retention
	rates     rates
	deadlines deadlines
	watchers  watchers
	system    system
	lastID    atomic.Uint64 // of messages

	connections atomic.Uint32 // so far
	attended    atomic.Int32  // of them, those in their first moments: see client.attend
	queued      atomic.Int64  // octets of messages in all queues

	checkpointed uint64 // ingest.Appended at the last checkpoint; the keeper's own
	written      uint64 // octets that the last checkpoint wrote; likewise
	breathed     uint64 // ingest.Appended when the checkpoint last waited for the disk; likewise

	mu      sync.Mutex // guards closed and, while it is false, serving's growth
	closed  bool
	serving sync.WaitGroup // connections, watchers, the sweeper and the keeper
	context context.Context
	stop    context.CancelFunc // called by Close
}

// New returns a Broker that is ready to Serve: every session of the State is back.
func New(config Config) (*Broker, error) {
	if config.Devices == nil || config.Journal == nil {
		return nil, errors.New("start broker: Config.Devices and Config.Journal are required")
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
	if config.ExpirySweep <= 0 {
		config.ExpirySweep = 15 * time.Second
	}
	if config.CheckpointAfter <= 0 {
		config.CheckpointAfter = 64 << 20
	}
	if config.Allow == nil {
		config.Allow = policy.Allow
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
	config.Quotas.setDefaults()
	b := &Broker{
		config:    config,
		log:       config.Log,
		pending:   make(map[string]*pendingRetain),
		admission: admission.New(config.Devices, config.Allow),
		live:      config.Sessions,
		ingest:    ingest.New(config.Journal, 0),
	}
	if b.config.Attributes == nil {
		b.config.Attributes = b.attributes
	}
	b.context, b.stop = context.WithCancel(context.Background())
	if config.State != nil {
		if err := b.restore(config.State); err != nil {
			return nil, fmt.Errorf("restore sessions: %w", err)
		}
		b.config.State = nil
	}
	b.serving.Go(b.sweep)
	b.serving.Go(b.keep)
	return b, nil
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
	c.conn.LogRefusal(string(reason), id, detail) // by way of the listener, which bounds how much is logged
	if b.config.OnRefused != nil {
		b.config.OnRefused(string(reason), c.remote, id)
	}
	if b.config.Observer != nil {
		b.config.Observer.OnRefusal(c.peer.Identity, c.remote, string(reason), detail)
	}
}

// Live returns the newest live connection of a device.
func (b *Broker) Live(id string) (Connection, bool) {
	for _, l := range b.live.Live(identity.RoleDevice, id) {
		c, ok := l.Conn.(*client)
		if ok {
			return c.connection(l.Since), true
		}
	}
	return Connection{}, false
}

// Close tells every client that the hub stops, closes their connections, ends
// watchers, and returns when all of it is done. Wills are not published. The journal
// may be closed afterwards, not before.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	b.mu.Unlock()
	b.stop()
	b.live.DisconnectAll(context.Background(), protocol.ReasonShutdown)
	b.serving.Wait()
	return nil
}

// await enters a record and waits until it is on disk.
func (b *Broker) await(enter func(journal.Waiter) error) error {
	w := make(written, 1)
	if err := enter(w); err != nil {
		return err
	}
	return <-w
}

// written is a waiter that a goroutine waits for.
type written chan error

// Committed implements journal.Waiter.
func (w written) Committed(err error) { w <- err }
