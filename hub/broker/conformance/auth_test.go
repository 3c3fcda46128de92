package conformance

import (
	"github.com/fleethub/fleethub/hub/wire"
)

func authRules() []rule {
	return []rule{
		{"", "MQTT-4.12.0-1 MQTT-4.12.0-4", enhancedAuthenticationIsRefused},
		{"", "MQTT-4.12.0-6", noAuthFromTheHub},
		{"", "MQTT-4.12.0-7", noAuthFromClients},
		{"", "MQTT-3.15.1-1", authFlags},
	}
}

func enhancedAuthenticationIsRefused(x *exam) {
	for _, data := range [][]byte{nil, []byte("data")} {
		c := x.device()
		c.send(c.connectPacket(func(p *wire.Connect) { p.AuthMethod, p.AuthData = "SCRAM-SHA-256", data }))
		c.refused(0, wire.BadAuthenticationMethod, wire.NotAuthorized)
	}
}

func noAuthFromTheHub(x *exam) {
	c := x.device()
	if ack := c.connect(); ack.AuthMethod != "" || ack.AuthData != nil {
		x.Fatalf("got %s", describe(ack))
	}
	c.alive()
}

func noAuthFromClients(x *exam) {
	for _, code := range []byte{0x00, 0x18, 0x19} {
		c := x.device()
		c.connect()
		c.write(packet(0xF0, []byte{code}, x.props(prop(0x15, str("method")))))
		c.cut(wire.ProtocolError, wire.BadAuthenticationMethod)
	}
}

func authFlags(x *exam) {
	for flags := byte(1); flags < 16; flags++ {
		c := x.device()
		c.connect()
		c.write(packet(0xF0|flags, []byte{0x18}, x.props(prop(0x15, str("method")))))
		c.cut(wire.MalformedPacket)
	}
}
