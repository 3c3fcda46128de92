package conformance

import (
	"fmt"
	"slices"

	"github.com/fleethub/fleethub/hub/wire"
)

func subscribeRules() []rule {
	return []rule{
		{"MQTT-3.8.1-1", "MQTT-3.8.1-1", func(x *exam) { fixedFlags(x, 0x80, x.subscribeBytes(0x82, 1, "d/x/tele/#", 0)) }},
		{"MQTT-3.8.3-1", "MQTT-3.8.3-1", filterIsText},
		{"MQTT-3.8.3-2", "", wildcardsAreSupported},
		{"MQTT-3.8.3-3", "MQTT-3.8.3-2", subscribeHasAFilter},
		{"MQTT-3.8.3-4", "MQTT-3.8.3-5", subscribeReservedBits},
		{"MQTT-3.8.4-1 MQTT-3.8.4-2", "MQTT-3.8.4-1 MQTT-3.8.4-2", subscribeIsAnswered},
		{"MQTT-3.8.4-3", "MQTT-3.8.4-3", sameFilterReplacesTheSubscription},
		{"", "MQTT-3.8.4-4", replacingLosesNothing},
		{"MQTT-3.8.4-4", "MQTT-3.8.4-5", manyFiltersAreManySubscriptions},
		{"MQTT-3.8.4-5 MQTT-3.9.3-1", "MQTT-3.8.4-6 MQTT-3.9.3-1", oneCodeForEachFilterInOrder},
		{"MQTT-3.9.3-2", "MQTT-3.8.4-7 MQTT-3.9.3-2", codesAreThoseOfSuback},
	}
}

// fixedFlags sends a packet with every value of the flags but the right one.
func fixedFlags(x *exam, kind byte, data []byte) {
	for flags := range byte(16) {
		if first := kind | flags; first != data[0] {
			c := x.service()
			c.connect()
			c.write(append([]byte{first}, data[1:]...))
			c.cut(wire.MalformedPacket)
		}
	}
}

func filterIsText(x *exam) {
	for _, text := range []string{"\xFF", "\xED\xA0\x80", "a\x00b"} {
		c := x.service()
		c.connect()
		c.write(x.subscribeBytes(0x82, 1, "d/+/tele/"+text, 0))
		c.cut(wire.MalformedPacket)
	}
	c := x.service()
	c.connect()
	c.write(packet(0x82, u16(1), x.props(), u16(20), []byte("d/x/tele/#\x00")))
	c.cut(wire.MalformedPacket)
}

func wildcardsAreSupported(x *exam) {
	p := x.pair()
	for _, filter := range []string{p.all(), "d/" + p.sub.id + "/cmd/+/1", "d/" + p.sub.id + "/cmd/+/+", "d/" + p.sub.id + "/cmd/a/#", "d/" + p.sub.id + "/cmd/a/1/#"} {
		p.sub.subscribe(filter, 1)
		p.pub.publish(p.topic("a"), filter, 1)
		p.sub.takePayload(filter)
		p.sub.unsubscribe(filter)
	}
}

func subscribeHasAFilter(x *exam) {
	c := x.service()
	c.connect()
	c.write(packet(0x82, u16(1), x.props()))
	c.cut(wire.ProtocolError, wire.MalformedPacket)
}

// subscribeReservedBits: all of them but the QoS in 3.1.1, the two highest in 5.0.
func subscribeReservedBits(x *exam) {
	bits := []byte{0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xFC, 0x03}
	if x.version == wire.V5 {
		bits = []byte{0x40, 0x80, 0xC0, 0xC1}
	}
	for _, options := range bits {
		c := x.service()
		c.connect()
		c.write(packet(0x82, u16(1), x.props(), str("d/x/tele/a"), []byte{1}, str("d/x/tele/b"), []byte{options}))
		c.cut(wire.MalformedPacket)
	}
}

func subscribeIsAnswered(x *exam) {
	c := x.device()
	c.connect()
	for _, id := range []uint16{1, 65535, 256} {
		c.send(&wire.Subscribe{ID: id, Filters: []wire.Subscription{{Filter: "d/" + c.id + "/cmd/#", QoS: 1}}})
		if s := want[*wire.Suback](c); s.Kind != wire.TypeSuback || s.ID != id {
			x.Fatalf("got %s", describe(s))
		}
	}
}

func sameFilterReplacesTheSubscription(x *exam) {
	p := x.pair()
	p.retained("kept", "kept", 1)
	p.sub.subscribe(p.all(), 2)
	p.sub.takePayload("kept")
	for _, qos := range []byte{0, 2, 1} {
		p.sub.subscribe(p.all(), qos)
		p.sub.takePayload("kept") // again
		p.pub.publish(p.topic("a"), "one copy", 2)
		if m := p.sub.takePayload("one copy"); m.QoS != qos {
			x.Fatalf("got %s, want QoS %d", describe(m), qos)
		}
		p.nothing()
	}
}

