package ingest

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/wire"
)

// memory is a journal that keeps its records and is always on disk.
type memory struct {
	records [][]byte
	refuse  error
}

func (m *memory) Append(record []byte, w journal.Waiter) (journal.Position, error) {
	if m.refuse != nil {
		return 0, m.refuse
	}
	m.records = append(m.records, bytes.Clone(record))
	if w != nil {
		w.Committed(nil)
	}
	return journal.Position(len(m.records)), nil
}

func (m *memory) Checkpoint(journal.Position) error { return nil }

// replay applies the records from one on.
func (m *memory) replay(t testing.TB, from int) *State {
	t.Helper()
	s := new(State)
	for _, r := range m.records[from:] {
		if err := s.Apply(r); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// someMessage has every field that is stored.
func someMessage() *Message {
	expiry := uint32(3600)
	return &Message{
		Number: 7, Time: time.UnixMilli(1792000000123).UTC(), From: Sender{Role: SenderDevice, ID: "pi-1"},
		Publish: wire.Publish{
			Topic: "d/pi-1/tele/x", Payload: []byte("21.5"), QoS: 2, Retain: true, Expiry: &expiry,
			Props: &wire.MessageProperties{Format: 1, ContentType: "text/plain", ResponseTopic: "a/b", Correlation: []byte{1, 2}, User: []wire.User{{Key: "k", Value: "v"}, {Key: "k", Value: ""}}},
		},
		Session: 3, ID: 65535,
		Entries: []Entry{{Session: 4, Delivery: Delivery{ID: 1, QoS: 1, SubIDs: []int{1, 268435455}}}, {Session: 5, Delivery: Delivery{ID: 9, QoS: 2, Retain: true}}},
	}
}

func someSession(number uint64) *Session {
	return &Session{
		Number: number, Key: "device/pi-1", Version: 5, Left: time.UnixMilli(1792000000000).UTC(), Expiry: time.Hour,
		Will:     &wire.Will{Message: wire.Publish{Topic: "d/pi-1/evt/offline", Payload: []byte("gone"), QoS: 1, Retain: true}, Delay: 30},
		Author:   &Author{OU: []string{"pump", ""}, SAN: []string{"uri:spiffe://fleet.example/device/pi-1"}},
		Subs:     []Subscription{{Subscription: wire.Subscription{Filter: "d/pi-1/cmd/#", QoS: 2, NoLocal: true, RetainAsPublished: true, RetainHandling: 2}, SubID: 12}},
		Incoming: []uint16{1, 65535},
		Queue:    []Queued{{Message: 7, Delivery: Delivery{ID: 3, QoS: 2, SubIDs: []int{4}}, Received: true}},
	}
}

func TestMessageReadsBackAsEntered(t *testing.T) {
	var j memory
	m := someMessage()
	_, err := New(&j, 0).Message(m, nil)
	must(t, err)
	got, ok := Accepted(j.records[0])
	if !ok || !reflect.DeepEqual(&got, m) {
		t.Errorf("got %+v\nwant %+v", got, m)
	}
}

func TestSessionReadsBackAsEntered(t *testing.T) {
	var j memory
	s := someSession(3)
	_, err := New(&j, 0).Session(s, nil)
	must(t, err)
	if got := j.replay(t, 0).Sessions[3]; !reflect.DeepEqual(got, s) {
		t.Errorf("got %+v\nwant %+v", got, s)
	}
}

// A checkpoint began, a message came, then its session was written: the message is
// needed though no session was there when it was replayed.
func TestMessageBeforeItsSessionsSnapshotIsKept(t *testing.T) {
	var j memory
	log := New(&j, 0)
	_, err := log.Mark(nil)
	must(t, err)
	_, err = log.Message(&Message{Number: 9, Publish: wire.Publish{Topic: "t", Payload: []byte("x"), QoS: 1}, Entries: []Entry{{Session: 1, Delivery: Delivery{ID: 5, QoS: 1}}}}, nil)
	must(t, err)
	_, err = log.Session(&Session{Number: 1, Key: "device/pi-1", Queue: []Queued{{Message: 9, Delivery: Delivery{ID: 5, QoS: 1}}}}, nil)
	must(t, err)
	s := j.replay(t, 0)
	if missing := s.Prune(); missing != 0 || len(s.Sessions[1].Queue) != 1 || string(s.Messages[9].Payload) != "x" {
		t.Errorf("%d missing, queue %+v", missing, s.Sessions[1].Queue)
	}
}

// A checkpoint says what was retained when it came by; a message entered before it came
// by, and on disk after, is newer.
func TestRetainedByTheGreaterNumber(t *testing.T) {
	var j memory
	log := New(&j, 0)
	enter := func(number uint64, payload string) {
		_, err := log.Message(&Message{Number: number, Publish: wire.Publish{Topic: "t", Payload: []byte(payload), Retain: true}}, nil)
		must(t, err)
	}
	enter(1, "old")
	enter(2, "new")
	must(t, log.Retain("t", 1, false))
	if s := j.replay(t, 0); s.Retained["t"] != 2 {
		t.Errorf("retained is %d", s.Retained["t"])
	}
	enter(3, "")
	must(t, log.Retain("t", 2, false))
	s := j.replay(t, 0)
	if _, ok := s.Retained["t"]; ok {
		t.Error("a checkpoint brought back what was cleared")
	}
	if s.Prune() != 0 || len(s.Messages) != 0 {
		t.Errorf("%d messages are kept", len(s.Messages))
	}
}

func TestRecordOfAnotherVersionIsRefused(t *testing.T) {
	for _, record := range [][]byte{{}, {0}, {99}, {byte(kindMessage)}, {byte(kindEnd), 1, 2, 3}, {byte(kindEnd), 1, 0xff, 0xff, 0xff, 0x7f}} {
		if err := new(State).Apply(record); !errors.Is(err, ErrRecord) {
			t.Errorf("% x: %v", record, err)
		}
	}
}

func FuzzApply(f *testing.F) {
	var j memory
	log := New(&j, 0)
	_, _ = log.Message(someMessage(), nil)
	_, _ = log.Session(someSession(3), nil)
	_ = log.Subscribed(3, someSession(3).Subs, someSession(3).Queue, nil)
	_ = log.Unsubscribed(3, []string{"d/pi-1/cmd/#"}, nil)
	_ = log.Presence(someSession(3), nil)
	_ = log.Done(3, 3)
	_ = log.Retain("t", 7, true)
	for _, r := range j.records {
		f.Add(r)
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		s := j.replay(t, 0)
		if err := s.Apply(record); err != nil && !errors.Is(err, ErrRecord) {
			t.Fatalf("% x: %v", record, err)
		}
		s.Prune()
		Accepted(record)
	})
}

// TestReplayIsWhatHappened runs a broker's part of the work against a plain model, with
// checkpoints in between, and replays from the last checkpoint.
func TestReplayIsWhatHappened(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j := new(memory)
		log := New(j, 0)
		sessions := make(map[uint64]*Session)
		messages := make(map[uint64][]byte)
		var number, lastSession uint64
		from := 0
		some := func() *Session {
			keys := slices.Sorted(maps.Keys(sessions))
			if len(keys) == 0 {
				return nil
			}
			return sessions[rapid.SampledFrom(keys).Draw(t, "session")]
		}
		t.Repeat(map[string]func(*rapid.T){
			"new": func(*rapid.T) {
				lastSession++
				s := &Session{Number: lastSession, Key: "service/x", Left: time.UnixMilli(0).UTC()}
				sessions[lastSession] = s
				_, _ = log.Session(s, nil)
			},
			"end": func(t *rapid.T) {
				if s := some(); s != nil {
					delete(sessions, s.Number)
					_ = log.End(s.Number, nil)
				}
			},
			"publish": func(t *rapid.T) {
				number++
				m := &Message{Number: number, Publish: wire.Publish{Topic: "t", Payload: []byte{byte(number)}, QoS: 2}}
				for _, s := range sessions {
					id := uint16(number % 65535)
					if rapid.Bool().Draw(t, "gets it") {
						d := Delivery{ID: id, QoS: 2}
						m.Entries = append(m.Entries, Entry{s.Number, d})
						s.Queue = append(s.Queue, Queued{Message: number, Delivery: d})
					}
				}
				messages[number] = m.Payload
				_, _ = log.Message(m, nil)
			},
			"received": func(t *rapid.T) {
				if s := some(); s != nil && len(s.Queue) > 0 {
					i := rapid.IntRange(0, len(s.Queue)-1).Draw(t, "which")
					s.Queue[i].Received = true
					_ = log.Received(s.Number, s.Queue[i].ID, nil)
				}
			},
			"done": func(t *rapid.T) {
				if s := some(); s != nil && len(s.Queue) > 0 {
					i := rapid.IntRange(0, len(s.Queue)-1).Draw(t, "which")
					_ = log.Done(s.Number, s.Queue[i].ID)
					s.Queue = slices.Delete(s.Queue, i, i+1)
				}
			},
			"checkpoint": func(*rapid.T) {
				from = len(j.records)
				_, _ = log.Mark(nil)
				for _, s := range sessions {
					for _, q := range s.Queue {
						_, _ = log.Keep(&Message{Number: q.Message, Publish: wire.Publish{Topic: "t", Payload: messages[q.Message], QoS: 2}})
					}
					_, _ = log.Session(s, nil)
				}
			},
		})
		state := new(State)
		for _, r := range j.records[from:] {
			if err := state.Apply(r); err != nil {
				t.Fatal(err)
			}
		}
		if missing := state.Prune(); missing != 0 {
			t.Fatalf("%d messages are missing", missing)
		}
		if len(state.Sessions) != len(sessions) {
			t.Fatalf("%d sessions, want %d", len(state.Sessions), len(sessions))
		}
		for n, want := range sessions {
			got := state.Sessions[n]
			if got == nil || !slices.EqualFunc(got.Queue, want.Queue, func(a, b Queued) bool {
				return a.Message == b.Message && a.ID == b.ID && a.Received == b.Received
			}) {
				t.Fatalf("session %d: got %+v, want %+v", n, got, want)
			}
			for _, q := range got.Queue {
				if !bytes.Equal(state.Messages[q.Message].Payload, messages[q.Message]) {
					t.Fatalf("message %d has another payload", q.Message)
				}
			}
		}
	})
}

