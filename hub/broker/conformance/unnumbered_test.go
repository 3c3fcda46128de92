package conformance

import (
	"github.com/fleethub/fleethub/hub/wire"
)

// unnumberedRules are obligations that the specifications state without a number, mostly as "it is a Protocol Error".
func unnumberedRules() []rule {
	return []rule{
		{"malformed-packets", "malformed-packets", malformedPackets},
		{"server-packets", "server-packets", packetsOfAServer},
		{"reserved-types", "reserved-types", reservedTypes},
		{"unknown-acknowledgements", "unknown-acknowledgements", unknownAcknowledgements},
		{"", "properties-once", propertiesComeOnce},
		{"", "properties-of-the-packet", propertiesOfOtherPackets},
		{"", "property-values", propertyValues},
		{"", "connect-properties", connectProperties},
		{"", "subscription-options", subscriptionOptions},
		{"", "reason-codes", reasonCodesOfOtherPackets},
		{"", "unknown-alias", unknownAlias},
		{"", "expiry-at-disconnect", expiryAtDisconnect},
		{"", "expiry-capped", expiryIsCapped},
		{"", "shared-not-retained", sharedGetsNothingRetained},
		{"", "no-matching-subscribers", nobodySubscribed},
		{"", "will-delay-ends-with-session", willDelayEndsWithTheSession},
		{"", "shared-beside-own", sharedBesideOwn},
		{"mixed-versions", "mixed-versions", versionsMix},
	}
}

// ends sends each packet on a connection of its own, which must end with one of the codes.
func ends(x *exam, cases map[string][]byte, codes ...wire.Code) {
	x.Helper()
	each(x, cases, func(x *exam, data []byte) {
		c := x.service()
		c.connect()
		c.write(data)
		c.cut(codes...)
	})
}

func malformedPackets(x *exam) {
	ends(x, map[string][]byte{
		"length of five bytes":       {0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F},
		"puback without identifier":  packet(0x40),
		"puback, half an identifier": packet(0x40, []byte{1}),
		"pubrel without identifier":  packet(0x62),
		"publish without identifier": packet(0x32, str("d/x/cmd/a/1")),
		"subscribe without options":  packet(0x82, u16(1), x.props(), str("d/x/tele/#")),
		"subscribe, half a filter":   packet(0x82, u16(1), x.props(), u16(30), []byte("d/x")),
		"unsubscribe, half a filter": packet(0xA2, u16(1), x.props(), u16(30), []byte("d/x")),
		"pingreq with a body":        packet(0xC0, []byte{0}),
	}, wire.MalformedPacket, wire.ProtocolError)
	if x.version == wire.V5 {
		ends(x, map[string][]byte{
			"subscribe of 8 bytes":              packet(0x82, u16(1), []byte{0}, u16(10), []byte("a")),
			"property length beyond the packet": packet(0x30, str("d/x/cmd/a/1"), []byte{50}, []byte("payload")),
			"property cut by its length":        packet(0x30, str("d/x/cmd/a/1"), []byte{3, 0x02, 0, 0}),
			"property length of five bytes":     packet(0x30, str("d/x/cmd/a/1"), []byte{0x80, 0x80, 0x80, 0x80, 0}),
			"publish without properties":        packet(0x30, str("d/x/cmd/a/1")),
		}, wire.MalformedPacket)
	} else {
		ends(x, map[string][]byte{
			"puback of three bytes":  packet(0x40, u16(1), []byte{0}),
			"disconnect with a body": packet(0xE0, []byte{0}),
		})
	}
}

func packetsOfAServer(x *exam) {
	ends(x, map[string][]byte{
		"connack":  packet(0x20, []byte{0, 0}, x.props()),
		"suback":   packet(0x90, u16(1), x.props(), []byte{0}),
		"unsuback": packet(0xB0, u16(1), x.props()),
		"pingresp": packet(0xD0),
	}, wire.ProtocolError, wire.MalformedPacket)
}

