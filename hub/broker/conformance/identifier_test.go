package conformance

import (
	"github.com/fleethub/fleethub/hub/wire"
)

func identifierRules() []rule {
	return []rule{
		{"MQTT-2.3.1-1", "MQTT-2.2.1-3", identifierZeroEndsTheConnection},
		{"MQTT-2.3.1-4", "MQTT-2.2.1-4", identifiersOfTheHubAreUnused},
		{"", "MQTT-4.3.2-1 MQTT-4.3.3-1", identifiersOfTheHubAreUnused},
		{"MQTT-2.3.1-5", "MQTT-2.2.1-2", qos0HasNoIdentifier},
		{"MQTT-2.3.1-6", "MQTT-2.2.1-5", acknowledgementsRepeatTheIdentifier},
		{"MQTT-2.3.1-7", "MQTT-2.2.1-6", subackAndUnsubackRepeatTheIdentifier},
	}
}

func identifierZeroEndsTheConnection(x *exam) {
	each(x, map[string][]byte{
		"subscribe":   x.subscribeBytes(0x82, 0, "d/x/tele/#", 0),
		"unsubscribe": x.unsubscribeBytes(0xA2, 0, "d/x/tele/#"),
		"QoS 1":       x.publishBytes(0x02, "d/x/cmd/a/1", 0, nil, ""),
		"QoS 2":       x.publishBytes(0x04, "d/x/cmd/a/1", 0, nil, ""),
		"puback":      packet(0x40, u16(0)),
		"pubrec":      packet(0x50, u16(0)),
		"pubrel":      packet(0x62, u16(0)),
		"pubcomp":     packet(0x70, u16(0)),
	}, func(x *exam, data []byte) {
		c := x.service()
		c.connect()
		c.write(data)
		c.cut(wire.ProtocolError, wire.MalformedPacket)
	})
}

// identifiersOfTheHubAreUnused leaves messages of both kinds open and has some acknowledged in between.
func identifiersOfTheHubAreUnused(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 2)
	open := make(map[uint16]bool)
	var acknowledge []*wire.Publish
	for i := range 40 {
		p.pub.publish(p.topic("a"), "payload", byte(1+i%2))
		m := p.sub.receive()
		if m.ID == 0 || open[m.ID] {
			x.Fatalf("message %d has identifier %d, which is 0 or of a message that is not yet acknowledged", i, m.ID)
		}
		open[m.ID] = true
		if i%3 == 0 {
			acknowledge = append(acknowledge, m)
		}
		if i%10 == 9 {
			for _, m := range acknowledge {
				p.sub.accept(m)
				delete(open, m.ID)
			}
			acknowledge = nil
		}
	}
}

func qos0HasNoIdentifier(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 2)
	p.pub.publish(p.topic("a"), "payload", 0)
	p.sub.receive()
	if want := x.publishBytes(0, p.topic("a"), 0, nil, "payload"); string(p.sub.raw) != string(want) {
		x.Fatalf("got % x, want % x", p.sub.raw, want)
	}
}

// acknowledgementsRepeatTheIdentifier uses identifiers at both ends of their range and in no order.
func acknowledgementsRepeatTheIdentifier(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 2)
	for _, id := range []uint16{65535, 1, 300, 2, 0x8000} {
		p.pub.publishAll(
			&wire.Publish{Topic: p.topic("a"), QoS: 1, ID: id},
			&wire.Publish{Topic: p.topic("a"), QoS: 2, ID: id},
		)
		p.sub.take()
		p.sub.take()
	}
}

func subackAndUnsubackRepeatTheIdentifier(x *exam) {
	c := x.device()
	c.connect()
	for _, id := range []uint16{65535, 1, 300, 2} {
		c.lastID = id - 1
		c.subscribe("d/"+c.id+"/cmd/#", 1)
		c.lastID = id - 1
		c.unsubscribe("d/" + c.id + "/cmd/#")
	}
}
