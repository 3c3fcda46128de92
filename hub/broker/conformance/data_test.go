package conformance

import (
	"strings"

	"github.com/fleethub/fleethub/hub/wire"
)

func dataRules() []rule {
	return []rule{
		{"MQTT-1.5.3-1", "MQTT-1.5.4-1", illFormedTextEndsTheConnection},
		{"MQTT-1.5.3-2", "MQTT-1.5.4-2", nullCharacterEndsTheConnection},
		{"MQTT-1.5.3-3", "MQTT-1.5.4-3", byteOrderMarkIsACharacter},
		{"", "MQTT-1.5.5-1", lengthsAreMinimal},
		{"", "MQTT-1.5.7-1", bothHalvesOfAUserPropertyAreText},
		{"MQTT-2.2.2-1", "", reservedFlagsAreAsListed},
		{"MQTT-2.2.2-2", "MQTT-2.1.3-1", reservedFlagsEndTheConnection},
		{"", "MQTT-2.2.2-1", noPropertiesIsAZero},
	}
}

// textPlaces are packets with a string at every place where any version has one.
func (x *exam) textPlaces(text string) map[string][]byte {
	places := map[string][]byte{
		"topic name":             x.publishBytes(0, "d/x/tele/"+text, 0, nil, "payload"),
		"filter to subscribe":    x.subscribeBytes(0x82, 1, "d/x/cmd/"+text, 0),
		"filter to unsubscribe":  x.unsubscribeBytes(0xA2, 1, "d/x/cmd/"+text),
		"second of many filters": packet(0x82, u16(1), x.props(), str("d/x/cmd/a"), []byte{0}, str("d/x/cmd/"+text), []byte{0}),
	}
	if x.version == wire.V5 {
		places["response topic"] = x.publishBytes(0, "d/x/tele/a", 0, prop(0x08, str(text)), "")
		places["content type"] = x.publishBytes(0, "d/x/tele/a", 0, prop(0x03, str(text)), "")
		places["reason string"] = packet(0x40, u16(1), []byte{0}, x.props(prop(0x1F, str(text))))
		places["user property"] = packet(0xE0, []byte{0}, x.props(prop(0x26, append(str("key"), str(text)...))))
	}
	return places
}

// textPlacesOfConnect are CONNECTs with a string at every place where any version has one.
func (x *exam) textPlacesOfConnect(text string) map[string][]byte {
	return map[string][]byte{
		"client identifier": x.connectBytes(flagClean, str("svc"+text)),
		"will topic":        x.connectBytes(flagClean|flagWill, str("svc"), x.props(), str("d/x/cmd/"+text+"/1"), str("payload")),
		"user name":         x.connectBytes(flagClean|flagUsername, str("svc"), str(text)),
	}
}

// badText sends a text at every place and expects the connection's end.
func badText(x *exam, text string) {
	each(x, x.textPlaces(text), func(x *exam, data []byte) {
		c := x.service()
		c.connect()
		c.write(data)
		c.cut(wire.MalformedPacket)
	})
	each(x, x.textPlacesOfConnect(text), func(x *exam, data []byte) {
		c := x.service()
		c.write(data)
		c.turnedAway(wire.MalformedPacket)
	})
}

func illFormedTextEndsTheConnection(x *exam) {
	each(x, map[string]string{
		"stray continuation": "a\x80b",
		"cut short":          "a\xE2\x82",
		"overlong":           "\xC0\xAF",
		"surrogate":          "\xED\xA0\x80",
		"beyond Unicode":     "\xF4\x90\x80\x80",
		"never a byte":       "\xFF",
	}, badText)
}

func nullCharacterEndsTheConnection(x *exam) { badText(x, "a\x00b") }

func byteOrderMarkIsACharacter(x *exam) {
	p := x.pair()
	const mark = "\uFEFF"
	p.sub.subscribe(p.topic(mark+"a"), 1)
	p.sub.subscribe(p.topic("b"), 1)
	p.pub.publish(p.topic("a"), "without", 1)
	p.pub.publish(p.topic(mark+"b"), "with", 1)
	p.pub.publish(p.topic(mark+"a"), "with", 1)
	if m := p.sub.takePayload("with"); m.Topic != p.topic(mark+"a") {
		x.Fatalf("got topic %q, want the mark in it", m.Topic)
	}
	p.nothing()
}