func reservedTypes(x *exam) {
	types := map[string][]byte{"type 0": packet(0x00), "type 0 with flags": packet(0x02)}
	if x.version != wire.V5 {
		types["type 15"] = packet(0xF0)
	}
	ends(x, types, wire.MalformedPacket, wire.ProtocolError)
}

// unknownAcknowledgements harm nobody: they come of a session that one side has lost.
func unknownAcknowledgements(x *exam) {
	c := x.device()
	c.connect()
	c.send(&wire.Ack{Kind: wire.TypePuback, ID: 77})
	c.send(&wire.Ack{Kind: wire.TypePubcomp, ID: 77})
	c.alive()
	c.send(&wire.Ack{Kind: wire.TypePubrel, ID: 77})
	c.ack(wire.TypePubcomp, 77)
	c.alive()
}

func twice(property []byte) []byte { return append(append([]byte{}, property...), property...) }

func propertiesComeOnce(x *exam) {
	ends(x, map[string][]byte{
		"payload format":          x.publishBytes(0, "d/x/cmd/a/1", 0, twice(prop(0x01, []byte{1})), ""),
		"message expiry":          x.publishBytes(0, "d/x/cmd/a/1", 0, twice(prop(0x02, u32(9))), ""),
		"content type":            x.publishBytes(0, "d/x/cmd/a/1", 0, twice(prop(0x03, str("a"))), ""),
		"response topic":          x.publishBytes(0, "d/x/cmd/a/1", 0, twice(prop(0x08, str("a"))), ""),
		"correlation data":        x.publishBytes(0, "d/x/cmd/a/1", 0, twice(prop(0x09, str("a"))), ""),
		"topic alias":             x.publishBytes(0, "d/x/cmd/a/1", 0, twice(prop(0x23, u16(1))), ""),
		"subscription identifier": packet(0x82, u16(1), x.props(twice(prop(0x0B, []byte{1}))), str("d/x/tele/#"), []byte{0}),
		"reason string":           packet(0x40, u16(1), []byte{0}, x.props(twice(prop(0x1F, str("a"))))),
		"session expiry":          packet(0xE0, []byte{0}, x.props(twice(prop(0x11, u32(0))))),
	}, wire.ProtocolError)
	each(x, map[string][]byte{
		"session expiry":      prop(0x11, u32(9)),
		"receive maximum":     prop(0x21, u16(9)),
		"maximum packet size": prop(0x27, u32(99)),
		"alias maximum":       prop(0x22, u16(9)),
		"response info":       prop(0x19, []byte{1}),
		"problem info":        prop(0x17, []byte{1}),
	}, func(x *exam, property []byte) {
		c := x.service()
		c.write(connectWith(c.id, twice(property)))
		c.turnedAway(wire.ProtocolError)
	})
}

func propertiesOfOtherPackets(x *exam) {
	ends(x, map[string][]byte{
		"session expiry in publish":        x.publishBytes(0, "d/x/cmd/a/1", 0, prop(0x11, u32(9)), ""),
		"reason string in publish":         x.publishBytes(0, "d/x/cmd/a/1", 0, prop(0x1F, str("a")), ""),
		"assigned identifier in publish":   x.publishBytes(0, "d/x/cmd/a/1", 0, prop(0x12, str("a")), ""),
		"unknown property":                 x.publishBytes(0, "d/x/cmd/a/1", 0, prop(0x7F, []byte{1}), ""),
		"property 0":                       x.publishBytes(0, "d/x/cmd/a/1", 0, prop(0x00, []byte{1}), ""),
		"expiry in subscribe":              packet(0x82, u16(1), x.props(prop(0x02, u32(1))), str("d/x/tele/#"), []byte{0}),
		"sub identifier in unsubscribe":    packet(0xA2, u16(1), x.props(prop(0x0B, []byte{1})), str("d/x/tele/#")),
		"content type in puback":           packet(0x40, u16(1), []byte{0}, x.props(prop(0x03, str("a")))),
		"server reference in a disconnect": packet(0xE0, []byte{0}, x.props(prop(0x21, u16(1)))),
	}, wire.MalformedPacket, wire.ProtocolError)
	for _, property := range [][]byte{prop(0x23, u16(1)), prop(0x02, u32(1)), prop(0x24, []byte{1}), prop(0x7F, nil)} {
		c := x.service()
		c.write(connectWith(c.id, property))
		c.turnedAway(wire.MalformedPacket, wire.ProtocolError)
	}
}

