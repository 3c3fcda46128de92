package conformance

import (
	"slices"

	"github.com/fleethub/fleethub/hub/wire"
)

func deliveryRules() []rule {
	return []rule{
		{"MQTT-3.3.5-1", "MQTT-3.3.4-2", overlappingSubscriptionsGiveTheHighestQoS},
		{"MQTT-3.8.4-6", "MQTT-3.8.4-8", qosIsTheLowerOfTwo},
		{"", "MQTT-3.3.4-3 MQTT-3.3.4-4 MQTT-3.3.4-5", subscriptionIdentifiersComeWithTheMessage},
	}
}

// overlappingSubscriptionsGiveTheHighestQoS, in one copy or in as many as subscriptions match.
func overlappingSubscriptionsGiveTheHighestQoS(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 0)
	p.sub.subscribe(p.topic("a"), 2)
	p.sub.subscribe("d/"+p.sub.id+"/cmd/+/1", 1)
	for qos := range byte(3) {
		p.pub.publish(p.topic("a"), "payload", qos)
		highest := byte(0)
		for _, m := range p.untilMark() {
			highest = max(highest, m.QoS)
		}
		if highest != qos {
			x.Fatalf("the highest QoS of the copies is %d, want %d", highest, qos)
		}
	}
}

// untilMark takes everything before a mark, at most one copy for each of three subscriptions.
func (p *pair) untilMark() []*wire.Publish {
	p.Helper()
	p.pub.publish(p.mark(), "mark", 1)
	var got []*wire.Publish
	for {
		m := p.sub.take()
		if m.Topic == p.mark() {
			if len(got) == 0 {
				p.Fatal("no copy came")
			}
			return got
		}
		if got = append(got, m); len(got) > 3 || m.Dup {
			p.Fatalf("got copy %d: %s", len(got), describe(m))
		}
	}
}

func qosIsTheLowerOfTwo(x *exam) {
	for granted := range byte(3) {
		p := x.pair()
		p.sub.subscribe(p.all(), granted)
		for published := range byte(3) {
			p.pub.publish(p.topic("a"), "payload", published)
			if m := p.sub.takePayload("payload"); m.QoS != min(granted, published) {
				x.Fatalf("published with QoS %d, granted %d: got %s", published, granted, describe(m))
			}
		}
	}
}

// subscriptionIdentifiersComeWithTheMessage: all of them with one copy, or each with its own.
func subscriptionIdentifiersComeWithTheMessage(x *exam) {
	p := x.pair()
	ask := func(filter string, id int) {
		x.Helper()
		if codes := p.sub.ask(&wire.Subscribe{SubID: id, Filters: []wire.Subscription{{Filter: filter, QoS: 1}}}); codes[0] != 1 {
			x.Fatalf("SUBSCRIBE was answered with %#x", codes)
		}
	}
	check := func(name string, want ...int) {
		x.Helper()
		p.pub.publish(p.topic(name), "payload", 1)
		var got []int
		copies := p.untilMark()
		for _, m := range copies {
			if len(copies) > 1 && len(m.SubIDs) > 1 {
				x.Errorf("one of %d copies has identifiers %v", len(copies), m.SubIDs)
			}
			got = append(got, m.SubIDs...)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			x.Fatalf("a message to %s came with identifiers %v, want %v", p.topic(name), got, want)
		}
	}
	ask(p.all(), 7)
	check("a", 7)
	ask(p.topic("a"), 268435455)
	check("a", 7, 268435455)
	check("b", 7)
	p.sub.subscribe("d/"+p.sub.id+"/cmd/+/1", 1)
	check("a", 7, 268435455)
	ask(p.all(), 8) // replaces 7
	check("b", 8)
	ask(p.all(), 0) // has none any more
	check("b")
	p.retained("kept", "kept", 1)
	p.sub.takePayload("kept")
	ask(p.topic("kept"), 9) // brings the retained message for this subscription
	if m := p.sub.takePayload("kept"); !slices.Equal(m.SubIDs, []int{9}) {
		x.Fatalf("the retained message came with identifiers %v", m.SubIDs)
	}
}
