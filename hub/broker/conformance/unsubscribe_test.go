package conformance

import (
	"slices"

	"github.com/fleethub/fleethub/hub/wire"
)

func unsubscribeRules() []rule {
	return []rule{
		{"MQTT-3.10.1-1", "MQTT-3.10.1-1", func(x *exam) { fixedFlags(x, 0xA0, x.unsubscribeBytes(0xA2, 1, "d/x/tele/#")) }},
		{"MQTT-3.10.3-1", "MQTT-3.10.3-1", unsubscribedFilterIsText},
		{"MQTT-3.10.3-2", "MQTT-3.10.3-2", unsubscribeHasAFilter},
		{"MQTT-3.10.4-1", "MQTT-3.10.4-1", filtersAreComparedByteForByte},
		{"MQTT-3.10.4-2", "MQTT-3.10.4-2", nothingNewAfterUnsubscribe},
		{"MQTT-3.10.4-3", "MQTT-3.10.4-3", whatHasBegunIsCompleted},
		{"MQTT-3.10.4-4", "MQTT-3.10.4-4", unsubscribeIsAnswered},
		{"MQTT-3.10.4-5", "MQTT-3.10.4-5", unsubscribeIsAnsweredThoughNothingMatches},
		{"MQTT-3.10.4-6", "MQTT-3.10.4-6", manyFiltersAreUnsubscribedAtOnce},
		{"", "MQTT-3.11.3-1 MQTT-3.11.3-2", unsubackHasACodeForEachFilter},
	}
}

func unsubscribedFilterIsText(x *exam) {
	for _, text := range []string{"\xFF", "\xED\xA0\x80", "a\x00b"} {
		c := x.service()
		c.connect()
		c.write(x.unsubscribeBytes(0xA2, 1, "d/+/tele/"+text))
		c.cut(wire.MalformedPacket)
	}
}

func unsubscribeHasAFilter(x *exam) {
	c := x.service()
	c.connect()
	c.write(packet(0xA2, u16(1), x.props()))
	c.cut(wire.ProtocolError, wire.MalformedPacket)
}

// filtersAreComparedByteForByte: a filter that matches another does not end it.
func filtersAreComparedByteForByte(x *exam) {
	p := x.pair()
	p.sub.subscribe("d/"+p.sub.id+"/cmd/+/1", 1)
	for _, other := range []string{p.all(), p.topic("a"), "d/" + p.sub.id + "/cmd/+/+", "d/" + p.sub.id + "/CMD/+/1", "D/" + p.sub.id + "/cmd/+/1"} {
		p.sub.unsubscribe(other)
		p.pub.publish(p.topic("a"), other, 1)
		p.sub.takePayload(other)
	}
	p.sub.unsubscribe("d/" + p.sub.id + "/cmd/+/1")
	p.pub.publish(p.topic("a"), "too late", 1)
	p.nothing()
}

func nothingNewAfterUnsubscribe(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.topic("a"), 2)
	p.sub.subscribe(p.topic("b"), 1)
	p.sub.unsubscribe(p.topic("a"))
	for qos := range byte(3) {
		p.pub.publish(p.topic("a"), "too late", qos)
	}
	p.pub.publish(p.topic("b"), "still subscribed", 1)
	p.sub.takePayload("still subscribed")
	p.nothing()
}

func whatHasBegunIsCompleted(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	p.pub.publish(p.topic("a"), "one", 1)
	p.pub.publish(p.topic("a"), "two", 2)
	p.pub.publish(p.topic("a"), "released", 2)
	one, two, released := p.sub.receive(), p.sub.receive(), p.sub.receive()
	p.sub.send(&wire.Ack{Kind: wire.TypePubrec, ID: released.ID})
	p.sub.ack(wire.TypePubrel, released.ID)
	p.sub.unsubscribe(p.all())
	p.sub.send(&wire.Ack{Kind: wire.TypePubcomp, ID: released.ID})
	p.sub.accept(two)
	p.nothing()
	p.reconnect(persistent)
	if m := p.sub.takePayload("one"); m.ID != one.ID || !m.Dup {
		x.Fatalf("got %s, want identifier %d again", describe(m), one.ID)
	}
	p.nothing()
}

func unsubscribeIsAnswered(x *exam) {
	c := x.device()
	c.connect()
	c.subscribe("d/"+c.id+"/cmd/#", 1)
	c.send(&wire.Unsubscribe{ID: 65535, Filters: []string{"d/" + c.id + "/cmd/#"}})
	if a := want[*wire.Suback](c); a.Kind != wire.TypeUnsuback || a.ID != 65535 {
		x.Fatalf("got %s", describe(a))
	}
	if x.version != wire.V5 && string(c.raw) != "\xB0\x02\xFF\xFF" {
		x.Fatalf("UNSUBACK is % x", c.raw)
	}
}

func unsubscribeIsAnsweredThoughNothingMatches(x *exam) {
	c := x.device()
	c.connect()
	for _, filter := range []string{"d/" + c.id + "/cmd/#", "never/seen", "#", "$SYS/#"} {
		c.unsubscribe(filter)
	}
	c.alive()
}

func manyFiltersAreUnsubscribedAtOnce(x *exam) {
	p := x.pair()
	for _, name := range []string{"a", "b", "c"} {
		p.sub.subscribe(p.topic(name), 1)
	}
	p.sub.unsubscribe(p.topic("a"), p.topic("nothing"), p.topic("b"), p.topic("a"))
	for _, name := range []string{"a", "b", "c"} {
		p.pub.publish(p.topic(name), name, 1)
	}
	p.sub.takePayload("c")
	p.nothing()
}

func unsubackHasACodeForEachFilter(x *exam) {
	c := x.device()
	c.connect()
	own := "d/" + c.id + "/cmd/"
	c.subscribe(own+"a", 1)
	c.subscribe(own+"b", 1)
	want := []wire.Code{wire.NoSubscriptionExisted, wire.Success, wire.NoSubscriptionExisted, wire.Success, wire.NoSubscriptionExisted}
	if codes := c.unsubscribe(own+"c", own+"b", own+"#", own+"a", own+"a"); !slices.Equal(codes, want) {
		x.Fatalf("answered with %#x, want %#x", codes, want)
	}
}
