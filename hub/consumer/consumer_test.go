package consumer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/fleethub/fleethub/hub/boltstore"
	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// rig is a real journal and a real store.
type rig struct {
	t         testing.TB
	dir       string
	journal   *journal.Journal
	store     *boltstore.Store
	log       *ingest.Log
	consumers *Consumers
	ahead     atomic.Int64 // of the clock, in nanoseconds
	logged    lockedText
	retain    journal.Retain
}

func newRig(t testing.TB) *rig { return newRigRetaining(t, journal.Retain{}) }

func newRigRetaining(t testing.TB, retain journal.Retain) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), retain: retain}
	r.must(journal.Create(r.config()))
	r.open()
	t.Cleanup(func() { r.close() })
	return r
}

func (r *rig) config() journal.Config {
	return journal.Config{Dir: filepath.Join(r.dir, "journal"), SegmentSize: 64 << 10, Retain: r.retain}
}

func (r *rig) open() {
	r.t.Helper()
	var err error
	r.journal, err = journal.Open(r.config(), func(journal.Position, []byte) error { return nil })
	r.must(err)
	r.store, err = boltstore.Open(filepath.Join(r.dir, "hub.db"))
	r.must(err)
	r.log = ingest.New(r.journal, 0)
	r.consumers = r.reopened(r.store)
}

// reopened returns the consumers as a start would read them.
func (r *rig) reopened(o Offsets) *Consumers {
	r.t.Helper()
	c, err := Open(context.Background(), Config{Journal: r.journal, Offsets: o, Now: r.now, Log: r.logged.logger()})
	r.must(err)
	return c
}

func (r *rig) close() { r.must(errors.Join(r.journal.Close(), r.store.Close())) }

func (r *rig) now() time.Time { return time.Now().Add(time.Duration(r.ahead.Load())) }

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// from enters a message of somebody; see publish.
func (r *rig) from(who ingest.Sender, topic, payload string) Position {
	r.t.Helper()
	p, err := r.log.Message(&ingest.Message{Number: 1, Time: r.now(), From: who, Publish: wire.Publish{Topic: topic, Payload: []byte(payload), QoS: 1}}, nil)
	r.must(err)
	return p
}

// publish enters messages of a device, d/ID/tele with each payload, and returns the last one's position.
func (r *rig) publish(id string, payloads ...string) (p Position) {
	r.t.Helper()
	for _, payload := range payloads {
		p = r.from(ingest.Sender{Role: ingest.SenderDevice, ID: id}, "d/"+id+"/tele", payload)
	}
	r.must(r.journal.Sync(context.Background()))
	return p
}

// numbered returns the payloads "from" to "to - 1".
func numbered(from, to int) (all []string) {
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprint(i))
	}
	return all
}

// trim has the journal drop what it can.
func (r *rig) trim() {
	r.t.Helper()
	for first := r.journal.First(); r.journal.First() == first; {
		r.publish("filler", strings.Repeat("x", 30_000))
		r.must(r.journal.Checkpoint(r.journal.Last()))
	}
}

func payloads(messages []Message) (all []string) {
	for _, m := range messages {
		all = append(all, string(m.Payload))
	}
	return all
}

