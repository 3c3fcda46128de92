package broker

import (
	"slices"
	"strings"
	"sync"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/hub/policy"
)

// route gives an accepted message to everybody who may have it: retained, then
// to watchers, then to subscribers, live or stored. When it returns, the message
// is in the connection's write buffer or in the session's queue of each. mochi
// would put it into a queue of a few hundred packets per client, and lose it,
// whatever its QoS, where that is full.
func (b *Broker) route(pk packets.Packet) {
	if pk.FixedHeader.Retain {
		b.mqtt.Topics.RetainMessage(pk.Copy(false))
	}
	subscribers := b.mqtt.Topics.Subscribers(pk.TopicName)
	for _, s := range subscribers.InlineSubscriptions {
		s.Handler(nil, s.Subscription, pk)
	}
	if len(subscribers.Shared) > 0 {
		b.selectShared(subscribers)
	}
	for key, sub := range subscribers.Subscriptions {
		if cl, ok := b.mqtt.Clients.Get(key); ok {
			b.deliver(cl, sub, pk)
		}
	}
}

// selectShared picks one subscriber of each shared subscription, a connected
// one if there is any.
func (b *Broker) selectShared(subscribers *mqtt.Subscribers) {
	subscribers.SharedSelected = make(map[string]packets.Subscription)
	for _, members := range subscribers.Shared {
		var chosen string
		for key := range members { // in random order
			chosen = key
			if cl, ok := b.mqtt.Clients.Get(key); ok && !cl.Closed() {
				break
			}
		}
		sub := members[chosen]
		if other, ok := subscribers.SharedSelected[chosen]; ok {
			sub = other.Merge(sub)
		}
		subscribers.SharedSelected[chosen] = sub
	}
	subscribers.MergeSharedSelected()
}

// deliver gives one message to one subscriber. Policy is asked again, for rules
// and labels may have changed since it subscribed. The publisher's goroutine
// waits here while the subscriber's stored messages are being resent, and for
// nothing else.
//
// Full queues: QoS 0 is dropped for a subscriber that lags; QoS 1 and 2 are
// dropped when maxInflight of them are unacknowledged. Both are counted.
func (b *Broker) deliver(cl *mqtt.Client, sub packets.Subscription, pk packets.Packet) {
	c := clientOf(cl)
	if c == nil || sub.NoLocal && pk.Origin == cl.ID { // [MQTT-3.8.3-3]
		return
	}
	if !policy.Allow(c.subject, policy.Receive, pk.TopicName).Allowed {
		b.counters.withheld.Add(1)
		return
	}
	<-c.ready
	out := pk // what the two share, nobody changes
	out.FixedHeader.Dup, out.PacketID = false, 0
	out.FixedHeader.Qos = min(pk.FixedHeader.Qos, sub.Qos)
	out.FixedHeader.Retain = pk.FixedHeader.Retain && sub.RetainAsPublished && c.version == 5 // [MQTT-3.3.1-12, -13]
	out.Properties.SubscriptionIdentifier = identifiers(sub)
	if out.FixedHeader.Qos == 0 {
		conn := c.conn.Load()
		switch {
		case conn == nil || cl.Closed():
		case conn.Lags():
			b.counters.dropped.Add(1)
		default:
			_ = cl.WritePacket(out) // an error means that it is closing
		}
		return
	}
	switch successor, err := c.enqueue(cl, &out); {
	case successor != nil:
		<-successor.ready
		if next, ok := b.mqtt.Clients.Get(cl.ID); ok && next != cl {
			b.deliver(next, sub, pk)
			return
		}
		b.counters.dropped.Add(1)
	case err != nil:
		b.counters.dropped.Add(1)
	case !cl.Closed():
		_ = cl.WritePacket(out) // or it is held back by the window, or closing
	}
}