func propertyValues(x *exam) {
	ends(x, map[string][]byte{
		"payload format 2":          x.publishBytes(0, "d/x/cmd/a/1", 0, prop(0x01, []byte{2}), ""),
		"subscription identifier 0": packet(0x82, u16(1), x.props(prop(0x0B, []byte{0})), str("d/x/tele/#"), []byte{0}),
		"identifier of five bytes":  packet(0x82, u16(1), x.props(prop(0x0B, []byte{0x80, 0x80, 0x80, 0x80, 1})), str("d/x/tele/#"), []byte{0}),
	}, wire.ProtocolError, wire.MalformedPacket)
}

func connectProperties(x *exam) {
	each(x, map[string][]byte{
		"receive maximum 0":        prop(0x21, u16(0)),
		"maximum packet size 0":    prop(0x27, u32(0)),
		"response information 2":   prop(0x19, []byte{2}),
		"problem information 2":    prop(0x17, []byte{2}),
		"authentication data only": prop(0x16, str("data")),
	}, func(x *exam, property []byte) {
		c := x.service()
		c.write(connectWith(c.id, property))
		c.turnedAway(wire.ProtocolError)
	})
}

func subscriptionOptions(x *exam) {
	ends(x, map[string][]byte{
		"QoS 3":             x.subscribeBytes(0x82, 1, "d/x/tele/#", 0x03),
		"retain handling 3": x.subscribeBytes(0x82, 1, "d/x/tele/#", 0x30),
	}, wire.ProtocolError, wire.MalformedPacket)
}

func reasonCodesOfOtherPackets(x *exam) {
	ends(x, map[string][]byte{
		"puback":             packet(0x40, u16(1), []byte{0x92}),
		"pubrec":             packet(0x50, u16(1), []byte{0x8E}),
		"pubrel":             packet(0x62, u16(1), []byte{0x80}),
		"pubcomp":            packet(0x70, u16(1), []byte{0x10}),
		"disconnect":         packet(0xE0, []byte{0x01}),
		"disconnect, server": packet(0xE0, []byte{0x8E}),
	}, wire.ProtocolError, wire.MalformedPacket)
}

func unknownAlias(x *exam) {
	c := x.service()
	c.connect()
	c.write(x.publishBytes(0, "", 0, prop(0x23, u16(1)), ""))
	c.cut(wire.ProtocolError, wire.TopicAliasInvalid)
	c = x.service()
	c.connect()
	c.write(x.publishBytes(0, "", 0, nil, "no alias at all"))
	c.cut(wire.ProtocolError, wire.TopicNameInvalid)
}

// expiryAtDisconnect: a DISCONNECT may change the interval, but not make a session outlive its connection that was not to.
func expiryAtDisconnect(x *exam) {
	c := x.device()
	c.connect(clean, expiring(0))
	hour, none := uint32(3600), uint32(0)
	c.send(&wire.Disconnect{SessionExpiry: &hour})
	c.cut(wire.ProtocolError)
	c = c.again()
	if ack := c.connect(persistent); ack.SessionPresent {
		x.Fatal("the session outlived its connection")
	}
	c.send(&wire.Disconnect{SessionExpiry: &none})
	c.closed()
	c = c.again()
	if ack := c.connect(clean, expiring(1)); ack.SessionPresent {
		x.Fatal("the session outlived its connection")
	}
	c.send(&wire.Disconnect{SessionExpiry: &hour})
	c.closed()
	x.elapse(2)
	c = c.again()
	if ack := c.connect(persistent); !ack.SessionPresent {
		x.Fatal("the session ended before its interval")
	}
}

