package conformance

import (
	"github.com/fleethub/fleethub/hub/wire"
)

func qosRules() []rule {
	return []rule{
		{"MQTT-4.3.1-1", "MQTT-4.3.1-1", qos0IsSentPlain},
		{"MQTT-4.3.2-1", "MQTT-4.3.2-2 MQTT-4.3.2-3", qos1IsOpenUntilPuback},
		{"MQTT-4.3.2-2", "MQTT-4.3.2-4 MQTT-4.3.2-5", qos1IsNewAfterPuback},
		{"MQTT-4.3.3-1", "MQTT-4.3.3-2 MQTT-4.3.3-3 MQTT-4.3.3-4 MQTT-4.3.3-5 MQTT-4.3.3-6", qos2IsOpenUntilPubcomp},
		{"MQTT-4.3.3-2", "MQTT-4.3.3-8 MQTT-4.3.3-10 MQTT-4.3.3-11 MQTT-4.3.3-12", qos2IsTakenOnce},
		{"", "MQTT-4.3.3-9", qos2IsNewAfterARefusal},
		{"", "MQTT-4.3.3-7", sentQoS2DoesNotExpire},
		{"", "MQTT-4.3.3-13", expiredQoS2IsStillCompleted},
	}
}

func qos0IsSentPlain(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 0)
	for qos := range byte(3) {
		p.pub.publish(p.topic("a"), "payload", qos)
		if m := p.sub.takePayload("payload"); m.QoS != 0 || m.Dup || m.Retain || p.sub.raw[0] != 0x30 {
			x.Fatalf("got %s", describe(m))
		}
	}
}

func qos1IsOpenUntilPuback(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 1)
	p.pub.publish(p.topic("a"), "payload", 1)
	first := p.sub.receive()
	if first.QoS != 1 || first.Dup || first.ID == 0 {
		x.Fatalf("got %s", describe(first))
	}
	for range 2 {
		p.reconnect(persistent)
		if m := p.sub.receive(); m.ID != first.ID || !m.Dup || string(m.Payload) != "payload" {
			x.Fatalf("got %s, want identifier %d again", describe(m), first.ID)
		}
	}
	p.sub.accept(first)
	p.nothing()
	p.reconnect(persistent)
	p.nothing()
}

// qos1IsNewAfterPuback, whatever DUP says.
func qos1IsNewAfterPuback(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 1)
	for i := range 3 {
		p.pub.publishAll(&wire.Publish{Topic: p.topic("a"), Payload: []byte("again"), QoS: 1, ID: 5, Dup: i > 0})
		if m := p.sub.takePayload("again"); m.Dup {
			x.Fatalf("got %s", describe(m))
		}
	}
	p.nothing()
}

func qos2IsOpenUntilPubcomp(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	p.pub.publish(p.topic("a"), "payload", 2)
	first := p.sub.receive()
	if first.QoS != 2 || first.Dup || first.ID == 0 {
		x.Fatalf("got %s", describe(first))
	}
	p.reconnect(persistent)
	if m := p.sub.receive(); m.ID != first.ID || !m.Dup || string(m.Payload) != "payload" {
		x.Fatalf("got %s, want identifier %d again", describe(m), first.ID)
	}
	p.sub.send(&wire.Ack{Kind: wire.TypePubrec, ID: first.ID})
	p.sub.ack(wire.TypePubrel, first.ID)
	for range 2 { // from here on PUBREL, never PUBLISH
		p.reconnect(persistent)
		if a := want[*wire.Ack](p.sub); a.Kind != wire.TypePubrel || a.ID != first.ID {
			x.Fatalf("got %s, want PUBREL %d", describe(a), first.ID)
		}
	}
	p.sub.send(&wire.Ack{Kind: wire.TypePubcomp, ID: first.ID})
	p.nothing()
	p.reconnect(persistent)
	p.nothing()
}

// qos2IsTakenOnce, though it comes again on the same connection and on the next.
func qos2IsTakenOnce(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 2)
	p.pub = p.pub.again()
	p.pub.connect(fresh)
	if x.version != wire.V5 {
		p.pub.leave()
		p.pub = p.pub.again()
		p.pub.connect(persistent)
	}
	send := func(payload string, dup bool) {
		x.Helper()
		p.pub.send(&wire.Publish{Topic: p.topic("a"), Payload: []byte(payload), QoS: 2, ID: 5, Dup: dup})
		if a := p.pub.ack(wire.TypePubrec, 5); a.Code >= 0x80 {
			x.Fatalf("answered with %s", describe(a))
		}
	}
	send("once", false)
	p.sub.takePayload("once")
	send("once", true)
	p.pub.hangUp()
	p.pub = p.pub.again()
	p.pub.connect(persistent)
	send("once", true)
	p.nothing()
	for range 2 { // a PUBREL may come again, too
		p.pub.send(&wire.Ack{Kind: wire.TypePubrel, ID: 5})
		p.pub.ack(wire.TypePubcomp, 5)
	}
	send("new", false)
	p.sub.takePayload("new")
	p.pub.send(&wire.Ack{Kind: wire.TypePubrel, ID: 5})
	p.pub.ack(wire.TypePubcomp, 5)
	p.nothing()
}

func qos2IsNewAfterARefusal(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 2)
	if code := p.pub.try(&wire.Publish{Topic: "d/" + p.sub.id + "/tele/a", QoS: 2, ID: 5}); code < 0x80 {
		x.Fatalf("answered with %#x", code)
	}
	p.pub.publishAll(&wire.Publish{Topic: p.topic("a"), Payload: []byte("new"), QoS: 2, ID: 5})
	p.sub.takePayload("new")
}

func sentQoS2DoesNotExpire(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	second := uint32(1)
	p.pub.publishAll(
		&wire.Publish{Topic: p.topic("a"), Payload: []byte("one"), QoS: 2, Expiry: &second},
		&wire.Publish{Topic: p.topic("a"), Payload: []byte("two"), QoS: 2, Expiry: &second},
	)
	one, two := p.sub.receive(), p.sub.receive()
	x.elapse(2)
	p.sub.accept(one)
	p.reconnect(persistent)
	if m := p.sub.takePayload("two"); m.ID != two.ID {
		x.Fatalf("got %s, want identifier %d", describe(m), two.ID)
	}
	p.nothing()
}

func expiredQoS2IsStillCompleted(x *exam) {
	p := x.pair()
	second := uint32(1)
	p.pub.send(&wire.Publish{Topic: p.topic("a"), QoS: 2, ID: 5, Expiry: &second})
	p.pub.ack(wire.TypePubrec, 5)
	x.elapse(2)
	p.pub.send(&wire.Publish{Topic: p.topic("a"), QoS: 2, ID: 5, Expiry: &second, Dup: true})
	p.pub.ack(wire.TypePubrec, 5)
	p.pub.send(&wire.Ack{Kind: wire.TypePubrel, ID: 5})
	if a := p.pub.ack(wire.TypePubcomp, 5); a.Code != wire.Success {
		x.Fatalf("answered with %s", describe(a))
	}
}