// replacingLosesNothing of a flow that goes on meanwhile.
func replacingLosesNothing(x *exam) {
	p := x.pair()
	p.retained("kept", "kept", 1)
	p.sub.subscribe(p.all(), 1)
	p.sub.takePayload("kept")
	const n, rounds = 100, 10
	done := make(chan error, 1)
	go func() {
		var all []byte
		for i := range uint16(n) {
			all = append(all, x.publishBytes(2, p.topic("a"), i+100, nil, fmt.Sprint(i))...)
		}
		_, err := p.pub.conn.Write(all)
		done <- err
	}()
	next, again := 0, 0
	take := func() {
		x.Helper()
		switch m := p.sub.take(); {
		case string(m.Payload) == "kept":
			again++
		case string(m.Payload) == fmt.Sprint(next):
			next++
		default:
			x.Fatalf("got %s, want number %d", describe(m), next)
		}
	}
	for range rounds {
		p.sub.subscribe(p.all(), 1)
		take()
	}
	for next < n || again == 0 {
		take()
	}
	x.must(<-done)
	for i := range uint16(n) {
		p.pub.ack(wire.TypePuback, i+100)
	}
	// What is retained comes once for those SUBSCRIBEs that came while it was owed: what
	// one client is owed is bounded.
	p.pub.publish(p.mark(), "mark", 1)
	for m := p.sub.take(); m.Topic != p.mark(); m = p.sub.take() {
		if again++; string(m.Payload) != "kept" || again > rounds {
			x.Fatalf("got %s as well", describe(m))
		}
	}
}

func manyFiltersAreManySubscriptions(x *exam) {
	p := x.pair()
	p.retained("a", "a", 1)
	p.retained("b", "b", 1)
	codes := p.sub.ask(&wire.Subscribe{Filters: []wire.Subscription{
		{Filter: p.topic("a"), QoS: 0}, {Filter: p.topic("b"), QoS: 1}, {Filter: p.topic("c"), QoS: 1}, {Filter: p.topic("c"), QoS: 2}, // the last counts
	}})
	if !slices.Equal(codes, []wire.Code{0, 1, 1, 2}) {
		x.Fatalf("answered with %#x", codes)
	}
	got := map[string]byte{}
	for range 2 {
		m := p.sub.take()
		got[string(m.Payload)] = m.QoS
	}
	if len(got) != 2 || got["a"] != 0 || got["b"] != 1 {
		x.Fatalf("got the retained %v", got)
	}
	p.pub.publish(p.topic("c"), "c", 2)
	if m := p.sub.takePayload("c"); m.QoS != 2 {
		x.Fatalf("got %s, want QoS 2", describe(m))
	}
	p.nothing()
}

func oneCodeForEachFilterInOrder(x *exam) {
	c := x.device()
	c.connect()
	own := "d/" + c.id + "/cmd/"
	s := &wire.Subscribe{}
	var want []wire.Code
	for i := range 20 {
		qos := byte(i % 3)
		if i%4 == 3 {
			s.Filters = append(s.Filters, wire.Subscription{Filter: fmt.Sprint("d/other/cmd/", i), QoS: qos})
			want = append(want, map[byte]wire.Code{wire.V311: 0x80, wire.V5: wire.NotAuthorized}[x.version])
			continue
		}
		s.Filters = append(s.Filters, wire.Subscription{Filter: own + fmt.Sprint(i), QoS: qos})
		want = append(want, wire.Code(qos))
	}
	if codes := c.ask(s); !slices.Equal(codes, want) {
		x.Fatalf("answered with %#x, want %#x", codes, want)
	}
}

// codesAreThoseOfSuback for every reason that there is to refuse.
func codesAreThoseOfSuback(x *exam) {
	d, s := x.device(), x.service()
	d.connect()
	s.connect()
	for _, refused := range []struct {
		c      *client
		filter string
		code   wire.Code
	}{
		{d, "#", wire.NotAuthorized},
		{d, "d/other/cmd/#", wire.NotAuthorized},
		{d, "$SYS/#", wire.NotAuthorized},
		{d, "$share/x/d/" + d.id + "/cmd/#", wire.NotAuthorized},
		{s, "d/x/cmd/#", wire.NotAuthorized},
		{s, "d/+/tele/#/a", wire.TopicFilterInvalid},
		{s, "d/+/tele/a+", wire.TopicFilterInvalid},
		{s, "$share//d/+/tele/#", wire.TopicFilterInvalid},
	} {
		code := refused.code
		if x.version != wire.V5 {
			code = 0x80
		}
		if codes := refused.c.ask(&wire.Subscribe{Filters: []wire.Subscription{{Filter: refused.filter, QoS: 1}}}); len(codes) != 1 || codes[0] != code {
			x.Errorf("SUBSCRIBE to %s was answered with %#x, want %#x", refused.filter, codes, code)
		}
	}
}
