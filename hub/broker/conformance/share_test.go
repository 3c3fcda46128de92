package conformance

import (
	"fmt"

	"github.com/fleethub/fleethub/hub/wire"
)

func shareRules() []rule {
	return []rule{
		{"", "MQTT-3.8.3-4", noLocalOfASharedSubscription},
		{"", "MQTT-4.8.2-1 MQTT-4.8.2-2", shareNameIsOne},
		{"", "MQTT-4.8.2-3", sharedMessageKeepsToTheGrantedQoS},
		{"", "MQTT-4.8.2-4", sharedQoS2IsCompletedByWhoBeganIt},
		{"", "MQTT-4.8.2-5", sharedQoS2GoesToNobodyElse},
		{"", "MQTT-4.8.2-6", refusedSharedMessageIsDropped},
	}
}

// group is a device that publishes, and services that share what it says.
type group struct {
	*exam
	device  *client
	members []*client
	filter  string
}

func (x *exam) group(n int, qos byte) *group {
	x.Helper()
	g := &group{exam: x, device: x.device()}
	g.filter = "$share/team/d/" + g.device.id + "/tele/+"
	g.device.connect()
	for range n {
		m := x.service()
		m.connect(fresh)
		m.subscribe(g.filter, qos)
		m.subscribe("d/"+g.device.id+"/evt/+", 1) // for marks
		g.members = append(g.members, m)
	}
	return g
}

// say publishes a message of the group.
func (g *group) say(payload string, qos byte) {
	g.Helper()
	g.device.publish("d/"+g.device.id+"/tele/a", payload, qos)
}

// rest marks the end, and returns what each member got before that.
func (g *group) rest() [][]*wire.Publish {
	g.Helper()
	g.device.publish("d/"+g.device.id+"/evt/mark", "mark", 1)
	got := make([][]*wire.Publish, len(g.members))
	for i, m := range g.members {
		for {
			p := m.receive()
			if string(p.Payload) == "mark" {
				m.accept(p)
				break
			}
			got[i] = append(got[i], p)
		}
	}
	return got
}

func noLocalOfASharedSubscription(x *exam) {
	c := x.service()
	c.connect()
	c.write(x.subscribeBytes(0x82, 1, "$share/team/d/+/tele/+", 0x04))
	c.cut(wire.ProtocolError)
}

func shareNameIsOne(x *exam) {
	c := x.service()
	c.connect()
	for _, filter := range []string{"$share", "$share/", "$share/team", "$share/team/", "$share//d/+/tele/+", "$share/te+am/d/+/tele/+", "$share/#/d/+/tele/+", "$share/+/d/+/tele/+"} {
		if codes := c.ask(&wire.Subscribe{Filters: []wire.Subscription{{Filter: filter}}}); len(codes) != 1 || codes[0] != wire.TopicFilterInvalid {
			x.Errorf("SUBSCRIBE to %s was answered with %#x, want %#x", filter, codes, wire.TopicFilterInvalid)
		}
	}
	c.subscribe("$share/t/d/+/tele/+", 1)
}

func sharedMessageKeepsToTheGrantedQoS(x *exam) {
	for granted := range byte(3) {
		g := x.group(1, granted)
		for qos := range byte(3) {
			g.say(fmt.Sprint(qos), qos)
			if m := g.members[0].takePayload(fmt.Sprint(qos)); m.QoS != min(qos, granted) {
				x.Errorf("granted %d: got %s", granted, describe(m))
			}
		}
	}
}

// begun is a group of three of which one has got a message of QoS 2 and not answered.
func begun(x *exam) (g *group, chosen int, message *wire.Publish) {
	x.Helper()
	g = x.group(3, 2)
	g.say("for one", 2)
	count := 0
	for i, got := range g.rest() {
		for _, m := range got {
			count, chosen, message = count+1, i, m
		}
	}
	if count != 1 {
		x.Fatalf("%d members got the message, want one", count)
	}
	return g, chosen, message
}

func sharedQoS2IsCompletedByWhoBeganIt(x *exam) {
	g, chosen, message := begun(x)
	g.members[chosen].hangUp()
	g.members[chosen] = g.members[chosen].again()
	g.members[chosen].connect(persistent)
	if m := g.members[chosen].takePayload("for one"); m.ID != message.ID || !m.Dup {
		x.Fatalf("got %s, want identifier %d again", describe(m), message.ID)
	}
	for i, got := range g.rest() {
		if len(got) > 0 {
			x.Errorf("member %d got %s", i, describe(got[0]))
		}
	}
}

func sharedQoS2GoesToNobodyElse(x *exam) {
	g, chosen, _ := begun(x)
	next := g.members[chosen].again()
	next.connect(clean) // ends the session
	g.members[chosen] = next
	next.subscribe("d/"+g.device.id+"/evt/+", 1)
	for i, got := range g.rest() {
		if len(got) > 0 {
			x.Errorf("member %d got %s", i, describe(got[0]))
		}
	}
}

func refusedSharedMessageIsDropped(x *exam) {
	g := x.group(3, 2)
	for qos, kind := range map[byte]wire.Type{1: wire.TypePuback, 2: wire.TypePubrec} {
		g.say("unwanted", qos)
		count := 0
		for i, got := range g.rest() {
			for _, m := range got {
				count++
				g.members[i].send(&wire.Ack{Kind: kind, ID: m.ID, Code: wire.UnspecifiedError})
				g.members[i].alive()
			}
		}
		if count != 1 {
			x.Fatalf("%d members got the message, want one", count)
		}
		for i, got := range g.rest() {
			if len(got) > 0 {
				x.Errorf("member %d got %s", i, describe(got[0]))
			}
		}
	}
}
