package broker

import (
	"strconv"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/protocol"
)

// announce publishes the retained presence of a device. The connection owns its
// seat while it does, so what is retained is the newest. When the hub stops,
// there is nobody left to tell, and nothing is.
func (b *Broker) announce(c *client, online bool, reason string) {
	if c.peer.Identity.Role != identity.RoleDevice || reason == protocol.ReasonShutdown {
		return
	}
	status := protocol.PresenceStatus{Online: online, Reason: reason, Since: b.config.Now().UTC(), Address: c.remote.String()}
	b.retain(protocol.Presence(c.peer.Identity.ID), appendPresence(nil, status), 1)
}

// appendPresence writes a status as encoding/json does, without its cost in each connect.
// Reasons and addresses have nothing that JSON escapes.
func appendPresence(b []byte, s protocol.PresenceStatus) []byte {
	b = strconv.AppendBool(append(b, `{"online":`...), s.Online)
	b = append(append(b, `,"reason":"`...), s.Reason...)
	b = s.Since.AppendFormat(append(b, `","since":"`...), time.RFC3339Nano)
	if s.Address != "" {
		b = append(append(b, `","address":"`...), s.Address...)
	}
	return append(b, `"}`...)
}

// leafIsEnough is a protocol.TLSNotice that says ChainLeaf.
var leafIsEnough = []byte(`{"chain":"leaf"}`)

// tellChain lets a device that presented more than its own certificate know that it
// need not: we know its issuer, or it were not here. It saves the device some 500 bytes
// in each full handshake from then on. In a resumed one it presents nothing.
func (b *Broker) tellChain(c *client) {
	conn := c.conn.Load()
	if conn == nil || c.peer.Resumed || c.peer.Identity.Role != identity.RoleDevice || len(conn.ConnectionState().PeerCertificates) < 2 {
		return
	}
	b.retain(protocol.System(c.peer.Identity.ID, protocol.NoticeTLS), leafIsEnough, 0) // said again at the next full handshake
}

// retain publishes a retained message of the hub's own, not by way of mochi, which
// would take it through its whole server loop.
func (b *Broker) retain(topic string, payload []byte, qos byte) {
	b.retention.admit(topic, len(payload)) // so that a revocation finds it
	b.route(packets.Packet{
		ProtocolVersion: 5,
		FixedHeader:     packets.FixedHeader{Type: packets.Publish, Qos: qos, Retain: true, Remaining: int(b.sequence.Add(1))},
		TopicName:       topic,
		Payload:         payload,
		Created:         b.config.Now().Unix(),
	})
}

// publishWill publishes the will of a connection that mochi gave up on.
func (b *Broker) publishWill(c *client) {
	will := c.mochi.Properties.Will
	if will.Flag == 0 || !c.mayPublishWill(will.TopicName) {
		return
	}
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: will.Qos, Retain: will.Retain},
		TopicName:   will.TopicName,
		Payload:     will.Payload,
		PacketID:    uint16(will.Qos), // mochi wants one and does nothing with it
		Properties:  packets.Properties{User: will.User},
	}
	inline, ok := b.mqtt.Clients.Get("inline")
	if !ok {
		return
	}
	if err := b.mqtt.InjectPacket(inline, pk); err != nil {
		b.log.Error("will could not be published", "id", c.peer.Identity.ID, "error", err)
	}
}
