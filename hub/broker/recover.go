package broker

import (
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/registry"
)

// restore brings back what the journal has. Nobody is connected yet. Whoever was, when
// the process ended without saying so, has lost its connection now: its will is due,
// and its session's time begins.
func (b *Broker) restore(state *ingest.State) error {
	if missing := state.Prune(); missing > 0 {
		b.log.Error("the journal names messages that it doesn't have", "messages", missing)
	}
	messages := make(map[uint64]*message, len(state.Messages))
	for number, stored := range state.Messages {
		messages[number] = b.restoreMessage(stored)
	}
	b.lastID.Store(state.LastMessage)
	b.sessions.lastID.Store(state.LastSession)
	for topic, number := range state.Retained {
		if b.ofTheGone(topic) {
			continue // the checkpoint below leaves it out
		}
		m := messages[number]
		m.Retain = true
		b.retained.Set(topic, m)
		b.retention.admit(topic, retainedSize(m))
	}
	now := b.config.Now()
	for _, stored := range state.Sessions {
		if !b.mayComeBack(stored.Key) {
			continue // likewise
		}
		s := b.restoreSession(stored, messages)
		if stored.Connected {
			s.left = now
			if role, id := splitKey(s.key); role == identity.RoleDevice {
				b.lost(id)
			}
		} else {
			// A clock that was set back can't prolong a session, nor one set forward
			// while we ran end it; over a restart there is no other clock.
			gone := max(0, now.Sub(stored.Left))
			s.left = now.Add(-min(gone, s.expiry))
		}
		if s.will != nil {
			s.willDue = s.left.Add(min(s.expiry, seconds(s.will.Delay)))
			b.deadlines.add(s.willDue, s)
			continue
		}
		b.deadlines.add(s.left.Add(s.expiry), s)
	}
	// Written anew at once: so the journal says that nobody is connected.
	b.ingest.MarkStale()
	return nil
}

// mayComeBack reports whether whose session it is may ever connect again. Revoking ends
// sessions, but after the revocation is on disk: a crash can come between.
func (b *Broker) mayComeBack(key string) bool {
	role, id := splitKey(key)
	if role != identity.RoleDevice {
		return true
	}
	status, known := b.config.Devices.Status(id)
	return known && (status.State.MayConnect() || status.State == registry.StateSuspended)
}

// ofTheGone reports whether a topic is a device's that was cut off for good, so that
// nothing is retained below it: a crash can come before that is removed, too.
func (b *Broker) ofTheGone(topic string) bool {
	rest, ok := strings.CutPrefix(topic, "d/")
	if !ok {
		return false
	}
	id, _, _ := strings.Cut(rest, "/")
	status, known := b.config.Devices.Status(id)
	return known && status.State.Final()
}

func (b *Broker) restoreMessage(stored *ingest.Message) *message {
	m := &message{Message: *stored}
	m.position.Store(1) // somewhere before the next checkpoint
	m.size = sizeOf(&m.Publish)
	if m.Expiry != nil {
		m.deadline = m.Time.Add(seconds(*m.Expiry))
	}
	return m
}

func (b *Broker) restoreSession(stored *ingest.Session, messages map[uint64]*message) *Session {
	role, id := splitKey(stored.Key)
	subject := b.subjectOf(role, id)
	if stored.Will != nil && stored.Author != nil {
		subject.OU, subject.SAN, subject.Unseen = stored.Author.OU, stored.Author.SAN, false
	}
	s := b.newSession(stored.Key, subject)
	s.stored, s.number, s.version, s.expiry, s.will = true, stored.Number, stored.Version, stored.Expiry, stored.Will
	for _, sub := range stored.Subs {
		if s.subs == nil {
			s.subs = make(map[string]subscription, len(stored.Subs))
		}
		s.subs[sub.Filter] = subscription{sub}
		b.index.Subscribe(sub.Filter, s, subscription{sub})
	}
	for _, id := range stored.Incoming {
		if s.incoming == nil {
			s.incoming = make(map[uint16]bool)
		}
		s.incoming[id] = true
	}
	for i := range stored.Queue {
		q := &stored.Queue[i]
		m := messages[q.Message]
		if m == nil {
			m = new(message) // PUBREL is all that is left to send
		}
		// Whether it was sent nobody knows: DUP says that it may have been.
		b.queued.Add(s.box.restore(m, q))
	}
	b.sessions.findOrAdd(s.key, func() *Session { return s })
	return s
}

// restore appends an entry as it was.
func (o *outbox) restore(m *message, q *ingest.Queued) int64 {
	if len(o.entries) > 0 {
		o.seq += uint32(q.ID - o.lastID) // identifiers are given out in a circle
	}
	o.lastID = q.ID
	o.entries = append(o.entries, &entry{message: m, Delivery: q.Delivery, seq: o.seq, ready: true, sent: true, received: q.Received})
	o.waiting++
	o.bytes += m.size
	return m.size
}

// lost retains that a device's connection ended with the hub.
func (b *Broker) lost(id string) {
	b.tell(protocol.Presence(id), appendPresence(nil, protocol.PresenceStatus{Reason: protocol.ReasonLost, Since: b.config.Now().UTC()}), 1)
}
