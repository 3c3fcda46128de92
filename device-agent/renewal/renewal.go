// Package renewal gives a device its next certificate in time, and sees to it that the
// device always has one that its hub takes.
//
//  1. At two thirds of the certificate's lifetime, give or take a twentieth of it, or when
//     the hub asks for it, the loop gets the next one, for a new key, by EST.
//  2. What it got is staged, durably, beside the credentials in place.
//  3. The device connects anew, with the staged credentials. 4a. The hub takes them: they
//     are put in place of the old ones. 4b. The hub refuses them: the old ones are tried
//     again at once, and if the hub takes those, what was staged is dropped and 1 begins
//     again.
//
// A power cut between two of these steps is followed by the next one after the start:
// what is staged is tried first, since the hub may have taken it already.
package renewal

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/device-agent/keystore"
)

// Config is what a Loop needs. Dir, Renew and Reconnect are required.
type Config struct {
	Dir string // the credential folder

	// Renew gets the next certificate and stages it (keystore.Draft.Stage).
	Renew func(context.Context) error

	// Reconnect ends the connection to the hub, if there is one, and has the device
	// connect again at once. It doesn't block.
	Reconnect func()

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: nothing is logged
}

// Status says how it stands with the renewal.
type Status struct {
	Due     time.Time `json:"due,omitzero"`     // by this machine's clock
	Staged  bool      `json:"staged,omitempty"` // the next certificate is here, and the hub has not taken it yet
	Failure string    `json:"failure,omitempty"`
	Retry   time.Time `json:"retry,omitzero"` // after the failure
}

// Loop renews one device's certificate. It is safe for concurrent use.
type Loop struct {
	config Config
	wake   chan struct{} // capacity 1; never closed

	blind    int       // times in a row that the folder could not be read; owned by Run
	relinked time.Time // when Run had the device connect anew; owned by Run

	mu      sync.Mutex // guards what follows
	status  Status
	asked   bool      // by the hub, or by hand
	offered offer     // what the last attempt to connect was made with
	fellOut bool      // the hub refused what is staged: the old one's turn
	took    offer     // what the hub took, until Run has acted on it
	held    offer     // what the hub took last
	fails   int       // renewals in a row
	retry   time.Time // no renewal before
}

// offer is which credentials a device connects with.
type offer uint8

const (
	nothing offer = iota
	inPlace
	staged
)

// checkEvery is how often the loop looks at the clock at least, which may be set, and at
// the folder, in which somebody may install credentials.
const checkEvery = time.Hour

// leastApart is the time between two renewals, however short-lived what comes is.
const leastApart = time.Minute

// longestSpread bounds how long after the hub has asked for it the certificate is renewed.
const longestSpread = time.Hour

// New returns a loop that doesn't run yet.
func New(config Config) *Loop {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	return &Loop{config: config, wake: make(chan struct{}, 1)}
}

// Due returns when to renew a certificate: at two thirds of its lifetime, give or take a
// twentieth of it that hangs on the certificate, so that a board that reboots doesn't
// change its mind and a batch made in one hour doesn't come back in one.
func Due(leaf *x509.Certificate) time.Time {
	lifetime := leaf.NotAfter.Sub(leaf.NotBefore)
	sum := sha256.Sum256(leaf.Raw)
	spread := float64(binary.BigEndian.Uint32(sum[:]))/(1<<32) - 0.5
	return leaf.NotBefore.Add(time.Duration(float64(lifetime) * (2.0/3 + spread/10)))
}

// Status returns how it stands.
func (l *Loop) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// Ask has the certificate renewed now, whatever its age.
func (l *Loop) Ask() {
	l.mu.Lock()
	l.asked = true
	l.mu.Unlock()
	l.poke()
}

