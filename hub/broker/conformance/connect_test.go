package conformance

import (
	"slices"
	"time"

	"github.com/fleethub/fleethub/hub/wire"
)

func connectRules() []rule {
	return []rule{
		{"MQTT-3.1.0-1", "MQTT-3.1.0-1", connectComesFirst},
		{"MQTT-3.1.0-2", "MQTT-3.1.0-2", secondConnectEndsTheConnection},
		{"MQTT-3.1.2-1", "MQTT-3.1.2-1", otherProtocolNamesAreTurnedAway},
		{"MQTT-3.1.2-2", "MQTT-3.1.2-2", otherVersionsAreRefused},
		{"MQTT-3.1.2-3", "MQTT-3.1.2-3", reservedConnectFlag},
		{"MQTT-3.1.2-9", "MQTT-3.1.2-9", willFlagNeedsItsFields},
		{"MQTT-3.1.2-11 MQTT-3.1.2-13", "MQTT-3.1.2-11", willQoSNeedsAWill},
		{"MQTT-3.1.2-14", "MQTT-3.1.2-12", willQoSIsAtMost2},
		{"MQTT-3.1.2-15", "MQTT-3.1.2-13", willRetainNeedsAWill},
		{"MQTT-3.1.2-18", "MQTT-3.1.2-16", userNameNeedsItsFlag},
		{"MQTT-3.1.2-19", "MQTT-3.1.2-17", userNameFlagNeedsAUserName},
		{"MQTT-3.1.2-20", "MQTT-3.1.2-18", passwordNeedsItsFlag},
		{"MQTT-3.1.2-21", "MQTT-3.1.2-19", passwordFlagNeedsAPassword},
		{"MQTT-3.1.2-22", "", passwordNeedsAUserName},
		{"MQTT-3.1.2-24", "MQTT-3.1.2-22 MQTT-3.2.2-22", silenceEndsTheConnection},
		{"MQTT-3.1.3-1", "MQTT-3.1.3-1", fieldsAreReadInTheirOrder},
		{"MQTT-3.1.3-2", "MQTT-3.1.3-2", sessionsBelongToClientIdentifiers},
		{"MQTT-3.1.3-3", "MQTT-3.1.3-3", clientIdentifierIsThere},
		{"MQTT-3.1.3-4", "MQTT-3.1.3-4", func(x *exam) { connectTextIsText(x, "client identifier") }},
		{"MQTT-3.1.3-5", "MQTT-3.1.3-5", everyPlainClientIdentifierIsTaken},
		{"MQTT-3.1.3-6 MQTT-3.1.3-8", "MQTT-3.1.3-6", emptyClientIdentifierIsRefused},
		{"MQTT-3.1.3-9", "MQTT-3.1.3-8", foreignClientIdentifierIsRefused},
		{"MQTT-3.1.3-10", "MQTT-3.1.3-11", func(x *exam) { connectTextIsText(x, "will topic") }},
		{"MQTT-3.1.3-11", "MQTT-3.1.3-12", func(x *exam) { connectTextIsText(x, "user name") }},
		{"MQTT-3.1.4-1", "MQTT-3.1.4-1", malformedConnectsAreTurnedAway},
		{"", "MQTT-3.1.4-2", failedChecksEndTheConnection},
		{"MQTT-3.1.4-2", "MQTT-3.1.4-3", takeoverEndsTheFormerConnection},
		{"MQTT-3.1.4-5", "MQTT-3.1.4-6", nothingAfterARefusalIsProcessed},
	}
}