// lockedText is a log that tests read while it is written.
type lockedText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedText) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func TestPagesHaveWhatDevicesSentInOrderAndEachMessageOnce(t *testing.T) {
	r := newRig(t)
	r.publish("pi-1", numbered(0, 250)...)
	r.from(ingest.Sender{Role: ingest.SenderService, ID: "dashboard"}, "d/pi-1/tele", "of a service")
	r.from(ingest.Sender{}, "presence/pi-1", "of the hub")
	r.must(r.log.End(7, nil)) // a record that is no message
	r.publish("pi-2", "other")
	r.publish("pi-1", numbered(250, 260)...)
	var got []string
	q := Query{Filter: "d/pi-1/#", From: 1}
	for pages := 0; ; pages++ {
		page, err := r.consumers.Page(t.Context(), q)
		r.must(err)
		got = append(got, payloads(page.Messages)...)
		if q.From = page.Next; page.CaughtUp {
			break
		}
		if len(page.Messages) != DefaultLimit || pages > 3 {
			t.Fatalf("page %d has %d messages and is not the last one", pages, len(page.Messages))
		}
	}
	if want := numbered(0, 260); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	page, err := r.consumers.Page(t.Context(), Query{Filter: "#", From: 0, Limit: 1 << 30})
	if err != nil || len(page.Messages) != 261 || page.Messages[250].Device != "pi-2" || page.Messages[0].Position != 1 {
		t.Errorf("%d messages, %v", len(page.Messages), err)
	}
}

