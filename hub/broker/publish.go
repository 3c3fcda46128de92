package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/topic"
	"github.com/fleethub/fleethub/hub/wire"
)

// message is an accepted message, shared by everybody who may get it. Nothing in it
// changes but where it lies and what is kept of its encodings.
type message struct {
	ingest.Message
	origin   *Session  // whose it is; nil: the hub's
	deadline time.Time // when it expires; zero: never
	size     int64     // for quotas
	volatile bool      // the hub's own, about this moment: not in the journal as retained
	position atomic.Uint64
	encoded  [6]atomic.Pointer[wire.Encoded] // of the plain forms; see encode
}

// A message's way in: publish judges it, accept reserves its place in every queue and
// enters it into the journal, Committed acknowledges and delivers it once it is on
// disk. QoS 0 takes a short cut: it waits for no disk.

// publish takes a PUBLISH.
func (c *client) publish(pk *wire.Publish, now time.Time) error {
	b := c.b
	b.counters.messagesReceived.add(c.number, 1)
	b.counters.bytesReceived.add(c.number, uint64(len(pk.Topic)+len(pk.Payload)))
	if err := c.resolve(pk); err != nil {
		return err
	}
	c.count(now)
	if wait := c.rate.take(now); wait > 0 {
		b.counters.throttled.Add(1)
		c.pause(wait)
		if c.cut.Load() {
			return net.ErrClosed
		}
	}
	d := b.config.Allow(c.subject, policy.Publish, pk.Topic)
	if !d.Allowed {
		c.deny(policy.Publish, pk.Topic, d)
		return c.reject(pk, wire.NotAuthorized)
	}
	if pk.QoS == 0 {
		b.counters.published.add(c.number, 1)
		b.pass(c.sender(), c.session, pk)
		return nil
	}
	return c.take12(pk)
}

// resolve replaces a topic alias by its topic [MQTT-3.3.2-7 to -12]. Policy is asked
// about what comes out.
func (c *client) resolve(pk *wire.Publish) error {
	if pk.Alias == 0 {
		return nil
	}
	if pk.Alias > topicAliases {
		return &wire.Error{Code: wire.TopicAliasInvalid, Clause: "MQTT-3.2.2-17", Detail: fmt.Sprintf("topic alias %d is above the maximum of %d", pk.Alias, topicAliases)}
	}
	if c.aliases == nil {
		c.aliases = make([]string, topicAliases+1)
	}
	if pk.Topic != "" {
		c.aliases[pk.Alias] = pk.Topic
		return nil
	}
	if pk.Topic = c.aliases[pk.Alias]; pk.Topic == "" {
		return &wire.Error{Code: wire.ProtocolError, Clause: "MQTT-3.3.2-12", Detail: fmt.Sprintf("topic alias %d stands for no topic yet", pk.Alias)}
	}
	return nil
}

// reject answers a publish that is not accepted. One of QoS 0 is dropped; of QoS 1 or
// 2 it is answered in version 5.0. Version 3.1.1 has no such answer: the server must
// acknowledge or close [MQTT-3.3.5-2], and an acknowledgement would be a lie that
// makes the sender delete its message, so we close.
func (c *client) reject(pk *wire.Publish, code wire.Code) error {
	if pk.QoS == 0 {
		return nil
	}
	if c.version < wire.V5 {
		return errRefused
	}
	if c.flow != nil {
		c.flow.drain() // acknowledgements keep the order of messages [MQTT-4.6.0-2]
	}
	return c.acknowledge(answerTo(pk.QoS), pk.ID, code)
}

// answerTo is what acknowledges a message of QoS 1 or 2.
func answerTo(qos byte) wire.Type {
	if qos == 2 {
		return wire.TypePubrec
	}
	return wire.TypePuback
}

