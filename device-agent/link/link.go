// Package link keeps one device connected to its hub: MQTT 3.1.1 over mutual
// TLS, one connection at a time, re-established with full-jitter backoff and
// resumed TLS sessions. It is the only importer of paho, which it uses for
// the protocol of a single connection; when to connect, when to give up and
// what a refusal means is decided here.
//
// The will and the orderly goodbye are events on d/<id>/evt/offline, the
// greeting one on d/<id>/evt/online.
package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/protocol"
)

// Config is what a [Link] needs. Address and Credentials are required; zero
// values of the rest mean the default in brackets.
type Config struct {
	// Address is the hub's HOST:PORT. The host is also the name that the hub's
	// certificate must carry.
	Address string

	// Credentials returns the device's key, chain and trust bundle. It is
	// called before each attempt, so a replaced certificate is picked up
	// without a restart; an error counts as a failed attempt.
	Credentials func() (mtls.Credentials, error)

	// Sessions returns where the TLS sessions earned with these credentials are
	// kept. It is called from Run's goroutine when the credentials are new, and
	// may take its time. Nil keeps one in memory.
	Sessions func(mtls.Credentials) tls.ClientSessionCache

	// Chain remembers whether the hub needs more of the chain than the leaf.
	// Nil remembers it for as long as the link lives.
	Chain ChainMemory

	// Ask is called after the hub has refused the device, and says what the hub answers
	// when it is asked why. It is called from Run's goroutine before the wait, and may take
	// its time. Nil asks nobody.
	Ask func(context.Context) Answer

	// RenewalDue is told when the hub asks for another certificate than the one that the
	// connection is by; it must not block. Nil isn't told, and the hub isn't asked: a
	// connection that has held for StableAfter costs one SUBSCRIBE otherwise.
	RenewalDue func()

	// Profile is the TLS policy [mtls.ProfileDefault].
	Profile mtls.Profile

	// Boot names this run of the program in the events it sends.
	Boot string

	// Backoff paces attempts after a failure [1 s doubling to 5 min].
	Backoff Backoff

	// StableAfter is how long a connection must hold for Backoff to start
	// over [30 s].
	StableAfter time.Duration

	// RefusedRetry is the shortest wait after a failure that only a person can
	// mend; the wait is drawn between it and three times it [5 min]. After a
	// refusal that the hub itself says may pass (see Ask), it begins with a tenth
	// of that and doubles.
	RefusedRetry time.Duration

	ConnectTimeout time.Duration // of dialling, handshake and CONNACK together [20 s]
	WriteTimeout   time.Duration // of one write [10 s]
	AckTimeout     time.Duration // from PUBLISH to PUBACK [15 s]

	// KeepAlive is the longest silence, in whole seconds; the hub gives the
	// device up after one and a half [60 s].
	KeepAlive time.Duration

	// Changed, if not nil, is told every new Status, in order, from Run's
	// goroutine; it must not block.
	Changed func(Status)

	// Log gets one line for each connect, loss and failure. Nil is silent.
	Log *slog.Logger
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.StableAfter, 30 * time.Second},
		{&c.RefusedRetry, 5 * time.Minute},
		{&c.ConnectTimeout, 20 * time.Second},
		{&c.WriteTimeout, 10 * time.Second},
		{&c.AckTimeout, 15 * time.Second},
		{&c.KeepAlive, time.Minute},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	c.KeepAlive = max(c.KeepAlive.Truncate(time.Second), time.Second)
	if c.Sessions == nil {
		c.Sessions = inMemory
	}
	if c.Chain == nil {
		c.Chain = new(volatileMemory)
	}
	if c.Profile == "" {
		c.Profile = mtls.ProfileDefault
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// connection is what the reconnect loop needs of a session; a test gives it
// one without a network.
type connection interface {
	Done() <-chan struct{}
	Err() error
	Handshake() Handshake
	Hello(ctx context.Context) error
	Ask(ctx context.Context) error
	Notices() <-chan protocol.TLSNotice
	Listen(ctx context.Context) error
	Renewals() <-chan struct{}
	Publish(ctx context.Context, topic string, payload []byte) error
	Close(reason string)
}

// Link is one device's connection to its hub. Run drives it; the other
// methods are safe for concurrent use.
type Link struct {
	config  Config
	backoff Backoff // owned by Run
	passing Backoff // likewise, after refusals that may pass
	served  bool    // likewise: there was a connection since the last refusal
	dial    func(ctx context.Context) (connection, error)
	tickets ticketBox   // owned by Run
	chain   chainChoice // owned by Run
	traffic meter       // of all connections

	current atomic.Pointer[connection] // nil while not connected

	mu     sync.Mutex // guards status
	status Status
}

// New returns a link that isn't running yet, or an error saying what is wrong
// with the address.
func New(config Config) (*Link, error) {
	if err := CheckAddress(config.Address); err != nil {
		return nil, err
	}
	if config.Credentials == nil {
		return nil, errors.New("a link needs credentials")
	}
	config.setDefaults()
	l := &Link{config: config, backoff: config.Backoff}
	l.passing = Backoff{Base: config.RefusedRetry / 10, Cap: 3 * config.RefusedRetry}
	l.tickets.open = config.Sessions
	l.chain.memory = config.Chain
	l.dial = l.dialHub
	l.status = Status{State: StateStopped, Hub: config.Address, Profile: config.Profile, Since: time.Now()}
	return l, nil
}

// CheckAddress says what is wrong with a hub's HOST:PORT, or returns nil.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return fmt.Errorf("hub address %q is not HOST:PORT, such as hub.example:8883", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("hub address %q has no port between 1 and 65535; a hub's MQTT port is 8883", address)
	}
	return nil
}

