package conformance

import (
	"fmt"

	"github.com/fleethub/fleethub/hub/wire"
)

func sessionRules() []rule {
	return []rule{
		{"MQTT-3.1.2-4", "MQTT-3.1.2-5 MQTT-3.1.2-6", sessionIsResumedOrMade},
		{"MQTT-3.1.2-5 MQTT-4.5.0-1", "MQTT-4.5.0-1", messagesWaitForAnAbsentSubscriber},
		{"MQTT-3.1.2-6", "MQTT-3.1.2-4", cleanStartDiscardsTheSession},
		{"MQTT-3.1.2-7", "", retainedMessagesOutliveSessions},
		{"", "MQTT-3.1.2-23", sessionIsKeptIfItHasAnExpiryInterval},
		{"MQTT-4.1.0-1", "MQTT-4.1.0-1", sessionLastsAsLongAsItsConnection},
		{"MQTT-4.1.0-2", "MQTT-4.1.0-2", sessionWithoutExpiryEndsWithItsConnection},
		{"MQTT-4.4.0-1", "MQTT-4.4.0-1", unacknowledgedIsSentAgain},
		{"MQTT-3.3.1-1", "MQTT-3.3.1-1", redeliveryIsMarked},
		{"", "MQTT-4.4.0-2", refusedIsNotSentAgain},
	}
}

func sessionIsResumedOrMade(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 1)
	if ack := p.reconnect(persistent); !ack.SessionPresent {
		x.Fatal("the session is gone")
	}
	p.pub.publish(p.topic("a"), "to the old subscription", 1)
	p.sub.takePayload("to the old subscription")
	p.sub.leave()
	if ack := p.comeBack(persistent); !ack.SessionPresent {
		x.Fatal("the session is gone after a DISCONNECT")
	}
	p.pub.publish(p.topic("a"), "and again", 1)
	p.sub.takePayload("and again")
	stranger := x.device()
	if ack := stranger.connect(persistent); ack.SessionPresent {
		x.Fatal("a device that was never here has a session")
	}
	stranger.alive()
}

// messagesWaitForAnAbsentSubscriber, those of QoS 1 and 2 at least, and in their order.
func messagesWaitForAnAbsentSubscriber(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.topic("one"), 1)
	p.sub.subscribe(p.topic("two"), 2)
	p.sub.leave()
	for i := range 5 {
		p.pub.publish(p.topic("one"), fmt.Sprint("one ", i), 1)
		p.pub.publish(p.topic("two"), fmt.Sprint("two ", i), 2)
		p.pub.publish(p.topic("nobody's"), "unasked", 2)
	}
	p.comeBack(persistent)
	next := make(map[string]int)
	for range 10 {
		m := p.sub.take()
		name := map[string]string{p.topic("one"): "one", p.topic("two"): "two"}[m.Topic]
		if string(m.Payload) != fmt.Sprint(name, " ", next[name]) || m.QoS != byte(len(name)-2) && m.QoS == 0 {
			x.Fatalf("got %s, want number %d", describe(m), next[name])
		}
		next[name]++
	}
	p.nothing()
}

func cleanStartDiscardsTheSession(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	p.pub.publish(p.topic("a"), "never acknowledged", 2)
	p.sub.receive()
	p.sub.hangUp()
	p.pub.publish(p.topic("a"), "never sent", 1)
	p.comeBack(fresh)
	p.pub.publish(p.topic("a"), "after the subscription is gone", 1)
	p.sub.subscribe(p.mark(), 1)
	p.nothing()
	if x.version != wire.V5 { // a clean session of 3.1.1 leaves nothing for the next one either
		if ack := p.reconnect(persistent); ack.SessionPresent {
			x.Fatal("a clean session was kept")
		}
	}
}

func retainedMessagesOutliveSessions(x *exam) {
	d := x.device()
	d.connect(clean)
	topic := "d/" + d.id + "/tele/a"
	d.publishAll(&wire.Publish{Topic: topic, Payload: []byte("kept"), QoS: 1, Retain: true})
	d.leave()
	w := x.watch(d)
	if m := w.takePayload("kept"); !m.Retain {
		x.Fatalf("got %s", describe(m))
	}
	w.leave()
	x.watch(d).takePayload("kept")
}