// take12 accepts a message of QoS 1 or 2.
func (c *client) take12(pk *wire.Publish) error {
	b, s := c.b, c.session
	if c.flow == nil {
		c.flow = newFlow()
	}
	if pk.QoS == 2 {
		s.mu.Lock()
		onDisk, known := s.incoming[pk.ID]
		n := len(s.incoming)
		s.mu.Unlock()
		switch {
		case known && onDisk: // [MQTT-4.3.3-10]
			return c.acknowledge(wire.TypePubrec, pk.ID, wire.Success)
		case known:
			return nil // acknowledged when it is
		case n >= b.config.Quotas.ReceiveMaximum && c.version == wire.V5, n >= b.config.Quotas.ReceiveMaximum+maxIncomingExtra:
			return &wire.Error{Code: wire.ReceiveMaximumExceeded, Clause: "MQTT-3.3.4-8", Detail: "more QoS 2 messages are unreleased than the Receive Maximum allows"}
		}
	}
	if c.version == wire.V5 && c.flow.count() >= b.config.Quotas.ReceiveMaximum {
		return &wire.Error{Code: wire.ReceiveMaximumExceeded, Clause: "MQTT-3.3.4-8", Detail: "more messages are unacknowledged than the Receive Maximum allows"}
	}
	m := b.newMessage(pk, c.sender(), s)
	c.flow.add(m.size, b.config.Quotas.ReceiveMaximum)
	b.counters.published.add(c.number, 1)
	p := &publication{b: b, message: m, client: c, id: pk.ID}
	if err := b.accept(b.context, p); err != nil {
		c.flow.done(m.size)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		return c.unaccepted(pk.QoS, pk.ID, err)
	}
	return nil
}

// unaccepted answers a message that can't be stored. The sender keeps it.
func (c *client) unaccepted(qos byte, id uint16, err error) error {
	c.b.counters.unaccepted.Add(1)
	if c.version < wire.V5 {
		return fmt.Errorf("message not stored: %w", err)
	}
	return c.acknowledge(answerTo(qos), id, wire.QuotaExceeded)
}

// sender is the peer as the journal names it.
func (c *client) sender() ingest.Sender {
	return senderOf(c.peer.Identity.Role, c.peer.Identity.ID)
}

func senderOf(role identity.Role, id string) ingest.Sender {
	if role == identity.RoleDevice {
		return ingest.Sender{Role: ingest.SenderDevice, ID: id}
	}
	return ingest.Sender{Role: ingest.SenderService, ID: id}
}

// newMessage makes a message of a PUBLISH, whose octets it copies.
func (b *Broker) newMessage(pk *wire.Publish, from ingest.Sender, origin *Session) *message {
	now := b.config.Now()
	m := &message{origin: origin}
	m.Publish = clonePublish(pk)
	m.Publish.Dup, m.Publish.ID, m.Publish.Alias = false, 0, 0
	m.Number, m.Time, m.From = b.lastID.Add(1), now, from
	m.size = sizeOf(&m.Publish)
	if m.Expiry != nil {
		m.deadline = now.Add(seconds(*m.Expiry))
	}
	return m
}

// sizeOf is what a message takes in memory, about: what every quota counts.
func sizeOf(p *wire.Publish) int64 {
	return int64(len(p.Topic)+len(p.Payload)+ingest.PropertiesSize(p.Props)) + messageOverhead
}

// retainedSize is what a message counts in what is retained; 0 ends the retaining.
func retainedSize(m *message) int {
	if len(m.Payload) == 0 {
		return 0
	}
	return len(m.Payload) + ingest.PropertiesSize(m.Props)
}

// messageOverhead is what a queued message takes besides topic and payload, about.
const messageOverhead = 256

// publication is a message on its way to the disk. It implements journal.Waiter.
type publication struct {
	b       *Broker
	message *message
	client  *client // who waits for the acknowledgement; nil: nobody
	id      uint16  // of the PUBLISH
	matches *topic.Result[*Session, subscription]
	targets []target
	first   [1]target // of targets, if there is one, as mostly
	live    []direct  // QoS 0 deliveries
	pending bool      // counted in Broker.pending
}

// target is a place in a queue that waits for the disk.
type target struct {
	s *Session
	e *entry
}