func connectComesFirst(x *exam) {
	each(x, map[string][]byte{
		"connack":     packet(0x20, []byte{0, 0}, x.props()),
		"publish":     x.publishBytes(0, "d/x/cmd/a/1", 0, nil, "payload"),
		"puback":      packet(0x40, u16(1)),
		"pubrec":      packet(0x50, u16(1)),
		"pubrel":      packet(0x62, u16(1)),
		"pubcomp":     packet(0x70, u16(1)),
		"subscribe":   x.subscribeBytes(0x82, 1, "d/x/tele/#", 0),
		"suback":      packet(0x90, u16(1), x.props(), []byte{0}),
		"unsubscribe": x.unsubscribeBytes(0xA2, 1, "d/x/tele/#"),
		"unsuback":    packet(0xB0, u16(1), x.props()),
		"pingreq":     packet(0xC0),
		"pingresp":    packet(0xD0),
		"disconnect":  packet(0xE0),
		"auth":        packet(0xF0),
		"type 0":      packet(0x00),
		"TLS record":  {0x16, 0x03, 0x01, 0x02, 0x00, 0x01},
		"HTTP":        []byte("GET / HTTP/1.1\r\nHost: hub\r\n\r\n"),
	}, func(x *exam, data []byte) {
		c := x.service()
		c.write(data)
		if got := c.closed(); len(got) > 0 {
			x.Fatalf("got %s", describe(got...)) // a DISCONNECT would come before any CONNACK [MQTT-3.14.0-1]
		}
	})
}

func secondConnectEndsTheConnection(x *exam) {
	c := x.service()
	c.connect()
	c.send(c.connectPacket())
	c.cut(wire.ProtocolError)
}

func otherProtocolNamesAreTurnedAway(x *exam) {
	for _, name := range []string{"", "mqtt", "MQTt", "MQIsdp", "MQTTX", "AMQP", "hj"} {
		c := x.service()
		c.write(packet(0x10, str(name), []byte{x.version, flagClean}, u16(60), x.props(), str(c.id)))
		c.turnedAway(wire.UnsupportedProtocolVersion, wire.MalformedPacket, wire.ProtocolError)
	}
}

func otherVersionsAreRefused(x *exam) {
	levels := []byte{0, 1, 2, 3, 0x84}
	if x.version == wire.V5 {
		levels = []byte{6, 7, 255}
	}
	for _, level := range levels {
		c := x.service()
		c.write(packet(0x10, str("MQTT"), []byte{level, flagClean}, u16(60), x.props(), str(c.id)))
		frame, err := c.frame()
		x.must(err)
		// Whoever sent it, we can only guess which CONNACK it understands.
		if unacceptable := slices.Contains([]byte{1, 0x84}, frame[3]); frame[0] != 0x20 || frame[2] != 0 || !unacceptable || x.version != wire.V5 && level < 4 && string(frame) != "\x20\x02\x00\x01" {
			x.Fatalf("level %d was answered with % x", level, frame)
		}
		c.closed()
	}
}

func reservedConnectFlag(x *exam) {
	c := x.service()
	c.write(x.connectBytes(flagClean|flagReserved, str(c.id)))
	c.turnedAway(wire.MalformedPacket)
}

// misflagged sends CONNECTs whose flags and payload don't fit.
func misflagged(x *exam, flags byte, payload ...[]byte) {
	x.Helper()
	c := x.service()
	c.write(x.connectBytes(flags, append([][]byte{str(c.id)}, payload...)...))
	c.turnedAway(wire.MalformedPacket, wire.ProtocolError)
}

func willFlagNeedsItsFields(x *exam) {
	misflagged(x, flagClean|flagWill)
	misflagged(x, flagClean|flagWill, x.props())
	misflagged(x, flagClean|flagWill, x.props(), str("d/x/cmd/a/1"))
	misflagged(x, flagClean|flagWill, x.props(), str("d/x/cmd/a/1"), u16(3), []byte("ab"))
}

func willQoSNeedsAWill(x *exam) {
	misflagged(x, flagClean|flagWillQoS1)
	misflagged(x, flagClean|2*flagWillQoS1)
	misflagged(x, flagClean, x.props(), str("d/x/cmd/a/1"), str("payload"))
}

