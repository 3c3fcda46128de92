package misuse_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fleethub/fleethub/hub/misuse"
)

// guard is a Watch with its clock, and what it has reported.
type guard struct {
	*misuse.Watch
	now   time.Time
	found []misuse.Anomaly
}

func newGuard(t misuse.Thresholds) *guard {
	g := &guard{now: time.Unix(1_700_000_000, 0)}
	g.Watch = misuse.New(misuse.Config{Thresholds: t, Now: func() time.Time { return g.now }, Report: func(a misuse.Anomaly) { g.found = append(g.found, a) }})
	return g
}

// signals returns the signals reported so far.
func (g *guard) signals() (all []misuse.Signal) {
	for _, a := range g.found {
		all = append(all, a.Signal)
	}
	return all
}

func only(t *testing.T, g *guard, want ...misuse.Signal) {
	t.Helper()
	if got := fmt.Sprint(g.signals()); got != fmt.Sprint(want) {
		t.Errorf("reported %s, want %v", got, want)
	}
}

func TestTwoBoardsWithOneKeyFlap(t *testing.T) {
	g := newGuard(misuse.Thresholds{})
	for i := range 8 { // the first two are new addresses, six come back
		if len(g.found) > 0 {
			t.Fatalf("reported after %d connections", i)
		}
		g.Connected("pi-1", []string{"192.0.2.1", "198.51.100.7"}[i%2])
		g.now = g.now.Add(time.Second)
	}
	only(t, g, misuse.Flapping)
	if a := g.found[0]; a.Device != "pi-1" || a.Score != 6 || a.Threshold != 6 || !a.Signal.Clone() || g.Recent()[0] != a {
		t.Errorf("anomaly %+v", a)
	}
	for i := range 20 {
		g.Connected("pi-1", []string{"192.0.2.1", "198.51.100.7"}[i%2])
	}
	only(t, g, misuse.Flapping) // once in a while is enough
	g.now = g.now.Add(11 * time.Minute)
	g.Connected("pi-1", "192.0.2.1")
	g.Connected("pi-1", "198.51.100.7")
	only(t, g, misuse.Flapping, misuse.Flapping)
}

func TestBoardThatMovesOrComesBackDoesNotFlap(t *testing.T) {
	g := newGuard(misuse.Thresholds{Connections: -1})
	for i := range 200 {
		g.Connected("roams", fmt.Sprint("192.0.2.", i))
		g.Connected("stays", "192.0.2.1")
		if i%20 == 0 { // a van that comes home every 20 minutes
			g.Connected("van", fmt.Sprint("10.0.0.", i))
			g.Connected("van", "192.0.2.1")
		}
		g.now = g.now.Add(time.Minute)
	}
	only(t, g)
}

func TestTicketsUsedTwiceAreCounted(t *testing.T) {
	g := newGuard(misuse.Thresholds{})
	for i := range 100 {
		g.Resumed("pi-1", uint64(i+1))
	}
	only(t, g)
	g.Resumed("pi-1", 1)
	g.Resumed("pi-1", 2)
	only(t, g)
	g.Resumed("pi-1", 3)
	only(t, g, misuse.TicketReuse)
}

func TestConnectionsDenialsAndMessagesHaveThresholds(t *testing.T) {
	g := newGuard(misuse.Thresholds{Connections: 10, Denials: 5, Messages: 100})
	for range 9 {
		g.Connected("pi-1", "192.0.2.1")
	}
	for range 4 {
		g.Denied("pi-2", "d/other/tele/x")
	}
	g.Published("pi-3", 999, 10*time.Second)
	only(t, g)
	g.Connected("pi-1", "192.0.2.1")
	g.Denied("pi-2", "d/other/tele/x")
	g.Published("pi-3", 1000, 10*time.Second)
	only(t, g, misuse.Connections, misuse.Denials, misuse.Messages)
	if s := g.Scores("pi-1"); s[misuse.Connections] != 10 || len(g.Scores("nobody")) != 0 {
		t.Errorf("scores %v", s)
	}
	g.now = g.now.Add(10 * time.Minute)
	if s := g.Scores("pi-1"); s[misuse.Connections] != 5 {
		t.Errorf("after a half-life: %v", s)
	}
	g.Forget("pi-1")
	if s := g.Scores("pi-1"); len(s) != 0 {
		t.Errorf("after Forget: %v", s)
	}
}

func TestThresholdBelowZeroNeverReports(t *testing.T) {
	g := newGuard(misuse.Thresholds{Flapping: -1, TicketReuse: -1, Connections: -1, Denials: -1, Messages: -1})
	for i := range 1000 {
		g.Connected("pi-1", fmt.Sprint(i%2))
		g.Resumed("pi-1", 1)
		g.Denied("pi-1", "x")
		g.Published("pi-1", 1<<30, time.Second)
	}
	only(t, g)
}

// Whatever happens: nothing is reported below its threshold, and no signal of a device
// twice within a half-life.
func TestReportsAreRareAndAboveTheirThreshold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		thresholds := misuse.Thresholds{Flapping: 3, TicketReuse: 2, Connections: 8, Denials: 4, Messages: 50, HalfLife: time.Minute}
		g := newGuard(thresholds)
		last := make(map[string]time.Time)
		seen := 0
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			id := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "device")
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				g.Connected(id, rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "address"))
			case 1:
				g.Resumed(id, rapid.Uint64Range(1, 20).Draw(t, "ticket"))
			case 2:
				g.Denied(id, "x")
			case 3:
				g.Published(id, rapid.IntRange(0, 2000).Draw(t, "messages"), 10*time.Second)
			case 4:
				g.now = g.now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second)
			}
			for ; seen < len(g.found); seen++ {
				a := g.found[seen]
				key := a.Device + string(a.Signal)
				if a.Score < a.Threshold {
					t.Fatalf("reported below its threshold: %+v", a)
				}
				if at, ok := last[key]; ok && a.At.Sub(at) < thresholds.HalfLife {
					t.Fatalf("reported again after %s: %+v", a.At.Sub(at), a)
				}
				last[key] = a.At
			}
		}
	})
}

func TestWatchIsBoundedAndSafeForConcurrentUse(t *testing.T) {
	w := misuse.New(misuse.Config{Devices: 8, Thresholds: misuse.Thresholds{Connections: 1}})
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for i := range 500 {
				id := fmt.Sprint("pi-", g*500+i)
				w.Connected(id, "1")
				w.Resumed(id, uint64(i))
				w.Denied(id, "x")
				w.Scores(id)
				w.Recent()
			}
		})
	}
	all.Wait()
	if n := len(w.Recent()); n != 256 {
		t.Errorf("%d anomalies are kept", n)
	}
}

func BenchmarkConnected(b *testing.B) {
	w := misuse.New(misuse.Config{})
	for i := 0; b.Loop(); i++ {
		w.Connected("pi-1", []string{"192.0.2.1", "198.51.100.7"}[i%2])
	}
}
