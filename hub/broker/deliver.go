package broker

import (
	"slices"
	"sync"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/topic"
	"github.com/fleethub/fleethub/hub/wire"
)

type subscriber = topic.Subscriber[*Session, subscription]

// how says how one session gets one message.
type how struct {
	qos    byte
	retain bool
	subIDs []int
}

// direct is a QoS 0 delivery of a message that waits for the disk.
type direct struct {
	c   *client
	how how
}

// merge says how a message goes to a session that has one or more subscriptions for
// it: once, with the highest QoS and all identifiers [MQTT-3.3.4-2 to -5]. ok is false
// if it doesn't get it, being its publisher [MQTT-3.8.3-3].
func merge(m *message, to *subscriber) (h how, ok bool) {
	for i := range to.Subs {
		sub := &to.Subs[i]
		if sub.NoLocal && m.origin == to.Key {
			continue
		}
		ok = true
		h.qos = max(h.qos, sub.QoS)
		h.retain = h.retain || m.Retain && sub.RetainAsPublished // [MQTT-3.3.1-12, -13]
		if sub.SubID != 0 && !slices.Contains(h.subIDs, sub.SubID) {
			h.subIDs = append(h.subIDs, sub.SubID)
		}
	}
	h.qos = min(h.qos, m.QoS)
	return h, ok
}

// enlist reserves the places of a message in the queues of its receivers, and notes
// those that get it with QoS 0.
func (b *Broker) enlist(p *publication) {
	p.targets = p.first[:0]
	for i := range p.matches.Direct {
		b.enlistOne(p, &p.matches.Direct[i])
	}
	for _, group := range p.matches.Shared {
		if member := b.choose(group); member != nil {
			b.enlistOne(p, member)
		}
	}
}

