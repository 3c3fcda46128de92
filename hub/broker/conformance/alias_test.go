package conformance

import (
	"fmt"
	"strings"

	"github.com/fleethub/fleethub/hub/wire"
)

func aliasRules() []rule {
	return []rule{
		{"", "MQTT-3.3.2-7", aliasesEndWithTheConnection},
		{"", "MQTT-3.3.2-8", aliasZeroEndsTheConnection},
		{"", "MQTT-3.3.2-9", aliasAboveTheHubsMaximum},
		{"", "MQTT-3.3.2-12", everyAnnouncedAliasIsTaken},
		{"", "MQTT-3.1.2-26 MQTT-3.3.2-11", hubKeepsToTheClientsMaximum},
		{"", "MQTT-3.1.2-27", hubSendsNoAliasUnasked},
		{"", "alias-is-authorized", aliasIsAuthorized},
		{"", "alias-of-a-dropped-message", aliasOfADroppedMessage},
	}
}

func aliasesEndWithTheConnection(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 0)
	c := p.pub.again()
	if c.connect(fresh).TopicAliasMaximum == 0 {
		return // then MQTT-3.2.2-18 says that none is taken at all
	}
	c.send(&wire.Publish{Topic: p.topic("a"), Alias: 1, Payload: []byte("sets it")})
	c.send(&wire.Publish{Alias: 1, Payload: []byte("uses it")})
	p.sub.takePayload("sets it")
	if m := p.sub.takePayload("uses it"); m.Topic != p.topic("a") {
		x.Fatalf("got %s", describe(m))
	}
	c.hangUp()
	c = c.again()
	c.connect(persistent)
	c.send(&wire.Publish{Alias: 1, Payload: []byte("of the former connection")})
	c.cut(wire.ProtocolError, wire.TopicAliasInvalid)
	c = c.again()
	c.connect()
	p.pub = c
	p.nothing()
}

func aliasZeroEndsTheConnection(x *exam) {
	for _, topic := range []string{"d/x/cmd/a/1", ""} {
		c := x.service()
		c.connect()
		c.write(x.publishBytes(0, topic, 0, prop(0x23, u16(0)), ""))
		c.cut(wire.TopicAliasInvalid, wire.ProtocolError)
	}
}

// everyAnnouncedAliasIsTaken, and can be given another topic.
func everyAnnouncedAliasIsTaken(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 0)
	c := p.pub.again()
	limit := c.connect().TopicAliasMaximum
	name := func(alias uint16, round int) string { return p.topic(fmt.Sprint(alias, "-", round)) }
	for round := range 2 {
		for alias := uint16(1); alias <= min(limit, 300); alias++ {
			c.send(&wire.Publish{Topic: name(alias, round), Alias: alias, Payload: []byte("named")})
			if m := p.sub.takePayload("named"); m.Topic != name(alias, round) {
				x.Fatalf("got %s, want %s", describe(m), name(alias, round))
			}
		}
		for alias := uint16(1); alias <= min(limit, 300); alias++ {
			c.send(&wire.Publish{Alias: alias, Payload: []byte("by alias")})
			if m := p.sub.takePayload("by alias"); m.Topic != name(alias, round) {
				x.Fatalf("alias %d: got %s, want %s", alias, describe(m), name(alias, round))
			}
		}
	}
	if limit > 0 {
		c.send(&wire.Publish{Topic: p.topic("last"), Alias: limit, Payload: []byte("the last")})
		p.sub.takePayload("the last")
	}
}

// hubKeepsToTheClientsMaximum: it need not use any, but those that it uses are within the maximum and stand for the right topic.
func hubKeepsToTheClientsMaximum(x *exam) {
	p := x.pair(func(c *wire.Connect) { c.TopicAliasMaximum = 2 })
	aliases := make(map[uint16]string)
	p.sub.subscribe(p.all(), 1)
	for round := range 3 {
		for i := range 5 {
			topic := p.topic(fmt.Sprint(i))
			p.pub.publish(topic, topic, byte(round%2))
			m := p.sub.receive()
			if m.Alias > 2 {
				x.Fatalf("got %s", describe(m))
			}
			if m.Topic == "" {
				m.Topic = aliases[m.Alias]
			}
			if m.Alias != 0 {
				aliases[m.Alias] = m.Topic
			}
			if m.Topic != topic || string(m.Payload) != topic {
				x.Fatalf("got %s, want topic %s", describe(m), topic)
			}
			p.sub.accept(m)
		}
	}
}

func hubSendsNoAliasUnasked(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 1)
	for range 3 {
		p.pub.publish(p.topic("a"), "payload", 1)
		if m := p.sub.take(); m.Alias != 0 || m.Topic != p.topic("a") {
			x.Fatalf("got %s", describe(m))
		}
	}
}

// aliasIsAuthorized as the topic that it stands for, each time.
func aliasIsAuthorized(x *exam) {
	d := x.device()
	w := x.watch(d)
	s := x.service()
	if s.connect().TopicAliasMaximum == 0 {
		return
	}
	for _, topic := range []string{"d/" + d.id + "/tele/a", "", ""} {
		if code := s.try(&wire.Publish{Topic: topic, Alias: 1, QoS: 1, Payload: []byte("forged")}); code != wire.NotAuthorized {
			x.Fatalf("topic %q was answered with %#x", topic, code)
		}
	}
	nothingFrom(d, w)
}

// aliasOfADroppedMessage: what was too large to send has told the client of no alias.
func aliasOfADroppedMessage(x *exam) {
	p := x.pair(maximum(200), func(c *wire.Connect) { c.TopicAliasMaximum = 10 })
	p.sub.subscribe(p.all(), 1)
	p.pub.publish(p.topic("a"), strings.Repeat("x", 300), 1)
	p.pub.publish(p.topic("a"), "small", 1)
	if m := p.sub.takePayload("small"); m.Topic != p.topic("a") {
		x.Fatalf("got %s, want its topic in full", describe(m))
	}
}