func expiryIsCapped(x *exam) {
	const most = 7 * 24 * 3600
	for _, asked := range []uint32{most + 1, 0xFFFFFFFF} {
		c := x.device()
		if ack := c.connect(clean, expiring(asked)); ack.SessionExpiry == nil || *ack.SessionExpiry != most {
			x.Errorf("asked for %d, got %s, want a session expiry of %d", asked, describe(ack), most)
		}
	}
	c := x.device()
	if ack := c.connect(clean, expiring(most)); ack.SessionExpiry != nil && *ack.SessionExpiry != most {
		x.Errorf("asked for %d, got %s", most, describe(ack))
	}
}

func sharedGetsNothingRetained(x *exam) {
	d := x.device()
	d.connect()
	d.publishAll(&wire.Publish{Topic: "d/" + d.id + "/tele/a", QoS: 1, Retain: true, Payload: []byte("kept")})
	s := x.service()
	s.connect()
	s.subscribe("$share/team/d/"+d.id+"/tele/+", 1)
	d.publish("d/"+d.id+"/tele/a", "live", 1)
	s.takePayload("live")
}

// nobodySubscribed may be said, and need not.
func nobodySubscribed(x *exam) {
	p := x.pair()
	for qos := byte(1); qos <= 2; qos++ {
		if code := p.pub.try(&wire.Publish{Topic: p.topic("a"), QoS: qos}); code != wire.NoMatchingSubscribers && code != wire.Success {
			x.Errorf("answered with %#x", code)
		}
	}
	p.sub.subscribe(p.all(), 0)
	if code := p.pub.try(&wire.Publish{Topic: p.topic("a"), QoS: 1}); code != wire.Success {
		x.Errorf("with a subscriber, answered with %#x", code)
	}
}

func willDelayEndsWithTheSession(x *exam) {
	for _, session := range []uint32{0, 1} {
		d := x.device()
		w := x.watch(d)
		d.connect(clean, expiring(session), will(gone(d), "last words", 1), delay(1000))
		d.hangUp()
		w.takePayload("last words")
	}
}

// sharedBesideOwn: a shared subscription and one of the client's own are two.
func sharedBesideOwn(x *exam) {
	g := x.group(1, 1)
	m := g.members[0]
	m.subscribe("d/"+g.device.id+"/tele/+", 0)
	g.say("twice", 1)
	if one, two := m.takePayload("twice"), m.takePayload("twice"); one.QoS+two.QoS != 1 {
		x.Fatalf("got %s and %s, want QoS 0 and 1", describe(one), describe(two))
	}
}

// versionsMix: a message goes from either version to the other, with its properties where there is room for them; so does a session.
func versionsMix(x *exam) {
	other := &exam{T: x.T, hub: x.hub, version: wire.V311 + wire.V5 - x.version}
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	foreign := other.service()
	foreign.connect()
	minute := uint32(60)
	for qos := range byte(3) {
		m := &wire.Publish{Topic: p.topic("a"), QoS: qos, Payload: []byte("across")}
		if other.version == wire.V5 {
			m.Props, m.Expiry = fullProperties(), &minute
		}
		foreign.publishAll(m)
		if m := p.sub.takePayload("across"); m.QoS != qos {
			x.Fatalf("got %s", describe(m))
		}
	}
	p.sub.hangUp()
	p.pub.publish(p.topic("a"), "for the other version", 1)
	p.sub = other.dial(p.sub.credential)
	if p.sub.connect(persistent); !p.sub.sessionPresent() {
		x.Fatal("the session of the other version is gone")
	}
	p.sub.takePayload("for the other version")
}