// accept reserves a place for a message in the queue of everybody who gets it with
// QoS 1 or 2, and enters it into the journal. On an error nothing has happened.
func (b *Broker) accept(ctx context.Context, p *publication) error {
	m := p.message
	if err := b.ingest.Reserve(ctx, m.size); err != nil {
		return err
	}
	b.gate.RLock()
	defer b.gate.RUnlock()
	// However long the disk kept it waiting: who was cut off meanwhile is not heard any
	// more. A cut-off waits for those who are past this; see Broker.through.
	if p.client != nil && p.client.cut.Load() {
		b.ingest.Release(m.size)
		return net.ErrClosed
	}
	p.matches = b.index.Match(m.Topic)
	b.enlist(p)
	if p.client != nil && m.QoS == 2 {
		s := p.client.session
		s.mu.Lock()
		if s.client != p.client { // taken over: the message belongs to nobody any more
			s.mu.Unlock()
			b.withdraw(p)
			return errRefused
		}
		if s.incoming == nil {
			s.incoming = make(map[uint16]bool)
		}
		s.incoming[p.id] = false
		if s.stored {
			m.Session, m.Message.ID = s.number, p.id
		}
		s.mu.Unlock()
	}
	if m.Retain && !m.volatile {
		b.retaining.Lock()
		defer b.retaining.Unlock()
		m.Number = b.lastID.Add(1)
		if !b.retention.admit(m.Topic, retainedSize(m)) {
			b.counters.notRetained.Add(1)
			m.Retain = false
		} else {
			p.pending = true
			if b.pending[m.Topic] == nil {
				b.pending[m.Topic] = new(pendingRetain)
			}
			b.pending[m.Topic].n++
		}
	}
	position, err := b.ingest.Message(b.stored(p), p)
	if err != nil {
		if p.pending {
			b.settleRetain(m)
		}
		b.withdraw(p)
		return err
	}
	m.position.Store(uint64(position))
	return nil
}

// stored is the message as the journal has it.
func (b *Broker) stored(p *publication) *ingest.Message {
	m := &p.message.Message
	if p.message.volatile && m.Retain {
		plain := *m
		plain.Retain = false
		return &plain
	}
	return m
}

// withdraw takes back what accept did before the journal refused.
func (b *Broker) withdraw(p *publication) {
	m := p.message
	for _, t := range p.targets {
		t.s.mu.Lock()
		b.queued.Add(-t.s.box.finish(t.e))
		t.s.mu.Unlock()
	}
	if p.client != nil && m.QoS == 2 {
		s := p.client.session
		s.mu.Lock()
		delete(s.incoming, p.id)
		s.mu.Unlock()
	}
	b.ingest.Release(m.size)
}

// Committed acknowledges the message and delivers it, now that it is on disk. It runs
// on the journal's goroutine, in the order in which messages were entered.
func (p *publication) Committed(err error) {
	b, m, c := p.b, p.message, p.client
	if err != nil {
		b.ingest.MarkStale()
		if p.pending {
			b.retaining.Lock()
			b.settleRetain(m)
			b.retaining.Unlock()
		}
		b.withdraw(p)
		if c != nil {
			c.flow.done(m.size)
			// In doubt, the record may yet come back: told nothing, the sender asks again.
			if errors.Is(err, journal.ErrInDoubt) || c.unaccepted(m.QoS, p.id, err) != nil {
				c.conn.Close()
			}
		}
		return
	}
	b.ingest.Release(m.size)
	if p.pending {
		b.retainOnDisk(m)
	}
	if c != nil {
		if m.QoS == 2 {
			c.session.mu.Lock()
			if _, ok := c.session.incoming[p.id]; ok {
				c.session.incoming[p.id] = true
			}
			// Who has taken over sends the message again, and was told nothing yet.
			if next := c.session.client; next != nil && next != c && next.ready.Load() {
				_ = next.acknowledge(wire.TypePubrec, p.id, wire.Success)
			}
			c.session.mu.Unlock()
		}
		_ = c.acknowledge(answerTo(m.QoS), p.id, wire.Success) // an error means that it is closing
		c.flow.done(m.size)
	}
	for _, t := range p.targets {
		t.s.mu.Lock()
		t.e.ready = true
		b.pump(t.s)
		t.s.mu.Unlock()
	}
	for _, d := range p.live {
		d.c.sendQoS0(m, d.how)
	}
	b.watchers.show(m)
}