// lengthsAreMinimal looks at properties longer than one byte of length can say. The remaining length of every packet is
// checked wherever a test reads one.
func lengthsAreMinimal(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 0)
	for _, size := range []int{100, 116, 117, 130, 300, 17000} {
		value := strings.Repeat("v", size)
		p.pub.publishAll(&wire.Publish{Topic: p.topic("a"), Props: &wire.MessageProperties{User: []wire.User{{Key: "key", Value: value}}}})
		p.sub.receive()
		body := p.sub.raw[1:]
		_, body = readVarint(body)
		body = body[2+len(p.topic("a")):]
		length, rest := readVarint(body)
		if want := len(varint(length)); len(body)-len(rest) != want || len(rest) != length {
			x.Fatalf("the property length %d takes %d bytes, want %d; %d bytes follow", length, len(body)-len(rest), want, len(rest))
		}
	}
}

func readVarint(b []byte) (n int, rest []byte) {
	for i := 0; ; i++ {
		n |= int(b[i]&0x7f) << (7 * i)
		if b[i]&0x80 == 0 {
			return n, b[i+1:]
		}
	}
}

func bothHalvesOfAUserPropertyAreText(x *exam) {
	each(x, map[string][]byte{
		"key":            append(str("a\xFF"), str("v")...),
		"value":          append(str("k"), str("\xED\xBF\xBF")...),
		"null in key":    append(str("a\x00"), str("v")...),
		"null in value":  append(str("k"), str("\x00")...),
		"value cut away": str("k"),
	}, func(x *exam, pair []byte) {
		c := x.service()
		c.connect()
		c.write(x.publishBytes(0, "d/x/cmd/a/1", 0, prop(0x26, pair), ""))
		c.cut(wire.MalformedPacket)
	})
}

// reservedFlagsAreAsListed looks at the first byte of every packet that a server sends.
func reservedFlagsAreAsListed(x *exam) {
	first := func(c *client, want byte) {
		x.Helper()
		c.next()
		if c.raw[0] != want {
			x.Errorf("the first byte of a packet is %#x, want %#x", c.raw[0], want)
		}
	}
	sub, pub := x.device(), x.service()
	pub.connect()
	sub.send(sub.connectPacket())
	first(sub, 0x20)
	topic := "d/" + sub.id + "/cmd/a/1"
	sub.send(&wire.Subscribe{ID: 1, Filters: []wire.Subscription{{Filter: topic, QoS: 2}}})
	first(sub, 0x90)
	pub.publish(topic, "", 0)
	first(sub, 0x30)
	pub.send(&wire.Publish{Topic: topic, ID: 1, QoS: 1})
	first(pub, 0x40)
	first(sub, 0x32)
	pub.send(&wire.Publish{Topic: topic, ID: 2, QoS: 2})
	first(pub, 0x50)
	pub.send(&wire.Ack{Kind: wire.TypePubrel, ID: 2})
	first(pub, 0x70)
	m := want[*wire.Publish](sub)
	sub.send(&wire.Ack{Kind: wire.TypePubrec, ID: m.ID})
	first(sub, 0x62)
	sub.send(&wire.Unsubscribe{ID: 2, Filters: []string{topic}})
	first(sub, 0xB0)
	sub.send(&wire.Ping{Kind: wire.TypePingreq})
	first(sub, 0xD0)
}

// reservedFlagsEndTheConnection tries every value of the flags that are fixed.
func reservedFlagsEndTheConnection(x *exam) {
	rest := map[byte][]byte{
		0x40: u16(1), 0x50: u16(1), 0x62: u16(1), 0x70: u16(1), 0xC0: nil, 0xE0: nil,
		0x82: append(append(u16(1), x.props()...), append(str("d/x/cmd/#"), 0)...),
		0xA2: append(append(u16(1), x.props()...), str("d/x/cmd/#")...),
	}
	for right, body := range rest {
		for flags := range byte(16) {
			if first := right&0xF0 | flags; first != right {
				c := x.service()
				c.connect()
				c.write(packet(first, body))
				c.cut(wire.MalformedPacket)
			}
		}
	}
	c := x.service()
	c.write(append([]byte{0x11}, x.connectBytes(flagClean, str(c.id))[1:]...))
	c.turnedAway(wire.MalformedPacket)
}

func noPropertiesIsAZero(x *exam) {
	exactly := func(c *client, want ...byte) {
		x.Helper()
		c.next()
		if string(c.raw) != string(want) {
			x.Errorf("got % x, want % x", c.raw, want)
		}
	}
	p := x.pair()
	p.sub.send(&wire.Subscribe{ID: 7, Filters: []wire.Subscription{{Filter: p.all(), QoS: 1}}})
	exactly(p.sub, 0x90, 4, 0, 7, 0, 1)
	p.pub.publish(p.topic("a"), "x", 0)
	exactly(p.sub, packet(0x30, str(p.topic("a")), []byte{0}, []byte("x"))...)
	p.sub.send(&wire.Unsubscribe{ID: 8, Filters: []string{p.all()}})
	exactly(p.sub, 0xB0, 4, 0, 8, 0, 0)
}
