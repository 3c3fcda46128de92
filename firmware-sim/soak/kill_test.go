package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// TestNothingAcknowledgedIsLostByKill kills the hub with SIGKILL at random moments under load.
func TestNothingAcknowledgedIsLostByKill(t *testing.T) {
	h := shared.hubIn(t, t.TempDir(), "FLEETHUB_LOG__LEVEL=warn", smallSegments, manyCheckpoints)
	soak(t, h, count(t, "SOAK_KILLS", 10), func(*load, *rand.Rand) error {
		h.kill()
		return nil
	})
}

// TestNothingIsLostWhileClientsComeAndGo is the soak without a plug: what it finds is no crash's fault.
func TestNothingIsLostWhileClientsComeAndGo(t *testing.T) {
	soak(t, shared.hubIn(t, t.TempDir(), "FLEETHUB_LOG__LEVEL=warn", smallSegments, manyCheckpoints), 0, nil)
}

// plugless is how long a soak runs in which no plug is pulled.
const plugless = 4 * time.Second

// seed returns the seed of what is random in a soak. It is logged: SOAK_SEED repeats the choices, though not the hub's
// and the machine's.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if text := os.Getenv("SOAK_SEED"); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SOAK_SEED: %v", err)
		}
	}
	t.Logf("SOAK_SEED=%d", n)
	return n
}

// soak loads a hub, pulls its plug again and again, and lets the ledger judge. After pull, the hub is dead and its folder
// is what the next one will find.
func soak(t *testing.T, h *hub, pulls int, pull func(*load, *rand.Rand) error) {
	chosen := seed(t)
	random := rand.New(rand.NewPCG(chosen, 0))
	if err := h.start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{t: t, ledger: newLedger(), who: shared.services, addr: h.at.MQTT, seed: chosen, auditing: make(map[string]*audit), deaf: new(atomic.Bool)}
	defer l.running.Wait()
	defer cancel()
	l.publishing.Store(true)
	l.startServices(ctx)
	l.startDevices(ctx, shared.devices)
	l.startCommands(ctx)
	auditing, stopAudits := context.WithCancel(ctx)
	defer stopAudits()
	l.running.Go(func() { l.auditReported(auditing) })

	if !until(l.allConnected) {
		t.Fatalf("%v after the start: %s", patience, l.absent())
	}
	if pulls == 0 {
		time.Sleep(plugless)
	}
	var slowest time.Duration
	for range pulls {
		// Most plugs are pulled at full load, some in the middle of everybody's return.
		time.Sleep(time.Duration(random.Int64N(int64(2500 * time.Millisecond))))
		if err := pull(l, random); err != nil {
			t.Fatal(err)
		}
		l.ledger.plugPulled()
		began := time.Now()
		if err := h.start(); err != nil {
			t.Fatalf("the hub doesn't come back: %v", err)
		}
		l.deaf.Store(false)
		slowest = max(slowest, time.Since(began))
	}
	stopAudits()
	l.finish(ctx)
	t.Logf("slowest restart: %v", slowest.Round(time.Millisecond))
	l.ledger.verdict(t)
	if h.ended() {
		t.Errorf("the hub ended by itself: %v", h.cmd.ProcessState)
	}
}

// finish ends the publishing, has everybody come back, and waits until all that is owed has come, or nothing more comes.
func (l *load) finish(ctx context.Context) {
	l.t.Helper()
	l.publishing.Store(false)
	for _, c := range l.all() {
		c.settle()
	}
	if !until(l.allConnected) {
		l.t.Errorf("%v after the end: %s", patience, l.absent())
	}
	if !until(func() bool { return l.unfinished() == 0 }) {
		l.t.Errorf("%v after the end, %d messages have no acknowledgement", patience, l.unfinished())
	}
	const quiet = 10 * time.Second
	last, since := -1, time.Now()
	for last != 0 && time.Since(since) < quiet {
		if n := l.ledger.missing(); n != last {
			last, since = n, time.Now()
		}
		time.Sleep(100 * time.Millisecond)
	}
	l.auditDesired(ctx)
	if !l.auditOnce(ctx) {
		l.t.Error("the retained documents could not be looked at: the connection ended")
	}
}

// all returns every client.
func (l *load) all() []*client {
	return append(append([]*client{l.command}, l.others...), l.devices...)
}

// allConnected reports whether everybody is or was connected that should be.
func (l *load) allConnected() bool { return l.absent() == "" }

// absent names one client that should be connected and is not.
func (l *load) absent() string {
	missing, name := 0, ""
	for _, c := range l.all() {
		c.mu.Lock()
		here := c.live != nil || (!c.steady.Load() && c.connects.Load() > 0 && c.online != nil)
		c.mu.Unlock()
		if !here {
			missing, name = missing+1, c.session.name
		}
	}
	if missing == 0 {
		return ""
	}
	return fmt.Sprintf("%d clients are not connected, %s for one", missing, name)
}

// unfinished counts the messages on their way to the hub.
func (l *load) unfinished() int {
	n := 0
	for _, c := range l.all() {
		n += c.session.unfinished()
	}
	return n
}