var _ journal.Waiter = (*publication)(nil)

// pass delivers a QoS 0 message at once, and enters it into the journal if there is
// room: it waits for no disk, and a crash may lose it.
func (b *Broker) pass(from ingest.Sender, origin *Session, pk *wire.Publish) {
	if pk.Retain || b.watchers.any() {
		m := b.newMessage(pk, from, origin)
		if pk.Retain {
			b.passRetained(m)
		} else if from.Role == ingest.SenderDevice {
			b.note(m)
		}
		b.sendOut(m)
		b.watchers.show(m)
		return
	}
	// Nobody keeps it: neither the message nor its payload, which is the reader's.
	m := passing.Get().(*message)
	m.origin, m.From, m.Publish = origin, from, *pk
	m.Publish.Dup, m.Publish.ID, m.Publish.Alias = false, 0, 0
	m.Number, m.Time = b.lastID.Add(1), b.config.Now()
	if m.Expiry != nil {
		m.deadline = m.Time.Add(seconds(*m.Expiry))
	}
	if from.Role == ingest.SenderDevice {
		b.note(m)
	}
	b.sendOut(m)
	for i := range m.encoded {
		m.encoded[i].Store(nil)
	}
	m.origin, m.Message, m.deadline = nil, ingest.Message{}, time.Time{}
	passing.Put(m)
}

// passing has messages of QoS 0 that have been delivered; they hold nothing.
var passing = sync.Pool{New: func() any { return new(message) }}

// passRetained has a QoS 0 message retained, and entered.
func (b *Broker) passRetained(m *message) {
	b.gate.RLock()
	defer b.gate.RUnlock()
	b.retaining.Lock()
	defer b.retaining.Unlock()
	m.Number = b.lastID.Add(1)
	if !b.retention.admit(m.Topic, retainedSize(m)) {
		b.counters.notRetained.Add(1)
		m.Retain = false
		b.note(m)
		return
	}
	if position, err := b.ingest.Message(&m.Message, nil); err == nil {
		m.position.Store(uint64(position))
	}
	if p := b.pending[m.Topic]; p != nil && len(m.Payload) == 0 {
		p.cleared = m.Number
	}
	b.retain(m)
}

// sendOut delivers a QoS 0 message to whoever is connected.
func (b *Broker) sendOut(m *message) {
	matches := b.index.Match(m.Topic)
	for i := range matches.Direct {
		b.direct(m, &matches.Direct[i])
	}
	for _, group := range matches.Shared {
		if member := b.choose(group); member != nil {
			b.direct(m, member)
		}
	}
}

// note enters a QoS 0 message for those who read the journal.
func (b *Broker) note(m *message) {
	if !b.ingest.Note(&m.Message) {
		b.counters.notNoted.Add(1)
	}
}

// flow counts a client's messages on their way to the disk, and has its reader wait
// while they are too many: nobody else does.
type flow struct {
	mu    sync.Mutex // guards what follows
	less  sync.Cond
	n     int
	bytes int64
}

func newFlow() *flow {
	f := new(flow)
	f.less.L = &f.mu
	return f
}

func (f *flow) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// add counts one more, once there is room for it.
func (f *flow) add(size int64, most int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.n >= most || f.n > 0 && f.bytes+size > pendingBytes {
		f.less.Wait()
	}
	f.n++
	f.bytes += size
}

func (f *flow) done(size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n--
	f.bytes -= size
	f.less.Broadcast()
}

// drain waits until none is on its way.
func (f *flow) drain() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.n > 0 {
		f.less.Wait()
	}
}

// pause keeps the reader from reading on, as long as the connection lasts.
func (c *client) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.conn.Done():
	}
}
