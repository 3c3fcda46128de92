package broker

import (
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/hub/policy"
)

// Retained messages are sent here rather than by mochi, which pushes all that
// match into a client's queue at once and loses what doesn't fit: a service
// that asks for presence/# would learn of a few hundred devices.

// replay is a subscription that is owed the retained messages of its time.
type replay struct {
	sub    packets.Subscription
	topics []string // still to be sent
}

// wantRetained keeps mochi from sending retained messages for a filter that is
// about to be subscribed, and notes that we do.
func (c *client) wantRetained(cl *mqtt.Client, sub *packets.Subscription) {
	handling := sub.RetainHandling
	sub.RetainHandling = 2 // never, to mochi
	_, existed := cl.State.Subscriptions.Get(sub.Filter)
	if handling == 2 || handling == 1 && existed || mqtt.IsSharedFilter(sub.Filter) {
		return // [MQTT-3.3.1-10, -11]; shared subscriptions get none
	}
	c.wanted = append(c.wanted, *sub)
}

// startReplays notes what is retained for the filters just subscribed. It runs
// before the SUBACK, so what is published after that comes once.
func (c *client) startReplays() {
	for _, sub := range c.wanted {
		r := replay{sub: sub}
		for _, pk := range c.b.mqtt.Topics.Messages(sub.Filter) {
			r.topics = append(r.topics, pk.TopicName)
		}
		c.replays = append(c.replays, r)
	}
	c.wanted = nil
}

// sendRetained, after the SUBACK, sends retained messages until the session's inflight table is
// half full; acknowledgements bring us back here. What is sent is the value of
// that moment, so that a newer one is never followed by an older.
func (c *client) sendRetained(cl *mqtt.Client) {
	for len(c.replays) > 0 {
		r := &c.replays[0]
		for len(r.topics) > 0 {
			if cl.State.Inflight.Len() >= maxInflight/2 {
				return
			}
			pk, ok := c.b.mqtt.Topics.Retained.Get(r.topics[0])
			r.topics = r.topics[1:]
			if !ok {
				continue
			}
			if _, err := c.sendOneRetained(cl, r.sub, pk); err != nil {
				c.replays = nil // the connection is closing
				return
			}
		}
		c.replays = c.replays[1:]
	}
	c.replays = nil
}

func (c *client) sendOneRetained(cl *mqtt.Client, sub packets.Subscription, pk packets.Packet) (sent bool, err error) {
	if !policy.Allow(c.subject, policy.Receive, pk.TopicName).Allowed {
		c.b.counters.withheld.Add(1)
		return false, nil
	}
	out := pk.Copy(false)
	out.FixedHeader.Retain = true // [MQTT-3.3.1-8]
	out.FixedHeader.Qos = min(out.FixedHeader.Qos, sub.Qos)
	if sub.Identifier > 0 {
		out.Properties.SubscriptionIdentifier = []int{sub.Identifier} // [MQTT-3.3.4-3]
	}
	if out.FixedHeader.Qos == 0 {
		return true, cl.WritePacket(out)
	}
	id, err := cl.NextPacketID()
	if err != nil {
		return false, nil // none free: cannot be, with a table half full
	}
	out.PacketID = uint16(id)
	cl.State.Inflight.Set(out)
	if c.window.admit(out.PacketID) {
		return true, cl.WritePacket(out)
	}
	return true, nil // sendHeld does
}
