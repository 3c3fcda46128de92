package broker

import (
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// hook is the one Hook on mochi's server: mochi ORs the decisions of several,
// so a second could only ever allow more. Its methods run on the goroutine of
// the connection they are about, but for OnACLCheck (any publisher's, and
// mochi's event loop) and OnPacketEncode (also the connection's writer).
type hook struct {
	mqtt.HookBase
	b *Broker
}

// ID names the hook in mochi's log.
func (h *hook) ID() string { return "fleethub" }

// Provides lists the events that the hook handles.
func (h *hook) Provides(event byte) bool {
	switch event {
	case mqtt.OnPacketRead, mqtt.OnPacketProcessed, mqtt.OnPacketEncode,
		mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished, mqtt.OnDisconnect,
		mqtt.OnACLCheck, mqtt.OnSubscribe, mqtt.OnSubscribed,
		mqtt.OnPublish, mqtt.OnPublished, mqtt.OnPublishDropped, mqtt.OnWill:
		return true
	}
	return false
}

// noPacket turns a packet that has been handled into one that mochi does
// nothing about: an acknowledgement of packet identifier 0, which no message
// has. A hook has no other way to take a packet without closing the connection.
func noPacket(pk packets.Packet) packets.Packet {
	pk.FixedHeader.Type, pk.PacketID = packets.Puback, 0
	return pk
}

// OnPacketRead sees every packet after decoding and before mochi acts on it.
// The only error that mochi heeds here is ErrRejectPacket, which closes the
// connection.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := clientOf(cl)
	if c == nil {
		return pk, nil
	}
	switch pk.FixedHeader.Type {
	case packets.Connect:
		if c.mochi != nil {
			return pk, nil // a second one: mochi closes [MQTT-3.1.0-2]
		}
		return h.readConnect(c, cl, pk)
	case packets.Publish:
		return h.readPublish(c, cl, pk)
	case packets.Pubrel:
		return h.readPubrel(c, cl, pk)
	case packets.Puback, packets.Pubcomp:
		c.window.release(pk.PacketID)
	case packets.Pubrec:
		if pk.ReasonCode >= packets.ErrUnspecifiedError.Code {
			c.window.release(pk.PacketID)
		}
	case packets.Subscribe, packets.Unsubscribe:
		return h.readSubscribe(c, cl, pk)
	case packets.Disconnect:
		return h.readDisconnect(c, cl, pk)
	case packets.Auth:
		return pk, c.violation(cl, packets.ErrProtocolViolation) // no enhanced authentication is under way
	}
	return pk, nil
}

// OnPacketProcessed runs when mochi is done with a packet: subscriptions are
// acknowledged, and acknowledged messages are gone, so others may follow.
func (h *hook) OnPacketProcessed(cl *mqtt.Client, _ packets.Packet, _ error) {
	if c := clientOf(cl); c != nil {
		c.sendHeld(cl)
		c.sendRetained(cl)
	}
}

// OnPacketEncode sees every packet before it is written.
func (h *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := clientOf(cl)
	if c == nil {
		return pk
	}
	switch pk.FixedHeader.Type {
	case packets.Publish:
		if pk.FixedHeader.Qos > 0 && !c.window.admit(pk.PacketID) {
			pk.FixedHeader.Type = packets.Reserved // not written now: no such packet can be
		}
	case packets.Suback, packets.Unsuback:
		pk.PacketID = c.packetID
	case packets.Connack:
		if pk.ReasonCode == packets.CodeSuccess.Code && c.version == 5 {
			pk.Properties.MaximumPacketSize = uint32(h.b.config.MaxPacketSize) // [MQTT-3.2.2-15]
			if c.capped {
				pk.Properties.SessionExpiryInterval = uint32(c.expiry.Seconds())
				pk.Properties.SessionExpiryIntervalFlag = true
			}
		}
	}
	return pk
}

// violation ends the connection for what the client did: a DISCONNECT with the
// code for version 5, nothing but the end for 3.1.1, which has no DISCONNECT
// from the server. The will is published.
func (c *client) violation(cl *mqtt.Client, code packets.Code) error {
	c.b.log.Warn("protocol error", "id", c.peer.Identity.ID, "remote", c.remote, "code", code.Code, "detail", code.Reason)
	if c.version == 5 {
		_ = cl.WritePacket(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: code.Code})
	}
	return packets.ErrRejectPacket
}
