package conformance

import (
	"strings"

	"github.com/fleethub/fleethub/hub/wire"
)

func sizeRules() []rule {
	return []rule{
		{"", "MQTT-3.1.2-24 MQTT-3.1.2-25", tooLargeForTheClientIsDropped},
		{"", "MQTT-3.2.2-15", tooLargeForTheHubEndsTheConnection},
		{"", "MQTT-3.2.2-19 MQTT-3.2.2-20", func(x *exam) { refusalFits(x) }},
		{"", "MQTT-3.4.2-2 MQTT-3.4.2-3", func(x *exam) { answerFits(x, &wire.Publish{Topic: "d/other/tele/a", QoS: 1, ID: 1}) }},
		{"", "MQTT-3.5.2-2 MQTT-3.5.2-3", func(x *exam) { answerFits(x, &wire.Publish{Topic: "d/other/tele/a", QoS: 2, ID: 1}) }},
		{"", "MQTT-3.6.2-2 MQTT-3.6.2-3", func(x *exam) { answerFits(x, &wire.Ack{Kind: wire.TypePubrec, ID: 9}) }},
		{"", "MQTT-3.7.2-2 MQTT-3.7.2-3", func(x *exam) { answerFits(x, &wire.Ack{Kind: wire.TypePubrel, ID: 9}) }},
		{"", "MQTT-3.9.2-1 MQTT-3.9.2-2", func(x *exam) {
			answerFits(x, &wire.Subscribe{ID: 1, Filters: []wire.Subscription{{Filter: "#"}, {Filter: "a/#/b"}}})
		}},
		{"", "MQTT-3.11.2-1 MQTT-3.11.2-2", func(x *exam) { answerFits(x, &wire.Unsubscribe{ID: 1, Filters: []string{"a/#/b", "b"}}) }},
		{"", "MQTT-3.14.2-3 MQTT-3.14.2-4", farewellFits},
	}
}

func maximum(n uint32) option { return func(c *wire.Connect) { c.MaximumPacketSize = n } }

// tooLargeForTheClientIsDropped as if it had been delivered: nothing of it is left in the session. What just fits is delivered.
func tooLargeForTheClientIsDropped(x *exam) {
	const limit = 200
	p := x.pair(persistent, maximum(limit))
	p.sub.subscribe(p.all(), 2)
	for qos := range byte(3) {
		head := len(x.publishBytes(qos<<1, p.topic("a"), 1, nil, strings.Repeat(".", 130))) - 130
		fits := strings.Repeat("f", limit-head)
		p.pub.publish(p.topic("a"), fits+"x", qos)
		p.pub.publish(p.topic("a"), fits, qos)
		p.sub.takePayload(fits)
		if len(p.sub.raw) > limit {
			x.Fatalf("a packet of %d bytes came", len(p.sub.raw))
		}
		p.sub.hangUp()
		p.pub.publish(p.topic("a"), fits+"x", qos)
		p.comeBack(persistent, maximum(limit))
		p.nothing()
	}
	p.reconnect(persistent)
	p.nothing()
}

// tooLargeForTheHubEndsTheConnection as soon as the header says so.
func tooLargeForTheHubEndsTheConnection(x *exam) {
	c := x.service()
	limit := int(c.connect().MaximumPacketSize)
	if limit == 0 {
		x.Fatal("the hub has a maximum and does not announce it")
	}
	c.write(packetHeader(0x30, limit))
	c.cut(wire.PacketTooLarge)
	c = x.service()
	c.connect()
	head := len(x.publishBytes(2, "d/x/cmd/a/1", 1, nil, "")) + len(varint(limit)) - 1
	c.publish("d/x/cmd/a/1", strings.Repeat(".", limit-head), 1)
}

// packetHeader is the fixed header of a packet that is one byte larger than limit.
func packetHeader(first byte, limit int) []byte {
	return append([]byte{first}, varint(limit-len(varint(limit)))...)
}

// refusalFits: a CONNACK in so little room has no place for words.
func refusalFits(x *exam) {
	d := x.device()
	d.send(d.connectPacket(will("d/other/evt/gone", "", 0), maximum(8)))
	want[*wire.Connack](d)
	if len(d.raw) > 8 {
		x.Fatalf("CONNACK has %d bytes, the client takes 8", len(d.raw))
	}
	d.closed()
}

// answerFits sends something that is answered with an error by a client that takes no more than the error itself.
func answerFits(x *exam, question wire.Packet) {
	const limit = 24 // a PUBLISH of the smallest kind
	c := x.device()
	c.send(c.connectPacket(maximum(limit)))
	c.next()
	if len(c.raw) > limit {
		x.Fatalf("CONNACK has %d bytes, the client takes %d", len(c.raw), limit)
	}
	c.send(question)
	c.next()
	if len(c.raw) > limit {
		x.Fatalf("% x has %d bytes, the client takes %d", c.raw, len(c.raw), limit)
	}
	c.alive()
}

func farewellFits(x *exam) {
	const limit = 24
	c := x.device()
	c.connect(maximum(limit))
	c.write(packet(0xC1))
	c.cut(wire.MalformedPacket)
	if len(c.raw) > limit {
		x.Fatalf("DISCONNECT has %d bytes, the client takes %d", len(c.raw), limit)
	}
}