func sessionIsKeptIfItHasAnExpiryInterval(x *exam) {
	p := x.pair(fresh)
	p.sub.subscribe(p.all(), 1)
	p.sub.hangUp()
	p.pub.publish(p.topic("a"), "kept", 1)
	if ack := p.comeBack(persistent); !ack.SessionPresent {
		x.Fatal("the session is gone")
	}
	p.sub.takePayload("kept")
}

// sessionLastsAsLongAsItsConnection: the interval begins when the connection ends.
func sessionLastsAsLongAsItsConnection(x *exam) {
	p := x.pair(clean, expiring(1))
	p.sub.subscribe(p.all(), 1)
	x.elapse(2)
	p.pub.publish(p.topic("a"), "still here", 1)
	p.sub.takePayload("still here")
}

// sessionWithoutExpiryEndsWithItsConnection, and in 5.0 another one with its interval.
func sessionWithoutExpiryEndsWithItsConnection(x *exam) {
	c := x.device()
	c.connect(clean, expiring(0))
	c.subscribe("d/"+c.id+"/cmd/#", 1)
	c.leave()
	c = c.again()
	if ack := c.connect(persistent); ack.SessionPresent {
		x.Fatal("the session is still there")
	}
	if x.version == wire.V5 {
		sessionEndsAfterItsInterval(x)
	}
}

// unacknowledgedIsSentAgain, with the same identifiers, and only after a new connection.
func unacknowledgedIsSentAgain(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	p.pub.publish(p.topic("a"), "one", 1)
	p.pub.publish(p.topic("a"), "two", 2)
	p.pub.publish(p.topic("a"), "released", 2)
	one, two, released := p.sub.receive(), p.sub.receive(), p.sub.receive()
	p.sub.send(&wire.Ack{Kind: wire.TypePubrec, ID: released.ID})
	p.sub.ack(wire.TypePubrel, released.ID)
	p.sub.alive() // nothing comes again on this connection
	p.nothing()
	p.reconnect(persistent)
	var again []*wire.Publish
	var rel *wire.Ack
	for range 3 {
		switch got := p.sub.next().(type) {
		case *wire.Publish:
			again = append(again, got)
		case *wire.Ack:
			rel = got
		default:
			x.Fatalf("got %s", describe(got))
		}
	}
	if rel == nil || rel.Kind != wire.TypePubrel || rel.ID != released.ID {
		x.Fatalf("got %s, want PUBREL %d again", describe(rel), released.ID)
	}
	if len(again) != 2 || again[0].ID != one.ID || again[1].ID != two.ID || string(again[0].Payload) != "one" || string(again[1].Payload) != "two" {
		x.Fatalf("got %s and %s, want identifiers %d and %d again", describe(again[0]), describe(again[1]), one.ID, two.ID)
	}
	p.sub.send(&wire.Ack{Kind: wire.TypePubcomp, ID: released.ID})
	p.sub.accept(again[0])
	p.sub.accept(again[1])
	p.reconnect(persistent)
	p.nothing()
}

func redeliveryIsMarked(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	for qos := range byte(3) {
		p.pub.publish(p.topic("a"), "payload", qos)
		if m := p.sub.receive(); m.Dup {
			x.Fatalf("the first delivery has DUP set: %s", describe(m))
		}
	}
	p.reconnect(persistent)
	for range 2 {
		if m := p.sub.take(); !m.Dup {
			x.Fatalf("the second delivery has no DUP: %s", describe(m))
		}
	}
}

func refusedIsNotSentAgain(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	for qos, kind := range map[byte]wire.Type{1: wire.TypePuback, 2: wire.TypePubrec} {
		for _, code := range []wire.Code{wire.UnspecifiedError, wire.QuotaExceeded} {
			p.pub.publish(p.topic("a"), "unwanted", qos)
			m := p.sub.receive()
			p.sub.send(&wire.Ack{Kind: kind, ID: m.ID, Code: code})
			p.nothing() // no PUBREL either
		}
	}
	p.reconnect(persistent)
	p.nothing()
}