// Run connects and stays connected until ctx ends, then says goodbye and
// returns nil. It may be called again after it has returned, not before.
func (l *Link) Run(ctx context.Context) error {
	defer func() { l.update(func(s *Status) { s.State, s.NextAttempt = StateStopped, time.Time{} }) }()
	for ctx.Err() == nil {
		failure := l.once(ctx)
		if failure == nil {
			return nil // ctx ended
		}
		if failure.Kind == KindRefused && l.config.Ask != nil {
			if l.served { // and was cut off now, many others with it perhaps: they don't ask all at once
				l.rest(ctx, failure, between(0, l.config.RefusedRetry/10))
			}
			l.served = false
			failure = failure.answered(l.config.Ask(ctx))
		}
		wait := l.pause(failure)
		attrs := []any{"kind", failure.Kind, "retry_in", wait.Round(time.Millisecond)}
		if failure.Advice != "" {
			attrs = append(attrs, "advice", failure.Advice)
		}
		l.config.Log.Warn(failure.Reason, attrs...)
		l.rest(ctx, failure, wait)
	}
	return nil
}

// rest waits after a failure, and says so in the status.
func (l *Link) rest(ctx context.Context, failure *Failure, wait time.Duration) {
	l.update(func(s *Status) {
		s.State, s.NextAttempt, s.LastFailure = StateWaiting, time.Now().Add(wait), failure
		if failure.Slow() {
			s.LastRefusal = failure
		}
	})
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// once makes one attempt and holds the connection for as long as it lasts. It
// returns nil only when ctx has ended.
func (l *Link) once(ctx context.Context) *Failure {
	l.update(func(s *Status) {
		s.State, s.NextAttempt = StateConnecting, time.Time{}
		s.Attempts++
	})
	c, err := l.dial(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return asFailure(err)
	}
	started := time.Now()
	l.current.Store(&c)
	defer l.current.Store(nil)
	h := c.Handshake()
	l.update(func(s *Status) {
		s.State, s.Handshake = StateConnected, &h
		if h.Resumed {
			s.Resumed++
		} else {
			s.Full++
		}
	})
	l.passing.Reset()
	l.served = true
	l.config.Log.Info("connected", "hub", l.config.Address, "tls", h.Protocol, "resumed", h.Resumed, "took", h.Connect.Round(time.Millisecond))
	if err := c.Hello(ctx); err != nil && ctx.Err() == nil {
		l.config.Log.Warn("the hub didn't take the online event", "err", err)
	}
	if l.chain.unknown() {
		if err := c.Ask(ctx); err != nil && ctx.Err() == nil {
			l.config.Log.Warn("the hub can't be asked whether the leaf certificate will do", "err", err)
		}
	}
	var stable <-chan time.Time
	if l.config.RenewalDue != nil {
		// Not at once: whoever connects, says something and goes would pay for it, and a
		// fleet that comes back together would subscribe together.
		timer := time.NewTimer(between(l.config.StableAfter, 2*l.config.StableAfter))
		defer timer.Stop()
		stable = timer.C
	}
	for lasting := true; lasting; {
		select {
		case <-ctx.Done():
			l.current.Store(nil) // nothing may be published behind the goodbye
			c.Close("shutdown")
			return nil
		case <-c.Notices():
			l.chain.learn()
			l.update(func(s *Status) { s.Chain = ChainLeaf })
		case <-stable:
			if err := c.Listen(ctx); err != nil && ctx.Err() == nil {
				l.config.Log.Warn("the hub can't ask for a renewal", "err", err)
			}
		case <-c.Renewals():
			l.config.RenewalDue()
		case <-c.Done():
			lasting = false
		}
	}
	if time.Since(started) >= l.config.StableAfter {
		l.backoff.Reset()
	}
	return &Failure{
		Kind: KindLost, At: time.Now(), err: c.Err(),
		Reason: fmt.Sprintf("the connection to the hub %s was lost (%s)", l.config.Address, bare(c.Err())),
	}
}

// pause returns how long to wait after failure.
func (l *Link) pause(failure *Failure) time.Duration {
	switch {
	case failure.mayPass: // a suspension that is lifted, a manifest that is imported
		ceiling := l.passing.Ceiling()
		l.passing.Next()
		return between(ceiling/2, ceiling)
	case failure.Slow():
		return between(l.config.RefusedRetry, 3*l.config.RefusedRetry)
	}
	return l.backoff.Next()
}

func (l *Link) dialHub(ctx context.Context) (connection, error) {
	cred, err := l.config.Credentials()
	if err != nil {
		return nil, &Failure{Kind: KindCredentials, Reason: err.Error(), At: time.Now(), err: err}
	}
	o := offer{cred: cred, mode: l.chain.mode(cred), sessions: l.tickets.cacheFor(cred), total: &l.traffic}
	s, err := dial(ctx, &l.config, &o)
	if ctx.Err() == nil {
		l.chain.ended(o.mode, failureOf(err))
	}
	l.set(func(now *Status) {
		now.Chain = l.chain.mode(cred)
		if err == nil {
			now.Handshakes = now.Handshakes.plus(s.handshake.Bytes)
		} else {
			now.Handshakes = now.Handshakes.plus(o.wire.read())
		}
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Publish sends payload to topic at QoS 1 and returns nil once the hub has
// acknowledged it. The caller must not change payload afterwards. Without a
// connection it returns [ErrNotConnected] at once: keeping messages is the
// caller's. It may outlast ctx by Config.WriteTimeout.
func (l *Link) Publish(ctx context.Context, topic string, payload []byte) error {
	c := l.current.Load()
	if c == nil {
		return ErrNotConnected
	}
	return (*c).Publish(ctx, topic, payload)
}

// Status returns what the link is doing.
func (l *Link) Status() Status { return l.set(func(*Status) {}) }

// update changes the status and tells Config.Changed. Only Run's goroutine
// calls it, so listeners see the changes in order.
func (l *Link) update(change func(*Status)) {
	now := l.set(change)
	if l.config.Changed != nil {
		l.config.Changed(now)
	}
}

// set changes the status and returns it.
func (l *Link) set(change func(*Status)) Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.status.State
	change(&l.status)
	if l.status.State != before {
		l.status.Since = time.Now()
	}
	l.status.Traffic = l.traffic.read()
	return l.status
}

// failureOf is asFailure, and nil for nil.
func failureOf(err error) *Failure {
	if err == nil {
		return nil
	}
	return asFailure(err)
}

func asFailure(err error) *Failure {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	return &Failure{Kind: KindClosed, Reason: err.Error(), At: time.Now(), err: err}
}
