package broker

import (
	"slices"
	"time"

	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/wire"
)

// replay is a subscription that is owed retained messages: those that its queue had no
// room for, and those of QoS 0.
type replay struct {
	sub    subscription
	topics []string
}

// pendingRetain counts the messages to be retained for a topic that are on their way to
// the disk, and has the number of what cleared the topic meanwhile, past them: a QoS 0
// message waits for no disk.
type pendingRetain struct {
	n       int
	cleared uint64
}

// retainOnDisk retains a message that has come from the disk, unless its topic was
// cleared meanwhile.
func (b *Broker) retainOnDisk(m *message) {
	b.retaining.Lock()
	cleared := b.settleRetain(m)
	b.retaining.Unlock()
	if m.Number > cleared {
		b.retain(m)
	}
}

// settleRetain counts a message out of those that are pending, and returns what cleared
// its topic. The caller holds retaining.
func (b *Broker) settleRetain(m *message) (cleared uint64) {
	p := b.pending[m.Topic]
	if p == nil {
		return 0
	}
	if p.n--; p.n == 0 {
		delete(b.pending, m.Topic)
	}
	return p.cleared
}

// retain keeps a message for its topic, or forgets the topic. One that was numbered
// before what is there comes too late.
func (b *Broker) retain(m *message) {
	b.retainedMu.Lock() // over the look and what follows from it
	defer b.retainedMu.Unlock()
	if old, ok := b.retained.Get(m.Topic); ok && old.Number > m.Number {
		return
	}
	if len(m.Payload) == 0 { // [MQTT-3.3.1-6]
		b.retained.Delete(m.Topic)
		return
	}
	b.retained.Set(m.Topic, m)
}

// collectRetained queues the retained messages of those names for new subscriptions of a
// stored session, as many as fit into a queue; they may not be sent before the SUBACK, so the caller makes them ready.
// The caller holds s.mu.
func (b *Broker) collectRetained(s *Session, subs []subscription, names [][]string) (entries []*entry, queued []ingest.Queued) {
	now := b.config.Now()
	looks := 0
	for i, sub := range subs {
		r := replay{sub: sub}
		for j, name := range names[i] {
			if looks++; sub.QoS == 0 || !s.stored || looks > maxCollected || s.box.waiting >= deviceQueue/2 {
				r.topics = append(r.topics, names[i][j:]...)
				break
			}
			m, ok := b.retained.Get(name)
			if !ok || expired(m, now) {
				continue
			}
			h := retainedHow(m, sub)
			if h.qos == 0 || m.volatile {
				r.topics = append(r.topics, name)
				continue
			}
			e := b.queue(s, m, h)
			if e == nil {
				r.topics = append(r.topics, name)
				continue
			}
			entries = append(entries, e)
			queued = append(queued, ingest.Queued{Message: m.Number, Delivery: e.Delivery})
		}
		if len(r.topics) > 0 {
			s.dropReplays(sub.Filter)
			s.replays = append(s.replays, r)
		}
	}
	return entries, queued
}

// maxCollected bounds how many retained messages one SUBSCRIBE looks at under the
// session's lock; the others come by and by.
const maxCollected = 5000

func (s *Session) dropReplays(filter string) {
	s.replays = slices.DeleteFunc(s.replays, func(r replay) bool { return r.sub.Filter == filter })
}

// retainedHow says how a retained message answers a subscription [MQTT-3.3.1-8].
func retainedHow(m *message, sub subscription) how {
	h := how{qos: min(m.QoS, sub.QoS), retain: true}
	if sub.SubID != 0 {
		h.subIDs = []int{sub.SubID} // [MQTT-3.3.4-3]
	}
	return h
}

// replay sends or queues retained messages that are still owed, while the queue is
// short; acknowledgements bring us back here. What goes out is the value of that
// moment, so that a newer one is never followed by an older. The caller holds s.mu,
// and everything queued is sent.
func (b *Broker) replay(s *Session) {
	c := s.client
	for len(s.replays) > 0 {
		r := &s.replays[0]
		for len(r.topics) > 0 {
			if s.box.inflight >= c.window {
				return
			}
			if c.conn.Lags() {
				c.conn.OnDrain(func() { b.pumpLocked(s) })
				return
			}
			m, ok := b.retained.Get(r.topics[0])
			r.topics = r.topics[1:]
			if !ok || expired(m, b.config.Now()) || !c.mayReceive(m) {
				continue
			}
			b.replayOne(s, m, retainedHow(m, r.sub))
		}
		s.replays = s.replays[1:]
	}
	s.replays = nil
}

func (b *Broker) replayOne(s *Session, m *message, h how) {
	c := s.client
	if h.qos == 0 {
		_ = c.sendMessage(m, h, 0, false) // an error means that it is closing
		return
	}
	e := b.queue(s, m, h)
	if e == nil {
		return
	}
	if s.stored && !m.volatile {
		_ = b.ingest.Subscribed(s.number, nil, []ingest.Queued{{Message: m.Number, Delivery: e.Delivery}}, nil)
	}
	e.ready = true
	if c.sendMessage(m, h, e.ID, false) == nil {
		e.sent, e.out = true, true
		s.box.inflight++
		s.box.next++
	}
}

// forgetRetained removes everything retained below a revoked device's topics.
func (b *Broker) forgetRetained(id string) {
	b.retention.forget("d/" + id + "/")
	for _, name := range b.retained.Match("d/" + id + "/#") {
		b.forgetOne(name)
	}
}

// forgetOne removes what is retained for a topic, here and in the journal.
func (b *Broker) forgetOne(name string) {
	b.retaining.Lock()
	defer b.retaining.Unlock()
	number := b.lastID.Add(1)
	if p := b.pending[name]; p != nil {
		p.cleared = number
	}
	_ = b.ingest.Retain(name, number, true) // an error marks the journal as stale
	gone := &message{Message: ingest.Message{Number: number, Publish: wire.Publish{Topic: name}}}
	b.retain(gone)
}

// forgetExpired removes retained messages whose time is over.
func (b *Broker) forgetExpired(now time.Time) {
	var over []string
	b.retained.Range(func(name string, m *message) bool {
		if expired(m, now) {
			over = append(over, name)
		}
		return true
	})
	for _, name := range over {
		b.retention.admit(name, 0)
		b.forgetOne(name)
	}
}