func willQoSIsAtMost2(x *exam) {
	misflagged(x, flagClean|flagWill|flagWillQoS3, x.props(), str("d/x/cmd/a/1"), str("payload"))
	misflagged(x, flagClean|flagWillQoS3)
	willKeepsItsQoS(x)
}

func willRetainNeedsAWill(x *exam) { misflagged(x, flagClean|flagWillRetain) }

func userNameNeedsItsFlag(x *exam) { misflagged(x, flagClean, str("user")) }

func userNameFlagNeedsAUserName(x *exam) {
	misflagged(x, flagClean|flagUsername)
	misflagged(x, flagClean|flagUsername, u16(5), []byte("user"))
}

func passwordNeedsItsFlag(x *exam) {
	misflagged(x, flagClean|flagUsername, str("user"), str("password"))
}

func passwordFlagNeedsAPassword(x *exam) {
	misflagged(x, flagClean|flagUsername|flagPassword, str("user"))
	misflagged(x, flagClean|flagUsername|flagPassword, str("user"), u16(9), []byte("password"))
}

func passwordNeedsAUserName(x *exam) {
	misflagged(x, flagClean|flagPassword, str("password"))
	misflagged(x, flagClean|flagPassword)
}

// silenceEndsTheConnection: after one and a half times the keep-alive, as if the network had failed, so the will is published.
func silenceEndsTheConnection(x *exam) {
	d := x.device()
	w := x.watch(d)
	began := time.Now()
	d.connect(keepAlive(1), will("d/"+d.id+"/evt/gone", "silent", 1))
	for _, p := range d.closed() {
		if p, ok := p.(*wire.Disconnect); !ok || x.version != wire.V5 || p.Code != wire.KeepAliveTimeout {
			x.Fatalf("before it closed the connection, the hub sent %s", describe(p))
		}
	}
	if silence := time.Since(began); silence < 1400*time.Millisecond {
		x.Fatalf("the connection was closed after %v, want 1.5 s", silence)
	}
	w.takePayload("silent")
}

// fieldsAreReadInTheirOrder writes a CONNECT by hand and looks what became of each field.
func fieldsAreReadInTheirOrder(x *exam) {
	d := x.device()
	w := x.watch(d)
	d.write(x.connectBytes(flagClean|flagWill|flagWillQoS1, str(d.id), x.props(), str("d/"+d.id+"/evt/will"), str("last words")))
	want[*wire.Connack](d)
	if d.raw[3] != 0 {
		x.Fatalf("CONNECT was answered with %#x", d.raw[3])
	}
	d.alive()
	d.hangUp()
	if m := w.takePayload("last words"); m.Topic != "d/"+d.id+"/evt/will" {
		x.Fatalf("got %s", describe(m))
	}
}

// sessionsBelongToClientIdentifiers: two of one service, and a device and a service of one name.
func sessionsBelongToClientIdentifiers(x *exam) {
	d := x.device()
	credential := x.hub.service()
	one, two := x.dial(credential), x.dial(credential)
	one.id, two.id = credential.Identity.ID+":one", credential.Identity.ID+":two"
	one.connect(persistent)
	one.subscribe("d/"+d.id+"/tele/one", 1)
	two.connect(persistent)
	two.subscribe("d/"+d.id+"/tele/two", 1)
	one.hangUp()
	two.hangUp()
	d.connect()
	d.publish("d/"+d.id+"/tele/one", "for one", 1)
	d.publish("d/"+d.id+"/tele/two", "for two", 1)
	for c, payload := range map[*client]string{one.again(): "for one", two.again(): "for two"} {
		if ack := c.connect(persistent); !ack.SessionPresent {
			x.Errorf("%s has no session", c.id)
		}
		c.takePayload(payload)
		c.alive()
	}
	namesake := x.dial(x.hub.named(d.id))
	if ack := namesake.connect(persistent); ack.SessionPresent {
		x.Error("a service has the session of a device of the same name")
	}
	d.alive()
}