func TestAPageWaitsForItsFirstMessageAndNoLongerThanItIsTold(t *testing.T) {
	r := newRig(t)
	end := r.publish("pi-1", "old") + 1
	page, err := r.consumers.Page(t.Context(), Query{Filter: "#", From: end, Wait: time.Millisecond})
	if err != nil || len(page.Messages) != 0 || !page.CaughtUp || page.Next != end {
		t.Fatalf("%+v, %v", page, err)
	}
	got := make(chan Page, 1)
	go func() {
		page, err := r.consumers.Page(t.Context(), Query{Filter: "d/pi-1/#", From: end, Wait: MaxWait})
		if err != nil {
			t.Error(err)
		}
		got <- page
	}()
	r.publish("pi-2", "not asked for")
	r.publish("pi-1", "new")
	if page := <-got; !slices.Equal(payloads(page.Messages), []string{"new"}) || page.Next != end+2 {
		t.Errorf("%+v", page)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.consumers.Page(ctx, Query{Filter: "#", From: end + 2, Wait: MaxWait}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestWhoseMessagesAreGoneIsToldSoAndWhatIsLeftFollows(t *testing.T) {
	r := newRigRetaining(t, journal.Retain{Bytes: -1, Age: -1})
	r.publish("pi-1", numbered(0, 10)...)
	one, err := r.consumers.Create(t.Context(), "late", "#", 3)
	r.must(err)
	f := r.consumers.Feed("d/pi-1/#", one.Next)
	defer f.Close()
	r.trim()
	r.publish("pi-1", "left")
	first := r.journal.First()
	var gap *Gap
	if _, err := r.consumers.Page(t.Context(), Query{Filter: "#", From: one.Next}); !errors.As(err, &gap) || *gap != (Gap{From: 3, First: first}) {
		t.Fatalf("%v", err)
	}
	if _, err := f.Next(t.Context()); !errors.As(err, &gap) || *gap != (Gap{From: 3, First: first}) {
		t.Fatalf("%v", err)
	}
	if m, err := f.Next(t.Context()); err != nil || string(m.Payload) != "left" {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, err := r.consumers.Create(t.Context(), "later", "#", 3); !errors.As(err, &gap) {
		t.Errorf("a consumer was made where there is nothing: %v", err)
	}
	if page, err := r.consumers.Page(t.Context(), Query{Filter: "d/pi-1/#"}); err != nil || !slices.Equal(payloads(page.Messages), []string{"left"}) {
		t.Errorf("%+v, %v", page, err)
	}
}

func TestAPlaceIsFoundByWords(t *testing.T) {
	r := newRig(t)
	const n = 2*near + 1000 // so that it isn't found by reading alone
	began := time.Now()
	for i := range n {
		r.ahead.Store(int64(time.Duration(i) * time.Second))
		r.from(ingest.Sender{Role: ingest.SenderDevice, ID: "pi-1"}, "d/pi-1/tele", "x")
	}
	r.must(r.journal.Sync(t.Context()))
	at := func(p Position) string { return began.Add(time.Duration(p-1) * time.Second).Format(time.RFC3339Nano) }
	for text, want := range map[string]Position{
		"start": 1, "now": n + 1, "0": 1, "17": 17, "2001-01-01T00:00:00Z": 1, "2999-01-01T00:00:00Z": n + 1,
		at(100): 100, at(near): near, at(n - 50): n - 50, "-1h": n - 3600, "-1000000h": 1,
	} {
		got, err := r.consumers.Resolve(t.Context(), text)
		// The clock runs on while the messages are entered, by seconds at most.
		if off := int64(got - want); err != nil || off < -patience.Milliseconds()/1000 || off > patience.Milliseconds()/1000 {
			t.Errorf("%s is %d, want %d: %v", text, got, want, err)
		}
	}
	for _, text := range []string{"", "yesterday", "-1", "1h", "-", "0x10", "2026-01-01"} {
		if p, err := r.consumers.Resolve(t.Context(), text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q is %d, %v", text, p, err)
		}
	}
}

func FuzzMessagesAreTheSameAfterJSON(f *testing.F) {
	for _, payload := range []string{"", "text", "{\"a\":1}", "\x00\xff", "<&>\u2028"} {
		f.Add([]byte(payload), byte(1), true)
	}
	f.Fuzz(func(t *testing.T, payload []byte, qos byte, retain bool) {
		m := Message{Position: 5, Time: time.Unix(1, 5e6).UTC(), Topic: "d/a/b", Payload: payload, QoS: qos, Retain: retain, Device: "a"}
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var back Message
		if err := json.Unmarshal(data, &back); err != nil || fmt.Sprint(back) != fmt.Sprint(m) {
			t.Errorf("%s became %+v, %v", data, back, err)
		}
	})
}

func TestNamesAndFiltersThatAreNone(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct{ name, filter string }{
		{"", "#"}, {"A", "#"}, {"a_b", "#"}, {"../a", "#"}, {strings.Repeat("a", 65), "#"},
		{"a", ""}, {"a", "a/#/b"}, {"a", "a+"}, {"a", "$share/g/a"},
	} {
		if _, err := r.consumers.Create(t.Context(), c.name, c.filter, 1); !errors.Is(err, ErrInvalid) {
			t.Errorf("consumer %q with filter %q: %v", c.name, c.filter, err)
		}
	}
	if _, err := r.consumers.Create(t.Context(), "a", "#", 2); !errors.Is(err, ErrInvalid) {
		t.Errorf("a place after the end: %v", err)
	}
}

func TestWhoWasMovedMeanwhileStoresNothing(t *testing.T) {
	r := newRig(t)
	r.publish("pi-1", numbered(0, 5)...)
	_, err := r.consumers.Create(t.Context(), "a", "#", 1)
	r.must(err)
	held, err := r.consumers.entry("a")
	r.must(err)
	one := held.Consumer
	one.Next = 2
	held, err = r.consumers.advance(t.Context(), held, one) // its own step is no move
	r.must(err)
	_, err = r.consumers.Move(t.Context(), "a", 2, 4, "")
	r.must(err)
	one.Next = 3
	if _, err := r.consumers.advance(t.Context(), held, one); !errors.Is(err, ErrMoved) {
		t.Errorf("stored all the same: %v", err)
	}
	if is, err := r.consumers.Get("a"); err != nil || is.Next != 4 {
		t.Errorf("%+v, %v", is, err)
	}
	held, err = r.consumers.entry("a")
	r.must(err)
	r.must(r.consumers.Delete(t.Context(), "a", 4))
	if _, err := r.consumers.advance(t.Context(), held, one); !errors.Is(err, ErrMoved) {
		t.Errorf("a consumer that was removed came back: %v", err)
	}
}

func TestMessagesStayWhatTheyAreWhenMoreAreRead(t *testing.T) {
	r := newRig(t)
	f := r.consumers.Feed("#", 0)
	defer f.Close()
	var want []string
	var kept []Message
	for i := range 20 { // each is read by itself, into the buffer of the one before
		want = append(want, strings.Repeat(string(rune('A'+i)), 1000))
		r.publish("pi-1", want[i])
		m, err := f.Next(t.Context())
		r.must(err)
		kept = append(kept, m)
	}
	if got := payloads(kept); !slices.Equal(got, want) {
		t.Errorf("got %.3q, want %.3q", got, want)
	}
}

func TestAPlaceAfterTheJournalsEndIsPutBackToIt(t *testing.T) {
	r := newRig(t)
	end := r.publish("pi-1", "a", "b") + 1
	data, err := json.Marshal(Consumer{Name: "restored", Filter: "#", Next: end + 50, Until: end + 60, Sink: true})
	r.must(err)
	r.must(r.store.PutConsumer(t.Context(), "restored", data))
	for _, c := range []*Consumers{r.reopened(r.store), r.reopened(r.store)} {
		if one, err := c.Get("restored"); err != nil || one.Next != end || one.Until != 0 || !one.Sink {
			t.Errorf("%+v, %v", one, err)
		}
	}
	r.must(r.store.PutConsumer(t.Context(), "broken", []byte("{")))
	if _, err := Open(t.Context(), Config{Journal: r.journal, Offsets: r.store}); err == nil {
		t.Error("a place that can't be read was passed over")
	}
}

// Whatever is done to consumers, they are what a simple model says, before and after a start.
func TestConsumersAreWhatWasDoneToThem(t *testing.T) {
	r := newRig(t)
	r.publish("pi-1", numbered(0, 20)...)
	ctx := t.Context()
	rapid.Check(t, func(rt *rapid.T) {
		for _, one := range r.consumers.List() {
			r.must(r.consumers.Delete(ctx, one.Name, one.Next))
		}
		model := map[string]Position{}
		name := rapid.SampledFrom([]string{"a", "b", "c"})
		place := rapid.Custom(func(rt *rapid.T) Position { return Position(rapid.IntRange(1, 21).Draw(rt, "place")) })
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(rt *rapid.T) {
				n, p := name.Draw(rt, "name"), place.Draw(rt, "at")
				_, err := r.consumers.Create(ctx, n, "#", p)
				if _, exists := model[n]; exists {
					if !errors.Is(err, ErrExists) {
						rt.Fatal(err)
					}
				} else if err != nil {
					rt.Fatal(err)
				} else {
					model[n] = p
				}
			},
			"move": func(rt *rapid.T) {
				n, from, to := name.Draw(rt, "name"), place.Draw(rt, "from"), place.Draw(rt, "to")
				if is, exists := model[n]; exists && rapid.Bool().Draw(rt, "right") {
					from = is
				}
				_, err := r.consumers.Move(ctx, n, from, to, "")
				switch is, exists := model[n]; {
				case !exists:
					if !errors.Is(err, ErrUnknown) {
						rt.Fatal(err)
					}
				case is != from:
					if !errors.Is(err, ErrMoved) {
						rt.Fatal(err)
					}
				case err != nil:
					rt.Fatal(err)
				default:
					model[n] = to
				}
			},
			"delete": func(rt *rapid.T) {
				n := name.Draw(rt, "name")
				is, exists := model[n]
				if err := r.consumers.Delete(ctx, n, is); exists != (err == nil) {
					rt.Fatal(err)
				}
				delete(model, n)
			},
			"start": func(*rapid.T) { r.consumers = r.reopened(r.store) },
			"": func(rt *rapid.T) {
				holds := r.journal.Stats().Holds
				list := r.consumers.List()
				if len(list) != len(model) || len(holds) != len(model) {
					rt.Fatalf("%+v with %v held, want %v", list, holds, model)
				}
				for _, one := range list {
					if one.Next != model[one.Name] || holds[one.Name] != one.Next {
						rt.Fatalf("%+v with %v held, want %v", list, holds, model)
					}
				}
			},
		})
	})
}
