// Package ingest is durable acceptance: what the hub has acknowledged is on disk.
//
// Everything that must outlive the process is a record in the journal: a message
// with its place in the queue of every stored session, an acknowledgement, a
// subscription, a will. Package broker enters records and hears when they are on
// disk; only then does it acknowledge. A State replays them.
//
//   - ingest.go: the Log, which enters records and bounds what waits for the disk
//   - record.go, decode.go: the records, octet by octet
//   - state.go: what a replay leaves
//
// Records are entered in the order in which the broker decides, which is the order
// in which they are replayed. One that nobody waits for (an acknowledgement by a
// subscriber) may be lost in a crash; what follows it in the journal is lost then,
// too, so a replay always sees a moment that was.
package ingest

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/wire"
)

// Journal is what a Log needs of the store below it. *journal.Journal satisfies it.
type Journal interface {
	// Append enters a copy of a record without waiting for the disk. w, which may be
	// nil, is told when it is on disk, or that it isn't.
	Append(record []byte, w journal.Waiter) (journal.Position, error)
	// Checkpoint has replays start at that position from now on.
	Checkpoint(journal.Position) error
}

// Log enters records. It is safe for concurrent use.
type Log struct {
	journal Journal
	room    *semaphore.Weighted // octets that messages may have waiting for the disk
	size    int64
	scratch sync.Pool // of *[]byte

	noted    atomic.Int64  // octets of notes since a mark was last on disk, about
	unmarked atomic.Int64  // octets of notes since the last mark
	stale    atomic.Bool   // a record was lost: the journal is behind the broker; see Stale
	appended atomic.Uint64 // octets since the process began
}

// defaultWaiting is how many octets may wait for the disk if New isn't told.
const defaultWaiting = 16 << 20

// New returns a Log over a journal that has been replayed. waiting bounds the octets
// of messages that are accepted and not yet on disk; 0: 16 MiB. The journal's own
// buffer must be larger, since small records don't wait.
func New(j Journal, waiting int64) *Log {
	if waiting <= 0 {
		waiting = defaultWaiting
	}
	return &Log{journal: j, room: semaphore.NewWeighted(waiting), size: waiting}
}

// Reserve waits until a message of n octets may be accepted. Whoever accepts it
// gives the room back with Release once it is on disk. The wait is the sender's
// own: nobody else's is any longer for it.
func (l *Log) Reserve(ctx context.Context, n int64) error {
	return l.room.Acquire(ctx, l.share(n))
}

// Release gives back what was reserved.
func (l *Log) Release(n int64) { l.room.Release(l.share(n)) }

// share is what a message takes of the room: no more than there is.
func (l *Log) share(n int64) int64 { return min(n+recordOverhead, l.size) }

// recordOverhead is what a message's record has besides payload and topic, about.
const recordOverhead = 128

// Stale reports whether a record that nobody waited for could not be entered, and
// forgets it. The broker then writes all of its state anew: see Checkpoint.
func (l *Log) Stale() bool { return l.stale.Swap(false) }

// MarkStale notes that the journal lacks something: a record that was entered did not
// get to the disk.
func (l *Log) MarkStale() { l.stale.Store(true) }

// Appended returns the octets entered so far.
func (l *Log) Appended() uint64 { return l.appended.Load() }

// Checkpoint has replays start at that position.
func (l *Log) Checkpoint(p journal.Position) error { return l.journal.Checkpoint(p) }

// enter encodes and appends one record.
func (l *Log) enter(w journal.Waiter, encode func([]byte) []byte) (journal.Position, error) {
	buf, ok := l.scratch.Get().(*[]byte)
	if !ok {
		buf = new([]byte)
	}
	*buf = encode((*buf)[:0])
	p, err := l.journal.Append(*buf, w)
	if err == nil {
		l.appended.Add(uint64(len(*buf)))
	} else {
		l.stale.Store(true)
	}
	if cap(*buf) <= keptScratch {
		l.scratch.Put(buf)
	}
	return p, err
}

// keptScratch bounds the buffers that are kept for the next record.
const keptScratch = 64 << 10

// Message enters a message with its entries. w is told when it is on disk.
func (l *Log) Message(m *Message, w journal.Waiter) (journal.Position, error) {
	return l.enter(w, func(b []byte) []byte { return appendMessage(b, kindMessage, m) })
}

// PropertiesSize is what a message's properties take in memory and in a record, about, in
// octets.
func PropertiesSize(p *wire.MessageProperties) int {
	if p == nil {
		return 0
	}
	n := propertiesOverhead + len(p.ContentType) + len(p.ResponseTopic) + len(p.Correlation)
	for _, u := range p.User {
		n += propertiesOverhead + len(u.Key) + len(u.Value)
	}
	return n
}

