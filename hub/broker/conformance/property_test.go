package conformance

import (
	"bytes"
	"reflect"
	"slices"

	"github.com/fleethub/fleethub/hub/wire"
)

func propertyRules() []rule {
	return []rule{
		{"", "MQTT-3.3.2-4 MQTT-3.3.2-15 MQTT-3.3.2-16 MQTT-3.3.2-17 MQTT-3.3.2-18 MQTT-3.3.2-20", propertiesArePassedOnUnchanged},
		{"", "MQTT-3.3.2-13", func(x *exam) { propertyIsText(x, 0x08) }},
		{"", "MQTT-3.3.2-14", responseTopicHasNoWildcard},
		{"", "MQTT-3.3.2-19", func(x *exam) { propertyIsText(x, 0x03) }},
		{"", "MQTT-3.1.2-29", noReasonsForThoseWhoWantNone},
	}
}

// fullProperties has every property that travels with a message, user properties out of order and repeated.
func fullProperties() *wire.MessageProperties {
	return &wire.MessageProperties{
		Format:        1,
		ContentType:   "text/plain; charset=utf-8",
		ResponseTopic: "d/somebody/res/7",
		Correlation:   []byte{0, 1, 0xFF, 0},
		User:          []wire.User{{Key: "b", Value: "1"}, {Key: "a", Value: "2"}, {Key: "b", Value: "0"}, {Key: "", Value: ""}, {Key: "b", Value: "1"}},
	}
}

// sameProperties fails the test if a message's properties aren't those.
func sameProperties(x *exam, m *wire.Publish, want *wire.MessageProperties) {
	x.Helper()
	if m.Props == nil {
		x.Fatalf("%s has no properties", describe(m))
	}
	got := *m.Props
	if got.Format != want.Format || got.ContentType != want.ContentType || got.ResponseTopic != want.ResponseTopic ||
		!bytes.Equal(got.Correlation, want.Correlation) || !slices.Equal(got.User, want.User) {
		x.Fatalf("got properties %+v, want %+v", got, *want)
	}
}

// propertiesArePassedOnUnchanged at every QoS, at once, after an absence and from the retained message.
func propertiesArePassedOnUnchanged(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	for qos := range byte(3) {
		p.pub.publishAll(&wire.Publish{Topic: p.topic("a"), QoS: qos, Props: fullProperties()})
		sameProperties(x, p.sub.take(), fullProperties())
	}
	p.sub.hangUp()
	p.pub.publishAll(&wire.Publish{Topic: p.topic("a"), QoS: 1, Props: fullProperties()})
	p.comeBack(persistent)
	sameProperties(x, p.sub.take(), fullProperties())
	p.pub.publishAll(&wire.Publish{Topic: p.topic("kept"), QoS: 1, Retain: true, Payload: []byte("kept"), Props: fullProperties()})
	p.sub.take()
	p.sub.subscribe(p.topic("kept"), 1)
	sameProperties(x, p.sub.takePayload("kept"), fullProperties())
	p.pub.publish(p.topic("a"), "none", 1)
	if m := p.sub.takePayload("none"); m.Props != nil && !reflect.DeepEqual(*m.Props, wire.MessageProperties{}) {
		x.Fatalf("a message without properties came with %+v", *m.Props)
	}
}

func propertyIsText(x *exam, id byte) {
	for _, text := range []string{"\xFF", "a\x00", "\xED\xA0\x80"} {
		c := x.service()
		c.connect()
		c.write(x.publishBytes(0, "d/x/cmd/a/1", 0, prop(id, str(text)), ""))
		c.cut(wire.MalformedPacket)
	}
}

func responseTopicHasNoWildcard(x *exam) {
	for _, topic := range []string{"#", "+", "a/+/b", "a/#"} {
		c := x.service()
		c.connect()
		c.write(x.publishBytes(0x02, "d/x/cmd/a/1", 1, prop(0x08, str(topic)), ""))
		c.cut(wire.ProtocolError, wire.MalformedPacket, wire.TopicNameInvalid)
	}
}

// noReasonsForThoseWhoWantNone provokes an error of every kind that has reasons to give.
func noReasonsForThoseWhoWantNone(x *exam) {
	c := x.device()
	c.connect(func(p *wire.Connect) { p.NoProblemInfo = true })
	silent := func(reason string, user []wire.User) {
		x.Helper()
		if reason != "" || len(user) > 0 {
			x.Errorf("% x gives reason %q and user properties %v", c.raw, reason, user)
		}
	}
	c.send(&wire.Publish{Topic: "d/other/tele/a", QoS: 1, ID: 1})
	a := c.ack(wire.TypePuback, 1)
	silent(a.Reason, a.User)
	c.send(&wire.Publish{Topic: "d/other/tele/a", QoS: 2, ID: 2})
	a = c.ack(wire.TypePubrec, 2)
	silent(a.Reason, a.User)
	c.send(&wire.Ack{Kind: wire.TypePubrel, ID: 9})
	a = c.ack(wire.TypePubcomp, 9)
	silent(a.Reason, a.User)
	c.send(&wire.Ack{Kind: wire.TypePubrec, ID: 9})
	a = c.ack(wire.TypePubrel, 9)
	silent(a.Reason, a.User)
	c.send(&wire.Subscribe{ID: 3, Filters: []wire.Subscription{{Filter: "#"}, {Filter: "a/#/b"}}})
	s := c.suback(wire.TypeSuback, 3)
	silent(s.Reason, s.User)
	c.send(&wire.Unsubscribe{ID: 4, Filters: []string{"a/#/b", "d/other/cmd/#"}})
	s = c.suback(wire.TypeUnsuback, 4)
	silent(s.Reason, s.User)
}
