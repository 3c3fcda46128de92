package broker

import (
	"slices"
	"strings"
	"sync"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/hub/policy"
)

// OnACLCheck is asked before every delivery and for every filter that
// OnSubscribe let pass. It runs on the publisher's goroutine, and holds it while
// the receiver's stored messages are being resent, so that order is kept.
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
	allowed := policy.Allow(c.subject, action, topic).Allowed
	if !allowed {
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

// OnPublishDropped counts a message that was lost because its receiver's queue
// was full.
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