func TestNotesAreBounded(t *testing.T) {
	j := &stuck{}
	log := New(j, 0)
	m := &Message{Publish: wire.Publish{Topic: "t", Payload: make([]byte, 100<<10)}}
	n := 0
	for log.Note(m) {
		n++
	}
	if n == 0 || n > maxNoted/(100<<10) {
		t.Fatalf("%d notes wait", n)
	}
	for _, w := range j.waiters {
		w.Committed(nil)
	}
	if !log.Note(m) {
		t.Error("no room, though the disk has caught up")
	}
}

// stuck is a journal whose disk is slow.
type stuck struct{ waiters []journal.Waiter }

func (s *stuck) Append(_ []byte, w journal.Waiter) (journal.Position, error) {
	if w != nil {
		s.waiters = append(s.waiters, w)
	}
	return 1, nil
}

func (s *stuck) Checkpoint(journal.Position) error { return nil }

func TestLostRecordMakesTheJournalStale(t *testing.T) {
	j := &memory{refuse: errors.New("full")}
	log := New(j, 0)
	if log.Note(someMessage()) {
		t.Error("noted")
	}
	if log.Stale() {
		t.Error("a note that was lost makes nothing stale")
	}
	if err := log.Done(1, 1); err == nil {
		t.Error("no error")
	}
	if !log.Stale() || log.Stale() {
		t.Error("stale once, then no more")
	}
}

func TestReserveWaitsForRoomAndEndsWithItsContext(t *testing.T) {
	log := New(new(memory), 10_000)
	must(t, log.Reserve(t.Context(), 1<<30)) // more than all there is takes all there is
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- log.Reserve(ctx, 1) }()
	cancel() // had there been room, there were no error
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	log.Release(1 << 30)
	must(t, log.Reserve(t.Context(), 1))
}
