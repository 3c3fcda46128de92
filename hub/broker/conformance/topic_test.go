package conformance

import (
	"strings"

	"github.com/fleethub/fleethub/hub/wire"
)

func topicRules() []rule {
	return []rule{
		{"MQTT-4.7.1-1", "MQTT-4.7.0-1", topicNameHasNoWildcard},
		{"MQTT-4.7.1-2", "MQTT-4.7.1-1", func(x *exam) {
			invalidFilters(x, "d/+/tele#", "d/+/tele/#/", "d/+/#/tele", "d/+/tele/a#", "##", "d/+/tele/##")
		}},
		{"MQTT-4.7.1-3", "MQTT-4.7.1-2", func(x *exam) {
			invalidFilters(x, "d/+x/tele/a", "d/x+/tele/a", "d/x/tele/a+", "d/++/tele/a", "d/x/tele/+#")
		}},
		{"dollar-topics", "dollar-topics", dollarTopicsAreTheHubs},
		{"MQTT-4.7.3-1", "MQTT-4.7.3-1", topicsAreNotEmpty},
		{"MQTT-4.7.3-2", "MQTT-4.7.3-2", topicsHaveNoNullCharacter},
		{"MQTT-4.7.3-4", "MQTT-4.7.3-4", topicsAreNotNormalized},
	}
}

// invalidFilters are refused one by one; that the same codec also takes the valid ones is what every other test shows.
func invalidFilters(x *exam, filters ...string) {
	x.Helper()
	c := x.service()
	c.connect()
	code := wire.TopicFilterInvalid
	if x.version != wire.V5 {
		code = 0x80
	}
	for _, filter := range filters {
		if codes := c.ask(&wire.Subscribe{Filters: []wire.Subscription{{Filter: filter, QoS: 1}}}); len(codes) != 1 || codes[0] != code {
			x.Errorf("SUBSCRIBE to %s was answered with %#x, want %#x", filter, codes, code)
		}
	}
}

// dollarTopicsAreTheHubs by the shipped policy, which lets nobody publish there, nor grants a filter that begins with a wildcard.
func dollarTopicsAreTheHubs(x *exam) {
	c := x.service()
	c.connect()
	for _, filter := range []string{"#", "+/#", "+/monitor/clients", "$other/#", "$/+", "$S/monitor/+"} {
		code := wire.NotAuthorized
		if x.version != wire.V5 {
			code = 0x80
		}
		if codes := c.ask(&wire.Subscribe{Filters: []wire.Subscription{{Filter: filter, QoS: 1}}}); len(codes) != 1 || codes[0] != code {
			x.Errorf("SUBSCRIBE to %s was answered with %#x, want %#x", filter, codes, code)
		}
	}
	c.send(&wire.Publish{Topic: "$SYS/monitor/clients", QoS: 1, ID: 9})
	if x.version != wire.V5 {
		c.cut()
		return
	}
	if a := c.ack(wire.TypePuback, 9); a.Code != wire.NotAuthorized && a.Code != wire.TopicNameInvalid {
		x.Errorf("PUBLISH was answered with %#x", a.Code)
	}
}

func topicsAreNotEmpty(x *exam) {
	c := x.service()
	c.connect()
	c.write(x.publishBytes(2, "", 1, nil, "payload"))
	c.cut(wire.ProtocolError, wire.TopicNameInvalid, wire.MalformedPacket)
	for _, data := range [][]byte{x.subscribeBytes(0x82, 1, "", 0), x.unsubscribeBytes(0xA2, 1, "")} {
		c := x.service()
		c.connect()
		c.write(data)
		c.cut(wire.ProtocolError, wire.TopicFilterInvalid, wire.MalformedPacket)
	}
}

func topicsHaveNoNullCharacter(x *exam) {
	for _, data := range [][]byte{
		x.publishBytes(0, "d/x/cmd/a\x00/1", 0, nil, ""),
		x.publishBytes(0, "\x00", 0, nil, ""),
		x.subscribeBytes(0x82, 1, "d/x/tele/\x00", 0),
		x.unsubscribeBytes(0xA2, 1, "\x00"),
	} {
		c := x.service()
		c.connect()
		c.write(data)
		c.cut(wire.MalformedPacket)
	}
}

// topicsAreNotNormalized: what looks the same, or would be the same path, is another topic.
func topicsAreNotNormalized(x *exam) {
	p := x.pair()
	names := []string{"é", "e\u0301", "É", "a b", "a  b", " a b", "a.b", "..", ".", "%61", "a\\b", "A", "a", "\uFFFD", "😀"}
	for _, name := range names {
		p.sub.subscribe(p.topic(name), 1)
		for _, other := range names {
			p.pub.publish(p.topic(other), other, 1)
		}
		if m := p.sub.takePayload(name); m.Topic != p.topic(name) || !strings.Contains(string(p.sub.raw), p.topic(name)) {
			x.Fatalf("got %s", describe(m))
		}
		p.nothing()
		p.sub.unsubscribe(p.topic(name))
	}
}
