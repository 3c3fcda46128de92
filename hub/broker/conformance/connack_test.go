package conformance

import (
	"github.com/fleethub/fleethub/hub/wire"
)

func connackRules() []rule {
	return []rule{
		{"MQTT-3.1.4-4", "MQTT-3.1.4-5", acceptedConnectIsAcknowledged},
		{"MQTT-3.2.0-1", "MQTT-3.2.0-1", connackComesFirst},
		{"", "MQTT-3.2.0-2", oneConnackPerConnection},
		{"", "MQTT-3.2.2-1", connackFlagsHaveOneBit},
		{"MQTT-3.1.4-3 MQTT-3.2.2-1", "MQTT-3.1.4-4 MQTT-3.2.2-2", noSessionPresentAfterAClean},
		{"MQTT-3.2.2-2 MQTT-3.2.2-3", "MQTT-3.2.2-3", sessionPresentSaysWhetherThereIsOne},
		{"MQTT-3.2.2-4", "MQTT-3.2.2-6", refusalsHaveNoSession},
		{"MQTT-3.2.2-5", "MQTT-3.2.2-7", refusalsEndTheConnection},
		{"", "MQTT-3.2.2-8", refusalsUseCodesOfConnack},
		{"", "MQTT-3.1.2-28", noResponseInformationUnasked},
		{"", "MQTT-3.2.2-17", aliasAboveTheHubsMaximum},
		{"", "MQTT-3.2.2-18", aliasWithoutAMaximum},
	}
}

func acceptedConnectIsAcknowledged(x *exam) {
	c := x.device()
	c.connect()
	if x.version != wire.V5 && string(c.raw) != "\x20\x02\x00\x00" {
		x.Fatalf("CONNACK is % x", c.raw)
	}
	c.alive()
}

// connackComesFirst, though messages are waiting and requests came right behind the CONNECT.
func connackComesFirst(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 1)
	p.sub.hangUp()
	p.pub.publish(p.topic("a"), "waiting", 1)
	p.sub = p.sub.again()
	hello, err := wire.Append(nil, p.sub.connectPacket(persistent), x.version)
	x.must(err)
	hello = append(hello, x.subscribeBytes(0x82, 9, p.topic("b"), 0)...)
	p.sub.write(append(hello, 0xC0, 0))
	want[*wire.Connack](p.sub)
	if !p.sub.sessionPresent() {
		x.Fatal("the session is gone")
	}
	p.sub.suback(wire.TypeSuback, 9)
	answer[*wire.Ping](p.sub)
	p.sub.takePayload("waiting")
}

// sessionPresent looks at the CONNACK just read.
func (c *client) sessionPresent() bool { return c.raw[2] == 1 }

func oneConnackPerConnection(x *exam) {
	c := x.device()
	c.connect()
	c.send(c.connectPacket())
	for _, p := range c.closed() {
		if _, ok := p.(*wire.Connack); ok {
			x.Fatal("a second CONNECT was answered with a second CONNACK")
		}
	}
}

func connackFlagsHaveOneBit(x *exam) {
	c := x.device()
	c.connect(fresh)
	if c.raw[2] != 0 {
		x.Errorf("connect acknowledge flags are %#x, want 0", c.raw[2])
	}
	c.hangUp()
	c = c.again()
	c.connect(persistent)
	if c.raw[2] != 1 {
		x.Errorf("connect acknowledge flags are %#x, want 1", c.raw[2])
	}
}

func noSessionPresentAfterAClean(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 1)
	p.sub.hangUp()
	p.pub.publish(p.topic("a"), "lost with the session", 1)
	if ack := p.comeBack(clean); ack.SessionPresent {
		x.Fatal("session present after a clean start")
	}
	p.sub.subscribe(p.mark(), 1)
	p.nothing()
}

func sessionPresentSaysWhetherThereIsOne(x *exam) {
	c := x.device()
	for i, want := range []bool{false, true, true} {
		if ack := c.connect(persistent); ack.SessionPresent != want {
			x.Fatalf("session present is %t at connection %d", ack.SessionPresent, i+1)
		}
		c.leave()
		c = c.again()
	}
}

// refuse returns a client whose CONNECT has been refused although it has a session.
func refuse(x *exam) *client {
	d := x.device()
	d.connect(fresh)
	d.leave()
	c := d.again()
	c.send(c.connectPacket(persistent, will("d/other/evt/gone", "", 0)))
	return c
}

func refusalsHaveNoSession(x *exam) {
	c := refuse(x)
	want[*wire.Connack](c)
	if c.raw[3] == 0 || c.raw[2] != 0 {
		x.Fatalf("CONNACK is % x, want an error and session present 0", c.raw)
	}
}

func refusalsEndTheConnection(x *exam) { refuse(x).refused(5, wire.NotAuthorized) }

// refusalsUseCodesOfConnack: the reader refuses every other code.
func refusalsUseCodesOfConnack(x *exam) {
	refuse(x).refused(5, wire.NotAuthorized)
	c := x.device()
	c.send(c.connectPacket(func(p *wire.Connect) { p.ClientID = "other" }))
	c.refused(2, wire.ClientIdentifierNotValid)
}

func noResponseInformationUnasked(x *exam) {
	c := x.device()
	if ack := c.connect(); ack.ResponseInfo != "" {
		x.Fatalf("response information %q, which was not asked for", ack.ResponseInfo)
	}
}

func aliasAboveTheHubsMaximum(x *exam) {
	c := x.service()
	if limit := c.connect().TopicAliasMaximum; limit < 65535 {
		c.send(&wire.Publish{Topic: "d/x/cmd/a/1", Alias: limit + 1})
		c.cut(wire.TopicAliasInvalid)
	}
	c = x.service()
	if c.connect().TopicAliasMaximum < 65535 {
		c.send(&wire.Publish{Topic: "d/x/cmd/a/1", Alias: 65535})
		c.cut(wire.TopicAliasInvalid)
	}
}

// aliasWithoutAMaximum: where the hub announces aliases, using the first is fine.
func aliasWithoutAMaximum(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 0)
	c := p.pub.again()
	limit := c.connect().TopicAliasMaximum
	c.send(&wire.Publish{Topic: p.topic("a"), Alias: 1, Payload: []byte("aliased")})
	if limit == 0 {
		c.cut(wire.TopicAliasInvalid)
		return
	}
	p.sub.takePayload("aliased")
}