func clientIdentifierIsThere(x *exam) {
	c := x.service()
	c.write(x.connectBytes(flagClean))
	c.turnedAway(wire.MalformedPacket, wire.ProtocolError)
	c = x.service()
	c.write(x.connectBytes(flagClean, u16(20), []byte("short")))
	c.turnedAway(wire.MalformedPacket, wire.ProtocolError)
}

func connectTextIsText(x *exam, place string) {
	for _, text := range []string{"\xFF", "\xED\xA0\x80", "\xC0\x80", "a\x00b"} {
		c := x.service()
		c.write(x.textPlacesOfConnect(text)[place])
		c.turnedAway(wire.MalformedPacket)
	}
}

// everyPlainClientIdentifierIsTaken: the identifier must be the certificate's, so the rule is one about names in certificates.
func everyPlainClientIdentifierIsTaken(x *exam) {
	unique := x.hub.service().Identity.ID // so that no other run of this rule takes our sessions over
	for _, id := range []string{"0" + unique, "Z" + unique, "abcdefghijklmnopqrstuvw"[:23-len(unique)] + unique, "XYZ0123456789ABCDEFGHIJ"[:23-len(unique)] + unique} {
		c := x.dial(x.hub.named(id))
		c.connect()
		c.alive()
	}
}

func emptyClientIdentifierIsRefused(x *exam) {
	for _, session := range []option{clean, persistent} {
		c := x.service()
		c.id = ""
		c.send(c.connectPacket(session))
		c.refused(2, wire.ClientIdentifierNotValid)
	}
}

func foreignClientIdentifierIsRefused(x *exam) {
	owner := x.device()
	owner.connect()
	for _, c := range []*client{x.device(), x.service()} {
		c.send(c.connectPacket(func(p *wire.Connect) { p.ClientID = owner.id }))
		c.refused(2, wire.ClientIdentifierNotValid)
	}
	owner.alive()
}

func malformedConnectsAreTurnedAway(x *exam) {
	whole := x.connectBytes(flagClean|flagWill, str("svc"), x.props(), str("d/x/cmd/a/1"), str("payload"))[2:]
	for n := range len(whole) {
		c := x.service()
		c.write(packet(0x10, whole[:n]))
		c.turnedAway(wire.MalformedPacket, wire.ProtocolError)
	}
	c := x.service()
	c.write(packet(0x10, whole, []byte{0}))
	c.turnedAway(wire.MalformedPacket, wire.ProtocolError)
	c = x.service()
	c.write([]byte{0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0x01})
	c.turnedAway(wire.MalformedPacket)
}

func failedChecksEndTheConnection(x *exam) {
	d := x.device()
	d.send(d.connectPacket(will("d/other/evt/gone", "", 0)))
	d.refused(5, wire.NotAuthorized)
	s := x.service()
	s.send(s.connectPacket(func(p *wire.Connect) { p.ClientID = s.id + ":\x07" }))
	s.refused(2, wire.ClientIdentifierNotValid)
}

// takeoverEndsTheFormerConnection, even that of a client that does not read.
func takeoverEndsTheFormerConnection(x *exam) {
	d := x.device()
	d.connect()
	next := d.again()
	next.connect()
	d.cut(wire.SessionTakenOver)
	next.alive()
}

func nothingAfterARefusalIsProcessed(x *exam) {
	d := x.device()
	w := x.watch(d)
	refused := d.again()
	hello, err := wire.Append(nil, refused.connectPacket(func(p *wire.Connect) { p.ClientID = "other" }), x.version)
	x.must(err)
	refused.write(append(hello, x.publishBytes(0, "d/"+d.id+"/tele/a", 0, nil, "smuggled")...))
	refused.refused(2, wire.ClientIdentifierNotValid)
	d.connect()
	d.publish("d/"+d.id+"/tele/a", "honest", 1)
	w.takePayload("honest")
}
