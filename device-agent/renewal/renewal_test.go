package renewal

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/device-agent/keystore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// board is a device's folder and whoever renews its certificate.
type board struct {
	t     *testing.T
	fleet *certtest.Fleet
	dir   string
	valid time.Duration // of what it gets

	mu         sync.Mutex // guards what follows
	fail       error      // what the next renewals end with
	renewed    int
	reconnects int
}

// newBoard returns a board with a certificate that began at that time.
func newBoard(t *testing.T, began time.Time, valid time.Duration) *board {
	t.Helper()
	b := &board{t: t, fleet: certtest.New(t), dir: filepath.Join(t.TempDir(), "device"), valid: 365 * 24 * time.Hour}
	b.fleet.Device("pi-1", certtest.WithValidity(began, valid)).WriteTo(b.dir, "device")
	return b
}

func (b *board) renew(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.renewed++
	if b.fail != nil {
		return b.fail
	}
	draft, err := keystore.NewDraft(b.dir)
	b.must(err)
	key, err := draft.SoftwareKey()
	b.must(err)
	id, err := identity.New(certtest.TrustDomain, identity.RoleDevice, "pi-1")
	b.must(err)
	leaf, err := b.fleet.Operational.At(time.Now).Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: id, PublicKey: key.Public(), Valid: b.valid})
	b.must(err)
	return draft.Stage([]*x509.Certificate{leaf, b.fleet.Operational.Certificate()}, b.fleet.Bundle())
}

func (b *board) loop() *Loop {
	return New(Config{Dir: b.dir, Renew: b.renew, Reconnect: func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.reconnects++
	}})
}

func (b *board) counts() (renewed, reconnects int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.renewed, b.reconnects
}

func (b *board) installed() string {
	b.t.Helper()
	keys, err := keystore.Open(b.dir)
	b.must(err)
	return keys.Fingerprint()
}

// staged returns the fingerprint of what is staged, "" for nothing.
func (b *board) staged() string {
	b.t.Helper()
	keys, err := keystore.OpenStaged(b.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	b.must(err)
	return keys.Fingerprint()
}

func (b *board) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// offers returns the fingerprint of what the loop would connect with.
func (b *board) offers(l *Loop) string {
	b.t.Helper()
	if keys := l.Offer(); keys != nil {
		return keys.Fingerprint()
	}
	return b.installed()
}

func TestDueIsAtTwoThirdsWithASpread(t *testing.T) {
	fleet := certtest.New(t)
	seen := make(map[time.Duration]bool)
	for range 50 {
		leaf := fleet.Device("pi-1", certtest.WithValidity(time.Now(), 300*24*time.Hour)).Leaf
		lifetime := leaf.NotAfter.Sub(leaf.NotBefore)
		after := Due(leaf).Sub(leaf.NotBefore)
		if part := float64(after) / float64(lifetime); part < 2.0/3-0.051 || part > 2.0/3+0.051 {
			t.Errorf("due at %.3f of the lifetime", part)
		}
		if again := Due(leaf).Sub(leaf.NotBefore); again != after {
			t.Error("it changes its mind")
		}
		seen[after] = true
	}
	if len(seen) < 40 {
		t.Errorf("50 boards of one minute are due at %d moments", len(seen))
	}
}

// run runs a loop in the bubble of a synctest until the end of the test.
func run(t *testing.T, l *Loop) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	return func() { cancel(); group.Wait() }
}

func TestHubsAskingIsFollowedWithinASpread(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			b := newBoard(t, time.Now(), 300*24*time.Hour)
			l := b.loop()
			defer run(t, l)()
			time.Sleep(24 * time.Hour)
			keys, err := keystore.Open(b.dir)
			b.must(err)
			l.AskSoon(keys.Credentials().Leaf)
			l.AskSoon(keys.Credentials().Leaf) // it is retained, and heard at each connect
			time.Sleep(longestSpread)
			synctest.Wait()
			if n, _ := b.counts(); n != 1 {
				t.Errorf("renewed %d times within an hour of being asked", n)
			}
			l.Taken()
			time.Sleep(24 * time.Hour)
			if n, _ := b.counts(); n != 1 {
				t.Errorf("renewed %d times for one asking", n)
			}
		})
	}
}

func TestRenewsWhenDueAndNotBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t, time.Now(), 300*24*time.Hour)
		l := b.loop()
		defer run(t, l)()
		time.Sleep(180 * 24 * time.Hour)
		if n, _ := b.counts(); n != 0 {
			t.Fatalf("renewed %d times at three fifths", n)
		}
		old := b.installed()
		time.Sleep(40 * 24 * time.Hour)
		if n, reconnects := b.counts(); n != 1 || reconnects != 1 {
			t.Fatalf("past two thirds: renewed %d times, connected anew %d times", n, reconnects)
		}
		if b.installed() != old || b.staged() == "" || b.offers(l) != b.staged() {
			t.Fatal("the old certificate is gone before the hub has taken the new, or the new is not tried")
		}
		next := b.staged()
		l.Taken()
		synctest.Wait()
		if b.installed() != next || b.staged() != "" || l.Status().Failure != "" {
			t.Errorf("what the hub has taken is not in place: %+v", l.Status())
		}
		time.Sleep(24 * time.Hour)
		if n, _ := b.counts(); n != 1 {
			t.Errorf("renewed %d times", n)
		}
	})
}

func TestRenewsWhenAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t, time.Now(), 300*24*time.Hour)
		l := b.loop()
		defer run(t, l)()
		synctest.Wait()
		l.Ask()
		synctest.Wait()
		if n, _ := b.counts(); n != 1 || b.staged() == "" {
			t.Errorf("renewed %d times", n)
		}
	})
}

// A power cut after the certificate came, or after the hub took it, ends with the new one.
func TestStagedIsTriedFirstAfterAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t, time.Now(), 300*24*time.Hour)
		b.must(b.renew(t.Context()))
		next := b.staged()
		l := b.loop()
		defer run(t, l)()
		if got := b.offers(l); got != next {
			t.Fatal("what is staged is not tried")
		}
		l.Taken()
		synctest.Wait()
		if n, _ := b.counts(); b.installed() != next || n != 1 {
			t.Errorf("renewed %d times, in place is %s", n-1, b.installed())
		}
	})
}

func TestRefusedRenewalIsDroppedWhenTheFormerIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t, time.Now(), 300*24*time.Hour)
		old := b.installed()
		b.must(b.renew(t.Context()))
		next := b.staged()
		l := b.loop()
		defer run(t, l)()
		if b.offers(l) != next {
			t.Fatal("what is staged is not tried")
		}
		l.Refused()
		if _, reconnects := b.counts(); reconnects != 1 || b.offers(l) != old {
			t.Fatal("the former is not tried at once")
		}
		// The hub refuses that, too: the device is suspended. Nothing is dropped.
		l.Refused()
		synctest.Wait()
		if _, reconnects := b.counts(); reconnects != 1 || b.offers(l) != next {
			t.Fatal("the two don't take turns")
		}
		l.Refused()
		b.offers(l)
		l.Taken() // the former
		synctest.Wait()
		if b.staged() != "" || b.installed() != old {
			t.Fatal("what the hub refuses is still staged")
		}
		if s := l.Status(); s.Failure == "" || s.Retry.IsZero() {
			t.Errorf("the status doesn't say it: %+v", s)
		}
	})
}

// A TPM that was busy for a moment must not leave what is staged untried for as long as
// the connection with the old credentials lasts.
func TestStagedThatWasNotOfferedIsOfferedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t, time.Now(), 300*24*time.Hour)
		l := b.loop()
		defer run(t, l)()
		l.Offer()
		l.Taken()
		l.Ask()
		synctest.Wait()
		if _, reconnects := b.counts(); reconnects != 1 {
			t.Fatalf("connected anew %d times", reconnects)
		}
		l.mu.Lock()
		l.offered = inPlace // as after an error of OpenStaged
		l.mu.Unlock()
		l.Taken()
		time.Sleep(2 * leastApart)
		if _, reconnects := b.counts(); reconnects != 2 && reconnects != 3 {
			t.Errorf("connected anew %d times", reconnects)
		}
	})
}

func TestFailedRenewalIsTriedAgainEverMoreSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t, time.Now().Add(-250*24*time.Hour), 300*24*time.Hour) // past two thirds
		b.fail = errors.New("nobody answers")
		l := b.loop()
		defer run(t, l)()
		time.Sleep(24 * time.Hour)
		if n, _ := b.counts(); n < 5 || n > 20 {
			t.Errorf("tried %d times in a day", n)
		}
		b.mu.Lock()
		b.renewed, b.fail = 0, &est.ServerError{Status: http.StatusServiceUnavailable, RetryAfter: 20 * time.Hour}
		b.mu.Unlock()
		time.Sleep(7 * time.Hour) // the pause that began before
		if n, _ := b.counts(); n != 1 {
			t.Fatalf("tried %d times", n)
		}
		time.Sleep(12 * time.Hour)
		if n, _ := b.counts(); n != 1 {
			t.Errorf("asked %d times before the server's Retry-After", n)
		}
		b.mu.Lock()
		b.fail = nil
		b.mu.Unlock()
		time.Sleep(10 * time.Hour)
		if b.staged() == "" {
			t.Error("not renewed once the server would")
		}
	})
}

func TestKeyThatTheServerRefusesIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t, time.Now(), 300*24*time.Hour)
		draft, err := keystore.NewDraft(b.dir)
		b.must(err)
		former, err := draft.SoftwareKey()
		b.must(err)
		b.fail = &est.ServerError{Status: http.StatusBadRequest}
		l := b.loop()
		defer run(t, l)()
		l.Ask()
		synctest.Wait()
		draft, err = keystore.NewDraft(b.dir)
		b.must(err)
		key, err := draft.SoftwareKey()
		b.must(err)
		if samePublic(key.Public(), former.Public()) {
			t.Error("the next try would bring the same key")
		}
	})
}

func samePublic(a, b any) bool {
	x, err := x509.MarshalPKIXPublicKey(a)
	y, err2 := x509.MarshalPKIXPublicKey(b)
	return err == nil && err2 == nil && string(x) == string(y)
}
