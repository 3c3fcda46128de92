package broker

import (
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/hub/policy"
)

// A message's way in: readPublish judges it, mochi checks its form, OnPublish
// acts on the verdict and routes it, OnPublished acknowledges it.
//
// mochi would do the judging and acknowledging itself, were its client not
// marked inline (see OnConnect). It would acknowledge before it routes, keep
// one table of packet identifiers for both directions, so that a device's
// message 1 deletes the hub's unacknowledged command 1, answer a repeated QoS 2
// message with an error, and send a DISCONNECT to 3.1.1 clients, which know
// none.

// verdict is what becomes of the publish that is being read.
type verdict uint8

const (
	rejected   verdict = iota // by policy: answered, not routed
	accepted                  // routed, then acknowledged
	duplicated                // QoS 2, routed before: acknowledged only [MQTT-4.3.3-10]
)

// readPublish judges a PUBLISH. A denied one of QoS 0 is dropped; of QoS 1 or 2
// it is answered with 0x87 in version 5. Version 3.1.1 has no such answer: the
// server must acknowledge or close [MQTT-3.3.5-2], and an acknowledgement would
// be a lie that makes the sender delete its message, so we close. The sender
// keeps the message, and its owner finds one line in the log.
func (h *hook) readPublish(c *client, cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c.verdict = rejected
	d := policy.Allow(c.subject, policy.Publish, pk.TopicName)
	switch {
	case pk.TopicName == "" || pk.Properties.TopicAlias > 0:
		// Left to mochi, which refuses both: we offer no aliases.
	case !d.Allowed:
		c.deny(policy.Publish, pk.TopicName, d)
		if c.version < 5 && pk.FixedHeader.Qos > 0 {
			return pk, packets.ErrRejectPacket
		}
	case pk.FixedHeader.Qos < 2:
		c.verdict = accepted
	default:
		if _, ok := c.seat.received[pk.PacketID]; ok {
			c.verdict = duplicated
			break
		}
		if len(c.seat.received) >= receiveMaximum {
			return pk, c.violation(cl, packets.ErrReceiveMaximum) // [MQTT-3.3.4-7]
		}
		c.verdict = accepted
	}
	return pk, nil
}

// OnPublish acts on the verdict. ErrRejectPacket makes mochi drop the message
// silently; every other error is ignored in some case.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if c := clientOf(cl); c != nil {
		switch c.verdict {
		case rejected:
			h.acknowledge(c, cl, pk, packets.ErrNotAuthorized)
			return pk, packets.ErrRejectPacket
		case duplicated:
			h.acknowledge(c, cl, pk, packets.CodeSuccess)
			return pk, packets.ErrRejectPacket
		}
		if pk.FixedHeader.Qos == 2 {
			if c.seat.received == nil {
				c.seat.received = make(map[uint16]struct{})
			}
			c.seat.received[pk.PacketID] = struct{}{}
		}
		h.b.counters.published.Add(1)
	}
	// The order of acceptance, for queues: every copy of the packet keeps this
	// field, and the encoder sets it anew.
	pk.FixedHeader.Remaining = int(h.b.sequence.Add(1))
	if pk.FixedHeader.Retain && !h.b.retention.admit(pk.TopicName, len(pk.Payload)) {
		h.b.counters.notRetained.Add(1)
		pk.FixedHeader.Retain = false
	}
	h.b.route(pk)
	pk.Ignore = true // so mochi routes nothing
	return pk, nil
}

// OnPublished runs when the message has been routed to every subscriber and
// into every stored session.
func (h *hook) OnPublished(cl *mqtt.Client, pk packets.Packet) {
	if c := clientOf(cl); c != nil {
		h.acknowledge(c, cl, pk, packets.CodeSuccess)
	}
}

// acknowledge answers a QoS 1 message with PUBACK, a QoS 2 one with PUBREC.
func (h *hook) acknowledge(c *client, cl *mqtt.Client, pk packets.Packet, code packets.Code) {
	ack := packets.Packet{PacketID: pk.PacketID, ReasonCode: code.Code}
	switch pk.FixedHeader.Qos {
	case 1:
		ack.FixedHeader.Type = packets.Puback
	case 2:
		ack.FixedHeader.Type = packets.Pubrec
	default:
		return
	}
	_ = cl.WritePacket(ack) // an error means that the connection is closing
}

// readPubrel completes a QoS 2 message from the client. It is kept from mochi,
// which would look for the identifier among the messages it sends.
func (h *hook) readPubrel(c *client, cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	code := packets.CodeSuccess
	if _, ok := c.seat.received[pk.PacketID]; !ok {
		code = packets.ErrPacketIdentifierNotFound
	}
	delete(c.seat.received, pk.PacketID)
	_ = cl.WritePacket(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubcomp}, PacketID: pk.PacketID, ReasonCode: code.Code})
	return noPacket(pk), nil
}

// deny counts a denial and logs the first of each connection.
func (c *client) deny(a policy.Action, topic string, d policy.Decision) {
	c.b.counters.denied.Add(1)
	c.denied++
	if c.denied == 1 {
		if len(topic) > 128 {
			topic = topic[:128]
		}
		c.b.log.Warn("denied by policy, further denials on this connection are only counted",
			"action", a, "id", c.clientID, "role", c.peer.Identity.Role, "topic", topic, "rule", d.Rule)
	}
}
