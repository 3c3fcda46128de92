package conformance

import (
	"github.com/fleethub/fleethub/hub/wire"
)

func publishRules() []rule {
	return []rule{
		{"MQTT-3.3.1-2", "MQTT-3.3.1-2", qos0IsNeverADuplicate},
		{"MQTT-3.3.1-3", "MQTT-3.3.1-3", duplicateFlagIsNotPassedOn},
		{"MQTT-3.3.1-4", "MQTT-3.3.1-4", qos3EndsTheConnection},
		{"MQTT-3.3.2-1", "MQTT-3.3.2-1", topicNameIsTextAndFirst},
		{"MQTT-3.3.2-2", "MQTT-3.3.2-2", topicNameHasNoWildcard},
		{"MQTT-3.3.2-3", "MQTT-3.3.2-3", deliveredTopicMatchesTheFilter},
		{"MQTT-3.3.4-1", "MQTT-3.3.4-1", eachQoSHasItsAnswer},
		{"MQTT-3.3.5-2", "", unauthorizedPublishEndsTheConnection},
		{"", "MQTT-3.4.2-1 MQTT-3.5.2-1", unauthorizedPublishIsAnsweredWithItsReason},
		{"", "MQTT-3.3.4-6", clientsSendNoSubscriptionIdentifier},
		{"MQTT-3.6.1-1", "MQTT-3.6.1-1", func(x *exam) { fixedFlags(x, 0x60, packet(0x62, u16(1))) }},
		{"", "MQTT-3.6.2-1", unknownPubrecIsAnsweredWithItsReason},
		{"", "MQTT-3.7.2-1", unknownPubrelIsAnsweredWithItsReason},
	}
}

func qos0IsNeverADuplicate(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 0)
	p.pub.send(&wire.Publish{Topic: p.topic("a"), QoS: 1, ID: 1, Dup: true})
	p.pub.ack(wire.TypePuback, 1)
	if m := p.sub.receive(); m.Dup {
		x.Fatalf("got %s", describe(m))
	}
	p.pub.write(x.publishBytes(0x08, p.topic("a"), 0, nil, "payload"))
	p.pub.cut(wire.MalformedPacket, wire.ProtocolError)
}

func duplicateFlagIsNotPassedOn(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 2)
	for qos := byte(1); qos <= 2; qos++ {
		p.pub.publishAll(&wire.Publish{Topic: p.topic("a"), QoS: qos, Dup: true, Payload: []byte("sent again")})
		if m := p.sub.takePayload("sent again"); m.Dup {
			x.Fatalf("got %s", describe(m))
		}
	}
}

func qos3EndsTheConnection(x *exam) {
	for _, flags := range []byte{0x06, 0x07, 0x0E} {
		c := x.service()
		c.connect()
		c.write(x.publishBytes(flags, "d/x/cmd/a/1", 1, nil, "payload"))
		c.cut(wire.MalformedPacket)
	}
}

func topicNameIsTextAndFirst(x *exam) {
	each(x, map[string][]byte{
		"not text":              x.publishBytes(0, "d/x/cmd/\xFF/1", 0, nil, "payload"),
		"not there":             packet(0x30),
		"half a length":         packet(0x30, []byte{0}),
		"cut short":             packet(0x30, u16(40), []byte("d/x/cmd/a/1")),
		"behind the identifier": packet(0x32, u16(1), str("d/x/cmd/a/1")),
	}, func(x *exam, data []byte) {
		c := x.service()
		c.connect()
		c.write(data)
		c.cut(wire.MalformedPacket, wire.ProtocolError)
	})
}

func topicNameHasNoWildcard(x *exam) {
	for _, topic := range []string{"#", "+", "d/+/cmd/a/1", "d/x/cmd/#", "d/x/cmd/a+/1", "d/x/cmd/a/1#"} {
		for _, flags := range []byte{0x00, 0x02, 0x04} {
			c := x.service()
			c.connect()
			c.write(x.publishBytes(flags, topic, 1, nil, "payload"))
			c.cut(wire.TopicNameInvalid, wire.MalformedPacket, wire.ProtocolError)
		}
	}
}

func deliveredTopicMatchesTheFilter(x *exam) {
	p := x.pair()
	p.sub.subscribe("d/"+p.sub.id+"/cmd/+/2", 1)
	p.sub.subscribe(p.topic("b"), 1)
	for _, topic := range []string{p.topic("a"), p.topic("b"), "d/" + p.sub.id + "/cmd/c/2", "d/" + p.sub.id + "/cmd/c/22", "d/other/cmd/b/1"} {
		p.pub.publish(topic, topic, 1)
	}
	for _, topic := range []string{p.topic("b"), "d/" + p.sub.id + "/cmd/c/2"} {
		if m := p.sub.takePayload(topic); m.Topic != topic {
			x.Fatalf("got %s, want topic %s", describe(m), topic)
		}
	}
	p.nothing()
}

func eachQoSHasItsAnswer(x *exam) {
	p := x.pair()
	p.pub.publish(p.topic("a"), "no answer", 0)
	p.pub.alive()
	p.pub.publish(p.topic("a"), "PUBACK", 1)
	p.pub.publish(p.topic("a"), "PUBREC, PUBCOMP", 2)
	p.pub.alive()
}

// unauthorizedPublishEndsTheConnection: of the two answers that 3.1.1 leaves, the one that makes nobody believe that the
// message is somewhere. One of QoS 0 has no answer to give.
func unauthorizedPublishEndsTheConnection(x *exam) {
	for _, qos := range []byte{1, 2} {
		d := x.device()
		w := x.watch(d)
		intruder := x.device()
		intruder.connect()
		intruder.send(&wire.Publish{Topic: "d/" + d.id + "/tele/a", QoS: qos, ID: 1, Payload: []byte("forged")})
		intruder.cut()
		intruder = intruder.again()
		intruder.connect()
		intruder.publish("d/"+d.id+"/tele/a", "forged", 0)
		intruder.alive()
		nothingFrom(d, w)
	}
}

func unauthorizedPublishIsAnsweredWithItsReason(x *exam) {
	d := x.device()
	w := x.watch(d)
	intruder := x.device()
	intruder.connect()
	for qos := range byte(3) {
		code := intruder.try(&wire.Publish{Topic: "d/" + d.id + "/tele/a", QoS: qos, Payload: []byte("forged")})
		if qos > 0 && code != wire.NotAuthorized {
			x.Errorf("QoS %d: answered with %#x, want %#x", qos, code, wire.NotAuthorized)
		}
		intruder.alive()
	}
	nothingFrom(d, w)
}

func clientsSendNoSubscriptionIdentifier(x *exam) {
	c := x.service()
	c.connect()
	c.write(x.publishBytes(0, "d/x/cmd/a/1", 0, prop(0x0B, varint(5)), ""))
	c.cut(wire.ProtocolError, wire.MalformedPacket)
}

func unknownPubrecIsAnsweredWithItsReason(x *exam) {
	c := x.device()
	c.connect()
	c.send(&wire.Ack{Kind: wire.TypePubrec, ID: 77})
	if a := c.ack(wire.TypePubrel, 77); a.Code != wire.PacketIdentifierNotFound {
		x.Fatalf("answered with %#x", a.Code)
	}
	c.alive()
}

func unknownPubrelIsAnsweredWithItsReason(x *exam) {
	c := x.device()
	c.connect()
	c.send(&wire.Ack{Kind: wire.TypePubrel, ID: 77})
	if a := c.ack(wire.TypePubcomp, 77); a.Code != wire.PacketIdentifierNotFound {
		x.Fatalf("answered with %#x", a.Code)
	}
	c.alive()
}