// AskSoon is told that the hub asks for a renewal. Many devices may be told at the same
// time, so it comes within a 256th of the certificate's lifetime, an hour at most.
func (l *Loop) AskSoon(leaf *x509.Certificate) {
	spread := min(leaf.NotAfter.Sub(leaf.NotBefore)/256, longestSpread)
	at := l.config.Now().Add(rand.N(max(spread, 1)))
	l.mu.Lock()
	known := l.asked
	if !known {
		l.asked = true
		l.retry = maxTime(l.retry, at)
	}
	l.mu.Unlock()
	if !known {
		l.config.Log.Info("the hub asks for the certificate to be renewed", "until", leaf.NotAfter)
		l.poke()
	}
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (l *Loop) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Offer returns the staged credentials if the next attempt to connect is to be made with
// them, nil if with those in place. It reads files.
func (l *Loop) Offer() *keystore.Keystore {
	next, err := keystore.OpenStaged(l.config.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.config.Log.Warn("what a renewal has staged can't be used", "err", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || l.fellOut {
		l.offered = inPlace
		return nil
	}
	l.offered = staged
	return next
}

// Taken is told that the hub took what Offer said. It doesn't block.
func (l *Loop) Taken() {
	l.mu.Lock()
	l.took, l.held = l.offered, l.offered
	l.mu.Unlock()
	l.poke()
}

// Refused is told that the hub refused what Offer said: the other credentials have their
// turn, the old ones at once. It doesn't block.
func (l *Loop) Refused() {
	l.mu.Lock()
	l.fellOut = l.offered == staged
	fellOut := l.fellOut
	l.mu.Unlock()
	if fellOut {
		l.config.Log.Warn("the hub refused the renewed certificate; trying the former one")
		l.config.Reconnect()
	}
}

// Run works until ctx ends, and returns nil.
func (l *Loop) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		timer := time.NewTimer(l.step(ctx))
		select {
		case <-timer.C:
		case <-l.wake:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return nil
}

// step does what is to be done now and returns how long there is nothing.
func (l *Loop) step(ctx context.Context) time.Duration {
	if err := l.act(); err != nil {
		l.config.Log.Error("the renewed certificate can't be put in place", "err", err)
		return l.failed(err, shortest)
	}
	keys, err := keystore.Open(l.config.Dir)
	if err != nil {
		l.config.Log.Warn("whether the certificate is to be renewed can't be seen", "err", err)
		l.blind++
		return l.failed(err, min(shortest<<min(l.blind, 16), checkEvery)) // a TPM may be busy
	}
	l.blind = 0
	leaf, now := keys.Credentials().Leaf, l.config.Now()
	due := Due(leaf)
	next, err := keystore.OpenStaged(l.config.Dir)
	l.mu.Lock()
	l.status.Due, l.status.Staged = due, err == nil
	wait := l.retry.Sub(now)
	if !l.asked {
		wait = max(wait, due.Sub(now))
	}
	l.mu.Unlock()
	switch {
	case err == nil && now.After(leaf.NotAfter) && now.After(next.Credentials().Leaf.NotAfter):
		// The hub takes neither any more, but it renews the newer one for a while.
		if err := keystore.Promote(l.config.Dir); err != nil {
			return l.failed(err, shortest)
		}
		return 0
	case err == nil:
		return l.await(now)
	case wait > 0:
		return min(wait, checkEvery)
	}
	return l.renew(ctx, leaf)
}

// await waits for the hub to take what is staged, and sees to it that it is offered: the
// connection there is may be one with the old credentials, made while the new ones could
// not be read.
func (l *Loop) await(now time.Time) time.Duration {
	l.mu.Lock()
	idle := l.held != inPlace || l.fellOut
	l.mu.Unlock()
	if idle {
		return checkEvery
	}
	if wait := l.relinked.Add(leastApart).Sub(now); wait > 0 {
		return wait
	}
	l.reconnect(now)
	return leastApart
}

func (l *Loop) reconnect(now time.Time) {
	l.relinked = now
	l.config.Reconnect()
}

// act does what follows from what the hub took.
func (l *Loop) act() error {
	l.mu.Lock()
	took, fellOut := l.took, l.fellOut
	l.took = nothing
	l.mu.Unlock()
	switch {
	case took == staged:
		if err := keystore.Promote(l.config.Dir); err != nil {
			l.mu.Lock()
			l.took = staged
			l.mu.Unlock()
			return err
		}
		l.config.Log.Info("the hub has taken the renewed certificate; the former one is gone")
		l.mu.Lock()
		l.fails, l.status.Failure, l.status.Retry = 0, "", time.Time{}
		l.mu.Unlock()
	case took == inPlace && fellOut:
		l.config.Log.Warn("the hub takes the former certificate and not the renewed one, which is dropped")
		if err := keystore.DiscardStaged(l.config.Dir); err != nil {
			return err
		}
		l.mu.Lock()
		l.fellOut = false
		l.mu.Unlock()
		if keys, err := keystore.Open(l.config.Dir); err == nil {
			l.failed(errors.New("the hub refused the certificate it had issued"), l.pause(keys.Credentials().Leaf))
		}
	}
	return nil
}

// renew gets the next certificate and has the device connect with it.
func (l *Loop) renew(ctx context.Context, leaf *x509.Certificate) time.Duration {
	l.config.Log.Info("renewing the certificate", "until", leaf.NotAfter)
	err := l.config.Renew(ctx)
	if ctx.Err() != nil {
		return 0
	}
	if err != nil {
		pause := l.pause(leaf)
		if answer, ok := errors.AsType[*est.ServerError](err); ok {
			pause = max(pause, answer.RetryAfter)
			if answer.Status == http.StatusBadRequest { // not with this key
				err = errors.Join(err, keystore.DiscardStaged(l.config.Dir))
			}
		}
		l.config.Log.Warn("the certificate is not renewed", "err", err, "until", leaf.NotAfter, "retry_in", pause.Round(time.Second))
		return l.failed(err, pause)
	}
	l.mu.Lock()
	l.asked, l.fellOut, l.status.Staged = false, false, true
	l.held = nothing
	l.retry = l.config.Now().Add(leastApart)
	l.mu.Unlock()
	l.reconnect(l.config.Now())
	return checkEvery
}

// failed notes a failure and returns the pause after it.
func (l *Loop) failed(err error, pause time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retry = l.config.Now().Add(pause)
	l.status.Failure, l.status.Retry = err.Error(), l.retry
	return min(pause, checkEvery)
}

// Pauses after a failure begin at a small part of the lifetime, double up to a larger
// one, and are drawn from their upper half: a fleet that was refused together must not
// come back together.
const (
	shortest     = time.Second
	longestFirst = 5 * time.Minute
	longest      = 6 * time.Hour
)

func (l *Loop) pause(leaf *x509.Certificate) time.Duration {
	l.mu.Lock()
	fails := l.fails
	l.fails++
	l.mu.Unlock()
	lifetime := leaf.NotAfter.Sub(leaf.NotBefore)
	first := min(max(lifetime/256, shortest), longestFirst)
	last := min(max(lifetime/16, shortest), longest)
	wait := min(first<<min(fails, 16), last)
	return wait/2 + rand.N(wait/2+1)
}
