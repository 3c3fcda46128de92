package conformance

import (
	"fmt"

	"github.com/fleethub/fleethub/hub/wire"
)

func orderRules() []rule {
	return []rule{
		{"MQTT-4.6.0-1", "MQTT-4.6.0-1", resentInTheOriginalOrder},
		{"MQTT-4.6.0-2", "MQTT-4.6.0-2", pubacksInOrder},
		{"MQTT-4.6.0-3", "MQTT-4.6.0-3", pubrecsInOrder},
		{"MQTT-4.6.0-4", "MQTT-4.6.0-4", pubrelsInOrder},
		{"MQTT-4.6.0-5 MQTT-4.6.0-6", "MQTT-4.6.0-5 MQTT-4.6.0-6", messagesInOrder},
	}
}

func resentInTheOriginalOrder(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	const n = 30
	for i := range n {
		p.pub.publish(p.topic("a"), fmt.Sprint(i), byte(1+i%2))
	}
	var sent []*wire.Publish
	for range n {
		sent = append(sent, p.sub.receive())
	}
	p.reconnect(persistent)
	for i := range n {
		if m := p.sub.receive(); m.ID != sent[i].ID || string(m.Payload) != fmt.Sprint(i) {
			x.Fatalf("resent as number %d: %s, want %s", i, describe(m), describe(sent[i]))
		}
	}
}

// pipelined sends messages without waiting for answers, and returns the first answer to each.
func pipelined(x *exam, qos byte, kind wire.Type) {
	c := x.service()
	c.connect()
	var all []byte
	const n = 30
	for i := range uint16(n) {
		all = append(all, x.publishBytes(qos<<1, "d/x/cmd/a/1", 3*i%n+i/10+1, nil, "payload")...)
	}
	c.write(all)
	for i := range uint16(n) {
		c.ack(kind, 3*i%n+i/10+1)
	}
}

func pubacksInOrder(x *exam) { pipelined(x, 1, wire.TypePuback) }

func pubrecsInOrder(x *exam) { pipelined(x, 2, wire.TypePubrec) }

func pubrelsInOrder(x *exam) {
	p := x.pair()
	p.sub.subscribe(p.all(), 2)
	const n = 20
	for range n {
		p.pub.publish(p.topic("a"), "payload", 2)
	}
	var ids []uint16
	for range n {
		ids = append(ids, p.sub.receive().ID)
	}
	for i := range n {
		p.sub.send(&wire.Ack{Kind: wire.TypePubrec, ID: ids[(i*7)%n]})
	}
	for i := range n {
		p.sub.ack(wire.TypePubrel, ids[(i*7)%n])
	}
}

// messagesInOrder: for each topic, QoS and publisher, live, queued and live again.
func messagesInOrder(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	other := x.service()
	other.connect()
	type stream struct {
		topic string
		qos   byte
	}
	next := make(map[stream]int)
	sent := make(map[stream]int)
	total := 0
	send := func(n int) {
		for i := range n {
			s := stream{p.topic(fmt.Sprint(i % 3)), byte(1 + i%2)}
			from := p.pub
			if i%3 == 0 { // each topic has one publisher
				from = other
			}
			from.publish(s.topic, fmt.Sprint(sent[s]), s.qos)
			sent[s]++
			total++
		}
	}
	take := func() {
		x.Helper()
		for ; total > 0; total-- {
			m := p.sub.take()
			s := stream{m.Topic, m.QoS}
			if string(m.Payload) != fmt.Sprint(next[s]) {
				x.Fatalf("got %s, want number %d", describe(m), next[s])
			}
			next[s]++
		}
	}
	send(30)
	take()
	p.sub.hangUp()
	send(60)
	p.comeBack(persistent)
	send(30)
	take()
	p.nothing()
}
