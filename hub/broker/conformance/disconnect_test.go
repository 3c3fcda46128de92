package conformance

import (
	"github.com/fleethub/fleethub/hub/wire"
)

func disconnectRules() []rule {
	return []rule{
		{"MQTT-3.12.4-1", "MQTT-3.12.4-1", func(x *exam) { pingIsAnswered(x) }},
		{"", "MQTT-3.14.0-1", noDisconnectBeforeTheConnack},
		{"MQTT-3.14.1-1", "MQTT-3.14.1-1", func(x *exam) { fixedFlags(x, 0xE0, packet(0xE0)) }},
		{"", "MQTT-3.14.2-1 MQTT-3.14.2-2", farewellsAreWellFormed},
		{"MQTT-3.14.4-1 MQTT-3.14.4-2", "MQTT-3.14.4-1 MQTT-3.14.4-2", nothingAfterADisconnect},
		{"MQTT-4.8.0-1", "MQTT-4.13.1-1 MQTT-4.13.2-1", violationsEndOneConnectionOnly},
	}
}

func pingIsAnswered(x *exam) {
	c := x.device()
	c.connect()
	c.write([]byte{0xC0, 0, 0xC0, 0, 0xC0, 0})
	for range 3 {
		if p := want[*wire.Ping](c); p.Kind != wire.TypePingresp || string(c.raw) != "\xD0\x00" {
			x.Fatalf("got % x", c.raw)
		}
	}
}

func noDisconnectBeforeTheConnack(x *exam) {
	for _, data := range [][]byte{
		packet(0xC0),
		x.connectBytes(flagClean|flagReserved, str("svc")),
		x.connectBytes(flagClean, str("other")),
		packet(0x10, str("MQTT"), []byte{6, flagClean}, u16(60), x.props(), str("svc")),
	} {
		c := x.service()
		c.write(data)
		for _, p := range c.closed() {
			if _, ok := p.(*wire.Disconnect); ok {
				x.Errorf("% x was answered with %s", data, describe(p))
			}
		}
	}
}

// farewellsAreWellFormed: the reader refuses codes that a DISCONNECT may not have, and properties that a server may not send.
func farewellsAreWellFormed(x *exam) {
	farewell := func(c *client, codes ...wire.Code) {
		x.Helper()
		c.cut(codes...)
		if c.raw[0] != 0xE0 {
			x.Fatalf("the last packet is % x", c.raw)
		}
	}
	c := x.device()
	c.connect(fresh)
	next := c.again()
	next.connect(persistent)
	farewell(c, wire.SessionTakenOver)
	next.write(packet(0xC1))
	farewell(next, wire.MalformedPacket)
	last := c.again()
	last.connect(persistent)
	last.send(last.connectPacket())
	farewell(last, wire.ProtocolError)
}

func nothingAfterADisconnect(x *exam) {
	d := x.device()
	w := x.watch(d)
	d.connect()
	d.write(append(packet(0xE0), x.publishBytes(0, "d/"+d.id+"/tele/a", 0, nil, "after the end")...))
	if got := d.closed(); len(got) > 0 {
		x.Fatalf("DISCONNECT was answered with %s", describe(got...))
	}
	nothingFrom(d, w)
}

// violationsEndOneConnectionOnly: not the offender's session, and nobody else's connection.
func violationsEndOneConnectionOnly(x *exam) {
	for _, violation := range [][]byte{packet(0xC1), packet(0x00), packet(0xD0), {0xC0, 0xFF, 0xFF, 0xFF, 0xFF}, packet(0x82, u16(1))} {
		p := x.pair(persistent)
		p.sub.subscribe(p.all(), 1)
		p.sub.write(violation)
		p.sub.cut(wire.MalformedPacket, wire.ProtocolError)
		p.pub.publish(p.topic("a"), "waits", 1)
		if ack := p.comeBack(persistent); !ack.SessionPresent {
			x.Fatalf("% x cost the offender its session", violation)
		}
		p.sub.takePayload("waits")
	}
}