// identifiers returns the subscription identifiers that go with a message
// [MQTT-3.3.4-3].
func identifiers(sub packets.Subscription) []int {
	var ids []int
	for _, id := range sub.Identifiers {
		if id > 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// enqueue enters a QoS 1 or 2 message into the session and gives it a packet
// identifier. If the session has just passed to another connection, it returns
// that: entered here, the message would be lost.
func (c *client) enqueue(cl *mqtt.Client, out *packets.Packet) (successor *client, err error) {
	c.queue.Lock()
	defer c.queue.Unlock()
	if c.successor != nil {
		return c.successor, nil
	}
	if cl.State.Inflight.Len() >= maxInflight {
		return nil, packets.ErrQuotaExceeded
	}
	id, err := cl.NextPacketID()
	if err != nil {
		return nil, err
	}
	out.PacketID = uint16(id)
	cl.State.Inflight.Set(*out)
	return nil, nil
}

// OnACLCheck is asked for every filter that OnSubscribe let pass, and before
// each delivery of a will, which mochi routes itself.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	c := clientOf(cl)
	if c == nil {
		return false
	}
	action := policy.Receive
	switch {
	case write:
		action = policy.Publish
	case strings.HasPrefix(topic, "$share/"), strings.ContainsAny(topic, "+#"):
		action = policy.Subscribe
	}
	if !policy.Allow(c.subject, action, topic).Allowed {
		h.b.counters.withheld.Add(1)
		return false
	}
	<-c.ready
	return true
}

// open lets deliveries reach the client.
func (c *client) open() {
	if c.ready != nil {
		c.opened.Do(func() { close(c.ready) })
	}
}

// OnPublishDropped counts a will that was lost because its receiver's queue was
// full.
func (h *hook) OnPublishDropped(*mqtt.Client, packets.Packet) { h.b.counters.dropped.Add(1) }

// inherit prepares a stored session for its client: it drops the subscriptions
// and queued messages that policy no longer allows, and takes the others out of
// mochi's hands, which would resend them in any order.
func (b *Broker) inherit(c *client, existing *mqtt.Client) {
	for filter := range existing.State.Subscriptions.GetAll() {
		if !policy.Allow(c.subject, policy.Subscribe, filter).Allowed {
			existing.State.Subscriptions.Delete(filter)
			b.mqtt.Topics.Unsubscribe(filter, existing.ID)
			b.counters.withheld.Add(1)
		}
	}
	if old := clientOf(existing); old != nil {
		old.queue.Lock()
		old.successor = c // from here on, deliveries wait for us
		old.queue.Unlock()
	}
	now := b.config.Now().Unix()
	for _, pk := range existing.State.Inflight.GetAll(false) {
		existing.State.Inflight.Delete(pk.PacketID)
		if pk.FixedHeader.Type == packets.Publish {
			if pk.Expiry > 0 && pk.Expiry < now {
				continue // [MQTT-3.3.2-5]
			}
			if !policy.Allow(c.subject, policy.Receive, pk.TopicName).Allowed {
				b.counters.withheld.Add(1)
				continue
			}
		}
		c.backlog = append(c.backlog, pk)
	}
	slices.SortStableFunc(c.backlog, func(x, y packets.Packet) int {
		if d := x.Created - y.Created; d != 0 {
			return int(d)
		}
		return x.FixedHeader.Remaining - y.FixedHeader.Remaining // see OnPublish
	})
}

// resend sends what the session had queued, in order, before anything new.
// Deliveries wait meanwhile, so no new message can take one of the identifiers.
func (c *client) resend(cl *mqtt.Client) {
	for _, pk := range c.backlog {
		cl.State.Inflight.Set(pk)
	}
	for _, pk := range c.backlog {
		if pk.FixedHeader.Type == packets.Publish {
			pk.FixedHeader.Dup = true // [MQTT-3.3.1-1]
		} else {
			c.window.admit(pk.PacketID) // PUBREL: its message counts until PUBCOMP
		}
		_ = cl.WritePacket(pk) // held back by the window, or closing
	}
	c.backlog = nil
}

// window keeps a client's Receive Maximum [MQTT-3.3.4-9]: no more than limit QoS
// 1 and 2 messages are unacknowledged at a time. The others wait in the
// session's inflight table; held has their identifiers, in order.
type window struct {
	limit int // set before the first use

	mu      sync.Mutex // guards what follows
	out     map[uint16]struct{}
	held    []uint16
	granted uint16 // the one of held that is being sent; 0: none
}

// admit reports whether the message may be sent now. If not, it is held.
func (w *window) admit(id uint16) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.out[id]; ok || id == w.granted {
		return true
	}
	if len(w.held) > 0 || len(w.out) >= w.limit {
		w.held = append(w.held, id)
		return false
	}
	w.send(id)
	return true
}

func (w *window) send(id uint16) {
	if w.out == nil {
		w.out = make(map[uint16]struct{})
	}
	w.out[id] = struct{}{}
}

// release makes room for another message.
func (w *window) release(id uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.out, id)
}

// next returns the first message that is held, if there is room for it. It
// stays at the head of the queue, so that nothing overtakes it, until sent.
func (w *window) next() (uint16, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.held) == 0 || len(w.out) >= w.limit {
		return 0, false
	}
	w.granted = w.held[0]
	w.send(w.granted)
	return w.granted, true
}

// sent takes the message that next returned out of the queue. Without wasSent
// it no longer exists and counts for nothing.
func (w *window) sent(wasSent bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !wasSent {
		delete(w.out, w.granted)
	}
	w.granted = 0
	if w.held = w.held[1:]; len(w.held) == 0 {
		w.held = nil
	}
}

// sendHeld sends messages that there is room for now.
func (c *client) sendHeld(cl *mqtt.Client) {
	for {
		id, ok := c.window.next()
		if !ok {
			return
		}
		pk, ok := cl.State.Inflight.Get(id)
		ok = ok && pk.FixedHeader.Type == packets.Publish
		if ok {
			_ = cl.WritePacket(pk)
		}
		c.window.sent(ok)
	}
}
