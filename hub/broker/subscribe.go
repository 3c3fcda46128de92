package broker

import (
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/hub/policy"
)

// readSubscribe takes the packet identifier out of a SUBSCRIBE or UNSUBSCRIBE
// and keeps it for the answer. mochi would look it up among the messages that
// it sends and refuse the subscription if it finds it there.
func (h *hook) readSubscribe(c *client, cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if pk.PacketID == 0 {
		return pk, c.violation(cl, packets.ErrProtocolViolationNoPacketID) // [MQTT-2.2.1-3]
	}
	c.packetID = pk.PacketID
	pk.PacketID, pk.FixedHeader.Qos = 0, 0
	return pk, nil
}

// OnSubscribe judges each filter. One that is refused is emptied, which makes
// mochi refuse it; OnSubscribed writes the right code.
func (h *hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := clientOf(cl)
	if c == nil {
		return pk // an operator's watch
	}
	c.subCodes = make([]byte, len(pk.Filters))
	room := maxSubscriptions - cl.State.Subscriptions.Len()
	for i := range pk.Filters {
		filter := pk.Filters[i].Filter
		code := byte(0)
		switch d := policy.Allow(c.subject, policy.Subscribe, filter); {
		case !policy.ValidFilter(filter):
			code = packets.ErrTopicFilterInvalid.Code
		case !d.Allowed:
			c.deny(policy.Subscribe, filter, d)
			code = packets.ErrNotAuthorized.Code
		default:
			if _, ok := cl.State.Subscriptions.Get(filter); ok {
				break
			}
			if room--; room < 0 {
				code = packets.ErrQuotaExceeded.Code
			}
		}
		if code != 0 {
			c.subCodes[i] = code
			pk.Filters[i].Filter = ""
			continue
		}
		c.wantRetained(cl, &pk.Filters[i])
	}
	return pk
}

// OnSubscribed runs before the SUBACK is written, with its codes.
func (h *hook) OnSubscribed(cl *mqtt.Client, _ packets.Packet, codes []byte) {
	c := clientOf(cl)
	if c == nil {
		return
	}
	for i, code := range c.subCodes {
		switch {
		case code == 0:
		case c.version == 5:
			codes[i] = code
		default:
			codes[i] = packets.ErrUnspecifiedError.Code // the only one of 3.1.1
		}
	}
	c.subCodes = nil
	c.startReplays()
}