// propertiesOverhead is what properties, and each user property, take besides their text.
const propertiesOverhead = 64

// maxNoted bounds the octets of notes that wait for the disk; markEvery is how many of
// them pass until one is waited for.
const (
	maxNoted  = 8 << 20
	markEvery = 256 << 10
)

// Note enters a message that nobody waits for, for readers of the journal. It reports
// false, and enters nothing, if too much waits for the disk already.
func (l *Log) Note(m *Message) bool {
	n := int64(len(m.Payload)+len(m.Topic)+PropertiesSize(m.Props)) + recordOverhead
	if l.noted.Load()+n > maxNoted {
		return false
	}
	l.noted.Add(n)
	var w journal.Waiter
	if sum := l.unmarked.Add(n); sum > markEvery {
		l.unmarked.Add(-sum)
		w = mark{l, sum}
	}
	_, err := l.enterNote(w, m)
	if err != nil && w != nil {
		w.Committed(err)
	}
	return err == nil
}

// mark is a waiter for a stretch of notes.
type mark struct {
	log    *Log
	octets int64
}

// Committed implements journal.Waiter.
func (m mark) Committed(error) { m.log.noted.Add(-m.octets) }

// enterNote is Message without the consequence of an error: nothing depends on a note.
func (l *Log) enterNote(w journal.Waiter, m *Message) (journal.Position, error) {
	stale := l.stale.Load()
	p, err := l.Message(m, w)
	if err != nil && !stale {
		l.stale.Store(false)
	}
	return p, err
}

// Keep enters a message again, so that what lies before a checkpoint may go.
func (l *Log) Keep(m *Message) (journal.Position, error) {
	return l.enter(nil, func(b []byte) []byte { return appendMessage(b, kindKept, m) })
}

// Session enters all of a session, in place of what was entered about it before.
func (l *Log) Session(s *Session, w journal.Waiter) (journal.Position, error) {
	return l.enter(w, func(b []byte) []byte { return appendSession(b, s) })
}

// Presence enters whether a session has a connection, its expiry and will.
func (l *Log) Presence(s *Session, w journal.Waiter) error {
	_, err := l.enter(w, func(b []byte) []byte { return appendPresence(b, s) })
	return err
}

// End enters that a session is gone with everything it had.
func (l *Log) End(session uint64, w journal.Waiter) error {
	return l.about(kindEnd, session, 0, w)
}

// Done enters that an outgoing message is acknowledged, or was dropped.
func (l *Log) Done(session uint64, id uint16) error { return l.about(kindDone, session, id, nil) }

// Received enters that the client has an outgoing QoS 2 message: PUBREL is due.
func (l *Log) Received(session uint64, id uint16, w journal.Waiter) error {
	return l.about(kindReceived, session, id, w)
}

// Released enters that an incoming QoS 2 message is complete: its identifier is free.
func (l *Log) Released(session uint64, id uint16, w journal.Waiter) error {
	return l.about(kindReleased, session, id, w)
}

func (l *Log) about(k kind, session uint64, id uint16, w journal.Waiter) error {
	_, err := l.enter(w, func(b []byte) []byte { return appendAbout(b, k, session, id) })
	return err
}

// Subscribed enters subscriptions, and the retained messages that they bring.
func (l *Log) Subscribed(session uint64, subs []Subscription, queued []Queued, w journal.Waiter) error {
	_, err := l.enter(w, func(b []byte) []byte { return appendSubscribed(b, session, subs, queued) })
	return err
}

// Unsubscribed enters that subscriptions have ended.
func (l *Log) Unsubscribed(session uint64, filters []string, w journal.Waiter) error {
	_, err := l.enter(w, func(b []byte) []byte { return appendUnsubscribed(b, session, filters) })
	return err
}

// Retain enters what is retained for a topic: the message of that number or, if
// cleared, nothing since. A Message with Retain set says so by itself. Of two
// records about one topic the greater number counts, wherever they lie.
func (l *Log) Retain(topic string, number uint64, cleared bool) error {
	_, err := l.enter(nil, func(b []byte) []byte { return appendRetained(b, topic, number, cleared) })
	return err
}

// Mark enters nothing that means anything. When w is told, the waiters of everything
// entered before have been.
func (l *Log) Mark(w journal.Waiter) (journal.Position, error) {
	return l.enter(w, func(b []byte) []byte { return append(b, byte(kindMark)) })
}
