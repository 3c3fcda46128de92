package conformance

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/wire"
)

// TestSessionsOutliveARestart: what the statements about sessions promise does not depend on the hub's staying up.
func TestSessionsOutliveARestart(t *testing.T) {
	h := start(t)
	var after []func(*testing.T)
	for _, version := range []byte{wire.V311, wire.V5} {
		x := &exam{T: t, hub: h, version: version}
		for name, before := range map[string]func(*exam) func(*exam){
			"open and queued":         openAndQueued,
			"received, not released":  receivedNotReleased,
			"subscriptions, retained": subscriptionsAndRetained,
			"clean":                   cleanIsGone,
		} {
			check := before(x)
			after = append(after, func(t *testing.T) {
				t.Run(versionName(version)+" "+name, func(t *testing.T) { check(&exam{T: t, hub: h, version: version}) })
			})
		}
	}
	later := delayedWill(&exam{T: t, hub: h, version: wire.V5})
	h.Restart()
	h.bystander = (&exam{T: t, hub: h, version: wire.V5}).service()
	h.bystander.connect(keepAlive(0))
	for _, f := range after {
		f(t)
	}
	later(&exam{T: t, hub: h, version: wire.V5})
}

// anew is a pair after the restart, its subscriber not yet connected.
func (p *pair) anew(x *exam) *pair {
	x.Helper()
	next := &pair{exam: x, sub: x.dial(p.sub.credential), pub: x.dial(p.pub.credential), marks: p.marks}
	next.pub.connect()
	return next
}

func openAndQueued(x *exam) func(*exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	for i, qos := range []byte{2, 1, 2} {
		p.pub.publish(p.topic("a"), fmt.Sprint(i), qos)
	}
	var open []*wire.Publish
	for range 3 {
		open = append(open, p.sub.receive())
	}
	p.sub.send(&wire.Ack{Kind: wire.TypePubrec, ID: open[0].ID})
	p.sub.ack(wire.TypePubrel, open[0].ID)
	p.sub.hangUp()
	for i := 3; i < 20; i++ {
		p.pub.publish(p.topic("a"), fmt.Sprint(i), byte(1+i%2))
	}
	return func(x *exam) {
		p := p.anew(x)
		if ack := p.sub.connect(persistent); !ack.SessionPresent {
			x.Fatal("the session is gone")
		}
		if a := want[*wire.Ack](p.sub); a.Kind != wire.TypePubrel || a.ID != open[0].ID {
			x.Fatalf("got %s, want PUBREL %d", describe(a), open[0].ID)
		}
		p.sub.send(&wire.Ack{Kind: wire.TypePubcomp, ID: open[0].ID})
		for i := 1; i < 20; i++ {
			m := p.sub.takePayload(fmt.Sprint(i))
			if i < 3 && (m.ID != open[i].ID || !m.Dup) || m.QoS != byte(1+i%2) && i >= 3 {
				x.Fatalf("got %s, want number %d", describe(m), i)
			}
		}
		p.nothing()
	}
}

func receivedNotReleased(x *exam) func(*exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	sender := x.service()
	sender.connect(persistent)
	message := &wire.Publish{Topic: p.topic("a"), QoS: 2, ID: 5, Payload: []byte("once")}
	sender.send(message)
	sender.ack(wire.TypePubrec, 5)
	p.sub.takePayload("once")
	p.sub.alive()
	return func(x *exam) {
		p := p.anew(x)
		p.sub.connect(persistent)
		sender := x.dial(sender.credential)
		if ack := sender.connect(persistent); !ack.SessionPresent {
			x.Fatal("the sender's session is gone")
		}
		message.Dup = true
		sender.send(message)
		sender.ack(wire.TypePubrec, 5)
		p.nothing()
		sender.send(&wire.Ack{Kind: wire.TypePubrel, ID: 5})
		sender.ack(wire.TypePubcomp, 5)
		message.Dup = false
		sender.publishAll(message)
		p.sub.takePayload("once")
	}
}

// subscriptionsAndRetained with all their options and properties.
func subscriptionsAndRetained(x *exam) func(*exam) {
	p := x.pair(persistent)
	s := &wire.Subscribe{SubID: 7, Filters: []wire.Subscription{{Filter: p.topic("a"), QoS: 1, RetainAsPublished: true}}}
	kept := &wire.Publish{Topic: p.topic("kept"), QoS: 2, Retain: true, Payload: []byte("kept")}
	if x.version == wire.V5 {
		hour := uint32(3600)
		kept.Props, kept.Expiry = fullProperties(), &hour
	} else {
		s.SubID, s.Filters[0].RetainAsPublished = 0, false
	}
	p.sub.ask(s)
	p.pub.publishAll(kept)
	return func(x *exam) {
		p := p.anew(x)
		p.sub.connect(persistent)
		p.pub.publishAll(&wire.Publish{Topic: p.topic("a"), QoS: 2, Retain: true, Payload: []byte("live")})
		m := p.sub.takePayload("live")
		if x.version == wire.V5 && (len(m.SubIDs) != 1 || m.SubIDs[0] != 7 || !m.Retain) || m.QoS != 1 {
			x.Errorf("got %s with identifiers %v, want 7 and RETAIN", describe(m), m.SubIDs)
		}
		p.sub.subscribe(p.topic("kept"), 2)
		m = p.sub.takePayload("kept")
		if m.QoS != 2 || !m.Retain {
			x.Errorf("got %s", describe(m))
		}
		if x.version == wire.V5 {
			sameProperties(x, m, fullProperties())
			if m.Expiry == nil || *m.Expiry > 3600 || *m.Expiry < 3000 {
				x.Errorf("got expiry %v, want what is left of an hour", m.Expiry)
			}
		}
		p.nothing()
	}
}

func cleanIsGone(x *exam) func(*exam) {
	p := x.pair(clean)
	p.sub.subscribe(p.all(), 1)
	return func(x *exam) {
		p := p.anew(x)
		if ack := p.sub.connect(persistent); ack.SessionPresent {
			x.Fatal("a clean session was kept")
		}
	}
}

// delayedWill is one that was waiting when the hub stopped; it is published when it is due, or when the hub is back.
func delayedWill(x *exam) func(*exam) {
	d := x.device()
	w := x.watch(d, persistent)
	w.subscribe(protocol.Presence(d.id), 1)
	d.connect(fresh, will(gone(d), "last words", 1), delay(1))
	d.hangUp()
	for online := true; online; { // until the hub knows
		var status protocol.PresenceStatus
		x.must(json.Unmarshal(w.take().Payload, &status))
		online = status.Online
	}
	w.unsubscribe(protocol.Presence(d.id))
	w.hangUp()
	return func(x *exam) {
		w := x.dial(w.credential)
		w.connect(persistent)
		w.takePayload("last words")
	}
}
