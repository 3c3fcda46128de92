package conformance

import (
	"fmt"

	"github.com/fleethub/fleethub/hub/wire"
)

func retainRules() []rule {
	return []rule{
		{"MQTT-3.3.1-5", "MQTT-3.3.1-5", retainedMessageIsReplaced},
		{"MQTT-3.3.1-6 MQTT-3.3.1-8", "MQTT-3.3.1-9", newSubscriptionGetsTheRetained},
		{"MQTT-3.3.1-7", "", retainedQoS0ReplacesTheFormer},
		{"MQTT-3.3.1-9", "MQTT-3.3.1-12", liveMessageIsNotMarkedRetained},
		{"MQTT-3.3.1-10", "MQTT-3.3.1-6", emptyRetainedRemovesTheFormer},
		{"MQTT-3.3.1-11", "MQTT-3.3.1-7", emptyRetainedIsNotKept},
		{"MQTT-3.3.1-12", "MQTT-3.3.1-8", unretainedLeavesTheRetainedAlone},
		{"", "MQTT-3.3.1-10", retainHandling1},
		{"", "MQTT-3.3.1-11", retainHandling2},
		{"", "MQTT-3.3.1-13", retainAsPublished},
	}
}

// retained publishes a retained message.
func (p *pair) retained(name, payload string, qos byte) {
	p.Helper()
	p.pub.publishAll(&wire.Publish{Topic: p.topic(name), Payload: []byte(payload), QoS: qos, Retain: true})
}

// retainedMessageIsReplaced, and keeps its QoS.
func retainedMessageIsReplaced(x *exam) {
	p := x.pair()
	for qos := range byte(3) {
		name := fmt.Sprint("a", qos)
		p.retained(name, "former", 2-qos)
		p.retained(name, "latter", qos)
		p.pub.alive() // QoS 0 has no other sign of having arrived
		p.sub.subscribe(p.topic(name), 2)
		if m := p.sub.takePayload("latter"); m.QoS != qos || !m.Retain {
			x.Fatalf("got %s, want QoS %d", describe(m), qos)
		}
	}
	p.nothing()
}

func newSubscriptionGetsTheRetained(x *exam) {
	p := x.pair()
	for _, name := range []string{"a", "b", "c"} {
		p.retained(name, name, 1)
	}
	p.sub.subscribe(p.topic("a"), 1)
	if m := p.sub.takePayload("a"); !m.Retain || m.Topic != p.topic("a") {
		x.Fatalf("got %s", describe(m))
	}
	p.sub.subscribe(p.all(), 0)
	got := make(map[string]bool)
	for range 3 {
		m := p.sub.take()
		if !m.Retain || m.QoS != 0 || m.Topic != p.topic(string(m.Payload)) {
			x.Fatalf("got %s", describe(m))
		}
		got[m.Topic] = true
	}
	if len(got) != 3 {
		x.Fatalf("got %v, want three", got)
	}
	p.nothing()
}

func retainedQoS0ReplacesTheFormer(x *exam) {
	p := x.pair()
	p.retained("a", "former", 1)
	p.retained("a", "latter", 0)
	p.pub.alive()
	p.sub.subscribe(p.topic("a"), 1)
	p.sub.takePayload("latter")
}

func liveMessageIsNotMarkedRetained(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 2)
	for qos := range byte(3) {
		p.retained("a", "live", qos)
		if m := p.sub.takePayload("live"); m.Retain {
			x.Fatalf("got %s", describe(m))
		}
	}
}

func emptyRetainedRemovesTheFormer(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.topic("a"), 2)
	for qos := range byte(3) {
		p.retained("a", "kept", 1)
		p.sub.takePayload("kept")
		p.retained("a", "", qos)
		if m := p.sub.takePayload(""); m.Retain {
			x.Fatalf("got %s", describe(m))
		}
		p.pub.alive()
		p.sub.unsubscribe(p.topic("a"))
		p.sub.subscribe(p.topic("a"), 2)
		p.nothing()
	}
}

func emptyRetainedIsNotKept(x *exam) {
	p := x.pair()
	p.retained("a", "", 1)
	p.sub.subscribe(p.topic("a"), 2)
	p.nothing()
}

func unretainedLeavesTheRetainedAlone(x *exam) {
	p := x.pair()
	p.pub.publish(p.topic("never"), "passing", 1)
	p.retained("a", "kept", 1)
	p.pub.publish(p.topic("a"), "passing", 1)
	p.pub.publish(p.topic("a"), "", 1)
	p.sub.subscribe(p.all(), 2)
	p.sub.takePayload("kept")
	p.nothing()
}

func retainHandling1(x *exam) {
	p := x.pair()
	p.retained("a", "kept", 1)
	p.sub.subscribeTo(wire.Subscription{Filter: p.topic("a"), QoS: 1, RetainHandling: 1})
	p.sub.takePayload("kept")
	p.sub.subscribeTo(wire.Subscription{Filter: p.topic("a"), QoS: 1, RetainHandling: 1})
	p.sub.subscribeTo(wire.Subscription{Filter: p.topic("a"), QoS: 2, RetainHandling: 1})
	p.nothing()
	p.sub.unsubscribe(p.topic("a"))
	p.sub.subscribeTo(wire.Subscription{Filter: p.topic("a"), QoS: 1, RetainHandling: 1})
	p.sub.takePayload("kept")
}

func retainHandling2(x *exam) {
	p := x.pair()
	p.retained("a", "kept", 1)
	for range 2 {
		p.sub.subscribeTo(wire.Subscription{Filter: p.topic("a"), QoS: 1, RetainHandling: 2})
		p.nothing()
	}
}

func retainAsPublished(x *exam) {
	p := x.pair()
	p.sub.subscribeTo(wire.Subscription{Filter: p.all(), QoS: 2, RetainAsPublished: true})
	for qos := range byte(3) {
		p.retained("a", "retained", qos)
		if m := p.sub.takePayload("retained"); !m.Retain {
			x.Fatalf("got %s, want it retained", describe(m))
		}
		p.pub.publish(p.topic("a"), "not", qos)
		if m := p.sub.takePayload("not"); m.Retain {
			x.Fatalf("got %s, want it not retained", describe(m))
		}
	}
}