func (b *Broker) enlistOne(p *publication, to *subscriber) {
	m, s := p.message, to.Key
	h, ok := merge(m, to)
	if !ok {
		return
	}
	if h.qos == 0 {
		if c := s.reader.Load(); c != nil {
			p.live = append(p.live, direct{c, h})
		}
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := b.queue(s, m, h)
	if e == nil {
		return
	}
	p.targets = append(p.targets, target{s, e})
	if s.stored {
		m.Entries = append(m.Entries, ingest.Entry{Session: s.number, Delivery: e.Delivery})
	}
}

// queue adds a message to a session's queue, within the session's quota; nil if it may
// not. The caller holds s.mu.
func (b *Broker) queue(s *Session, m *message, h how) *entry {
	quotas := &b.config.Quotas
	most := quotas.QueuedMessages
	if most <= 0 {
		most = deviceQueue
		if s.subject.Role != identity.RoleDevice {
			most = serviceQueue
		}
	}
	full := func() bool {
		return s.box.waiting >= most || s.box.bytes+m.size > quotas.QueuedBytes || s.client == nil && b.queued.Load()+m.size > quotas.TotalBytes
	}
	if full() && s.client == nil && b.config.Now().Sub(s.lookedAt) > time.Second {
		b.dropExpired(s)
	}
	if s.gone || full() {
		b.counters.dropped.Add(1)
		return nil
	}
	e := s.box.add(m, ingest.Delivery{QoS: h.qos, Retain: h.retain, SubIDs: h.subIDs})
	if e == nil {
		b.counters.dropped.Add(1)
		return nil
	}
	b.queued.Add(m.size)
	return e
}

// dropExpired makes room in a queue by what has expired in it.
func (b *Broker) dropExpired(s *Session) {
	now := b.config.Now()
	s.lookedAt = now
	for _, e := range slices.Clone(s.box.entries) {
		if !e.done && e.ready && !e.sent && expired(e.message, now) { // [MQTT-4.3.3-7]
			b.drop(s, e)
		}
	}
}

func expired(m *message, now time.Time) bool {
	return !m.deadline.IsZero() && !now.Before(m.deadline)
}

// drop takes a message out of a queue unsent.
func (b *Broker) drop(s *Session, e *entry) {
	b.queued.Add(-s.box.finish(e))
	b.doneOnDisk(s, e.ID)
}

// doneOnDisk enters that a message is out of a stored session's queue.
func (b *Broker) doneOnDisk(s *Session, id uint16) {
	if s.stored {
		_ = b.ingest.Done(s.number, id) // an error marks the journal as stale
	}
}

// choose picks one member of a shared subscription, by turns: a connected one that
// keeps up if there is any, then a connected one, then any [MQTT-4.8.2-4].
func (b *Broker) choose(g *topic.Group[*Session, subscription]) *subscriber {
	n := len(g.Members)
	if n == 0 {
		return nil
	}
	start := g.Next()
	var connected, stored *subscriber
	for i := range n {
		member := &g.Members[(start+i)%n]
		c := member.Key.reader.Load()
		switch {
		case c != nil && !c.conn.Lags():
			return member
		case c != nil && connected == nil:
			connected = member
		case stored == nil:
			stored = member
		}
	}
	if connected != nil {
		return connected
	}
	return stored
}

// direct sends a QoS 0 message to a session that is connected. One that lags misses
// it.
func (b *Broker) direct(m *message, to *subscriber) {
	h, ok := merge(m, to)
	if !ok {
		return
	}
	if c := to.Key.reader.Load(); c != nil {
		c.sendQoS0(m, h)
	}
}

func (c *client) sendQoS0(m *message, h how) {
	switch {
	case !c.ready.Load():
	case c.conn.Lags():
		c.b.counters.dropped.Add(1)
	case c.mayReceive(m):
		_ = c.sendMessage(m, h, 0, false) // an error means that it is closing
	}
}

// mayReceive asks policy once more, for rules and labels may have changed since the
// subscription.
func (c *client) mayReceive(m *message) bool {
	if c.b.config.Allow(c.subject, policy.Receive, m.Topic).Allowed {
		return true
	}
	c.b.counters.withheld.Add(1)
	return false
}

// pump sends what a session's queue has for its connection, in order, as far as the
// client's window and the disk allow. The caller holds s.mu.
func (b *Broker) pump(s *Session) {
	c := s.client
	if c == nil || !c.ready.Load() {
		return
	}
	for s.box.next < len(s.box.entries) {
		e := s.box.entries[s.box.next]
		switch {
		case e.done:
			s.box.next++
			continue
		case !e.ready, s.box.inflight >= c.window:
			return
		case !e.received && c.conn.Lags():
			c.conn.OnDrain(func() { b.pumpLocked(s) })
			return
		case e.received:
			_ = c.acknowledge(wire.TypePubrel, e.ID, wire.Success)
		case !e.sent && expired(e.message, b.config.Now()), !c.mayReceive(e.message):
			b.drop(s, e)
			continue
		default:
			sent := c.sendMessage(e.message, how{e.QoS, e.Retain, e.SubIDs}, e.ID, e.sent)
			if sent == errTooLarge { // [MQTT-3.1.2-25]
				b.counters.tooLarge.Add(1)
				b.drop(s, e)
				continue
			}
			if sent != nil {
				return // it is closing
			}
		}
		e.sent, e.out = true, true
		s.box.inflight++
		s.box.next++
	}
	b.replay(s)
}

func (b *Broker) pumpLocked(s *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.pump(s)
}

// sendMessage writes a PUBLISH.
func (c *client) sendMessage(m *message, h how, id uint16, dup bool) error {
	c.b.counters.messagesSent.add(c.number, 1)
	if c.aliasLimit > 0 {
		return c.sendAliased(m, h, id, dup)
	}
	e, err := c.b.encode(m, h, c.version)
	if err != nil {
		return err
	}
	if c.limit > 0 && e.Len() > int(c.limit) {
		return errTooLarge
	}
	buf := scratch.Get().(*[]byte)
	*buf = e.AppendTo((*buf)[:0], id, dup)
	err = c.write(*buf)
	if cap(*buf) <= keptScratch {
		scratch.Put(buf)
	}
	return err
}

// scratch has buffers in which a packet is put together; they hold nothing between
// uses.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// keptScratch bounds the buffers that go back.
const keptScratch = 64 << 10

var errTooLarge = &wire.Error{Code: wire.PacketTooLarge, Detail: "the packet is larger than the client takes"}

// encode returns a message as it goes out. The plain forms, which nearly everybody
// gets, are encoded once for all receivers.
func (b *Broker) encode(m *message, h how, version byte) (*wire.Encoded, error) {
	plain := !h.retain && len(h.subIDs) == 0 && (m.deadline.IsZero() || version < wire.V5)
	slot := &m.encoded[h.qos+3*(version-wire.V311)]
	if plain {
		if e := slot.Load(); e != nil {
			return e, nil
		}
	}
	out := b.outgoing(m, h, version)
	e, err := wire.EncodePublish(&out, version)
	if err == nil && plain {
		slot.Store(e)
	}
	return e, err
}

// outgoing is a message as one receiver gets it.
func (b *Broker) outgoing(m *message, h how, version byte) wire.Publish {
	out := m.Publish
	out.QoS, out.Retain = h.qos, h.retain
	if version < wire.V5 {
		out.Props, out.Expiry = nil, nil
		return out
	}
	out.SubIDs = h.subIDs
	if !m.deadline.IsZero() { // less the time that it has waited [MQTT-3.3.2-6]
		left := uint32(max(0, m.deadline.Sub(b.config.Now())+time.Second-1) / time.Second)
		out.Expiry = &left
	}
	return out
}

// outAliases are the topic aliases that we have given to a client's topics. The lock
// is held over the write, so that an alias is never used before it is explained.
type outAliases struct {
	mu sync.Mutex
	m  map[string]uint16
}

// sendAliased is sendMessage for a client that takes topic aliases: the first topics
// that it gets have one [MQTT-3.1.2-26].
func (c *client) sendAliased(m *message, h how, id uint16, dup bool) error {
	out := c.b.outgoing(m, h, c.version)
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	alias, known := c.out.m[m.Topic]
	switch {
	case known:
		out.Topic, out.Alias = "", alias
	case len(c.out.m) < int(c.aliasLimit):
		alias = uint16(len(c.out.m) + 1)
		out.Alias = alias
	}
	e, err := wire.EncodePublish(&out, c.version)
	if err != nil {
		return err
	}
	if c.limit > 0 && e.Len() > int(c.limit) {
		return errTooLarge
	}
	if err := c.write(e.AppendTo(nil, id, dup)); err != nil {
		return err
	}
	if !known && alias > 0 {
		if c.out.m == nil {
			c.out.m = make(map[string]uint16)
		}
		c.out.m[m.Topic] = alias
	}
	return nil
}
