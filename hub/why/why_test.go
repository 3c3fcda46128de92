package why_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/why"
)

type clock struct{ now time.Time }

func (c *clock) read() time.Time { c.now = c.now.Add(time.Second); return c.now }

func TestBookKeepsTheNewestAndCountsRepeats(t *testing.T) {
	c := &clock{time.Unix(1_700_000_000, 0)}
	b := why.NewBook(0, 0, c.read)
	pi := why.Name{Role: "device", ID: "pi-1"}
	for i := range 100 {
		b.Note(pi, true, why.Event{Kind: why.Refused, Reason: fmt.Sprint(i)})
	}
	for range 3 {
		b.Note(pi, true, why.Event{Kind: why.Refused, Reason: "revoked"})
	}
	events := b.Of(pi)
	if len(events) != 12 || events[0].Reason != "revoked" || events[0].Times != 3 || !events[0].First.Before(events[0].At) || events[1].Reason != "99" || events[1].Times != 0 {
		t.Errorf("%d events, the newest two %+v", len(events), events[:2])
	}
	if other := b.Of(why.Name{Role: "service", ID: "pi-1"}); other != nil {
		t.Errorf("another role's history is %+v", other)
	}
}

func TestStrangersCannotPushOutTheRegistered(t *testing.T) {
	b := why.NewBook(2, 2, nil)
	pi := why.Name{Role: "device", ID: "pi-1"}
	b.Note(pi, true, why.Event{Kind: why.Refused, Reason: "revoked"})
	for i := range 1000 {
		b.Note(why.Name{Role: "device", ID: fmt.Sprint("x", i)}, false, why.Event{Kind: why.Refused, Reason: "unknown-device", Detail: strings.Repeat("y", 10_000)})
	}
	if len(b.Of(pi)) != 1 {
		t.Error("strangers have pushed a registered device out")
	}
	if e := b.Of(why.Name{Role: "device", ID: "x999"}); len(e) != 1 || len(e[0].Detail) > 300 {
		t.Errorf("a stranger's history has %d events", len(e))
	}
	b.Note(why.Name{Role: "device", ID: strings.Repeat("z", 100)}, false, why.Event{})
	b.Note(why.Name{Role: "device"}, false, why.Event{})
}

func TestAddressOfSeveralNamesNobody(t *testing.T) {
	b := why.NewBook(0, 0, nil)
	join := func(id, address string) {
		b.Note(why.Name{Role: "device", ID: id}, true, why.Event{Kind: why.Connected, Address: address})
	}
	if _, known := b.At("192.0.2.1"); known {
		t.Error("an address that nobody came from has a name")
	}
	join("pi-1", "192.0.2.1")
	join("pi-1", "192.0.2.1")
	if n, known := b.At("192.0.2.1"); !known || n.ID != "pi-1" {
		t.Errorf("%v, %v", n, known)
	}
	join("pi-2", "192.0.2.1")
	if n, known := b.At("192.0.2.1"); known {
		t.Errorf("one of two was guessed: %v", n)
	}
}

func TestClocksAreComparedInWords(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for off, want := range map[time.Duration]string{
		0: "", 59 * time.Second: "", -59 * time.Second: "", -72 * time.Hour: "its clock is 3 days slow", -25 * time.Hour: "its clock is 1 day slow",
		90 * time.Minute: "its clock is 2 hours fast", 61 * time.Second: "its clock is 1 minute fast",
	} {
		if got := why.Skew(now.Add(off), now); got != want {
			t.Errorf("%s off: %q, want %q", off, got, want)
		}
	}
}

func TestBookIsSafeForConcurrentUse(t *testing.T) {
	b := why.NewBook(8, 8, nil)
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for i := range 500 {
				name := why.Name{Role: "device", ID: fmt.Sprint("pi-", (g*7+i)%16)}
				b.Note(name, i%2 == 0, why.Event{Kind: why.Connected, Reason: "full", Address: fmt.Sprint(i % 8)})
				b.Of(name)
				b.At(fmt.Sprint(i % 8))
			}
		})
	}
	all.Wait()
}
