package conformance

import (
	"fmt"

	"github.com/fleethub/fleethub/hub/wire"
)

func flowRules() []rule {
	return []rule{
		{"", "MQTT-3.3.4-7", tooManyOpenMessagesEndTheConnection},
		{"", "MQTT-3.3.4-9 MQTT-4.9.0-2", hubKeepsToTheReceiveMaximum},
		{"", "MQTT-4.9.0-1", eachConnectionBeginsWithItsOwnQuota},
		{"", "MQTT-3.3.4-10 MQTT-4.9.0-3", otherPacketsAreNotHeldBack},
	}
}

// tooManyOpenMessagesEndTheConnection leaves every message of QoS 2 unreleased. One that the hub refuses is not open.
func tooManyOpenMessagesEndTheConnection(x *exam) {
	c := x.service()
	limit := int(c.connect().ReceiveMaximum)
	if limit == 0 {
		limit = 65535
	}
	for range limit + 1 {
		if code := c.try(&wire.Publish{Topic: "d/x/tele/a", QoS: 2, ID: 1}); code != wire.NotAuthorized {
			x.Fatalf("answered with %#x", code)
		}
	}
	for id := 1; id <= limit; id++ {
		c.send(&wire.Publish{Topic: "d/x/cmd/a/1", QoS: 2, ID: uint16(id)})
		if a := c.ack(wire.TypePubrec, uint16(id)); a.Code >= 0x80 {
			x.Fatalf("message %d of %d was answered with %#x", id, limit, a.Code)
		}
	}
	c.alive()
	c.publish("d/x/cmd/a/1", "QoS 0 is not counted", 0)
	c.alive()
	c.send(&wire.Publish{Topic: "d/x/cmd/a/1", QoS: 2, ID: uint16(limit + 1)})
	c.cut(wire.ReceiveMaximumExceeded)
}

func receiveMaximum(n uint16) option { return func(c *wire.Connect) { c.ReceiveMaximum = n } }

// hubKeepsToTheReceiveMaximum: a place becomes free by PUBACK, by PUBCOMP, and by a PUBREC that refuses.
func hubKeepsToTheReceiveMaximum(x *exam) {
	p := x.pair(receiveMaximum(2))
	p.sub.subscribe(p.all(), 2)
	for i, qos := range []byte{1, 2, 2, 1, 2, 1} {
		p.pub.publish(p.topic("a"), fmt.Sprint(i), qos)
	}
	take := func(n int) *wire.Publish {
		x.Helper()
		m := p.sub.receive()
		if string(m.Payload) != fmt.Sprint(n) {
			x.Fatalf("got %s, want number %d", describe(m), n)
		}
		return m
	}
	full := func() {
		x.Helper()
		p.sub.alive()
		p.sub.subscribe(p.topic("b"), 1)
		if len(p.sub.stash) > 0 {
			x.Fatalf("beyond the receive maximum came %s", describe(p.sub.stash[0]))
		}
	}
	zero, one := take(0), take(1)
	full()
	p.sub.accept(zero)
	two := take(2)
	full()
	p.sub.send(&wire.Ack{Kind: wire.TypePubrec, ID: one.ID})
	p.sub.ack(wire.TypePubrel, one.ID)
	full()
	p.sub.send(&wire.Ack{Kind: wire.TypePubcomp, ID: one.ID})
	three := take(3)
	full()
	p.sub.send(&wire.Ack{Kind: wire.TypePubrec, ID: two.ID, Code: wire.UnspecifiedError})
	four := take(4)
	full()
	p.sub.accept(three)
	take(5)
	p.sub.accept(four)
}

// eachConnectionBeginsWithItsOwnQuota, whatever was open on the one before.
func eachConnectionBeginsWithItsOwnQuota(x *exam) {
	p := x.pair(persistent, receiveMaximum(5))
	p.sub.subscribe(p.all(), 2)
	for i := range 7 {
		p.pub.publish(p.topic("a"), fmt.Sprint(i), byte(1+i%2))
	}
	for range 5 {
		p.sub.receive()
	}
	p.reconnect(persistent, receiveMaximum(2))
	for next := 0; next < 7; {
		first := p.sub.receive()
		var second *wire.Publish
		if next+1 < 7 {
			second = p.sub.receive()
		}
		p.sub.alive() // nothing beyond
		for _, m := range []*wire.Publish{first, second} {
			if m == nil {
				continue
			}
			if string(m.Payload) != fmt.Sprint(next) || m.Dup != (next < 5) {
				x.Fatalf("got %s, want number %d", describe(m), next)
			}
			next++
		}
		if second != nil {
			p.sub.send(&wire.Ack{Kind: ackOf(second), ID: second.ID, Code: wire.UnspecifiedError})
		}
		p.sub.send(&wire.Ack{Kind: ackOf(first), ID: first.ID, Code: wire.UnspecifiedError})
	}
	p.nothing()
}

// ackOf is the first answer to a message.
func ackOf(m *wire.Publish) wire.Type {
	if m.QoS == 2 {
		return wire.TypePubrec
	}
	return wire.TypePuback
}

func otherPacketsAreNotHeldBack(x *exam) {
	p := x.pair(receiveMaximum(1))
	p.sub.subscribe(p.all(), 1)
	p.pub.publish(p.topic("a"), "open", 1)
	p.pub.publish(p.topic("a"), "waits", 1)
	open := p.sub.receive()
	p.sub.alive()
	p.sub.subscribe(p.topic("b"), 0)
	p.sub.unsubscribe(p.topic("b"))
	p.sub.publish("d/"+p.sub.id+"/tele/a", "in the other direction", 1)
	p.sub.publish("d/"+p.sub.id+"/tele/a", "in the other direction", 2)
	if len(p.sub.stash) > 0 {
		x.Fatalf("beyond the receive maximum came %s", describe(p.sub.stash[0]))
	}
	p.sub.accept(open)
	p.sub.takePayload("waits")
}
