package conformance

import (
	"github.com/fleethub/fleethub/hub/wire"
)

func expiryRules() []rule {
	return []rule{
		{"", "MQTT-3.3.2-5 MQTT-3.3.2-6", messagesExpire},
	}
}

// sessionEndsAfterItsInterval uses a will that is due when the session ends.
func sessionEndsAfterItsInterval(x *exam) {
	d := x.device()
	w := x.watch(d)
	d.connect(clean, expiring(1), will(gone(d), "the session ends", 1), delay(100))
	d.subscribe("d/"+d.id+"/cmd/#", 1)
	d.hangUp()
	w.takePayload("the session ends")
	d = d.again()
	if ack := d.connect(persistent); ack.SessionPresent {
		x.Fatal("the session is still there")
	}
}

// messagesExpire in queues and as retained ones, and those that do not carry what is left of their interval.
func messagesExpire(x *exam) {
	p := x.pair(persistent)
	p.sub.subscribe(p.all(), 2)
	p.sub.leave() // in order, so that nothing is sent to a connection that is not there
	second, minute := uint32(1), uint32(60)
	for _, qos := range []byte{1, 2} {
		p.pub.publishAll(
			&wire.Publish{Topic: p.topic("a"), Payload: []byte("expires"), QoS: qos, Expiry: &second},
			&wire.Publish{Topic: p.topic("a"), Payload: []byte("keeps"), QoS: qos, Expiry: &minute},
		)
	}
	p.pub.publishAll(
		&wire.Publish{Topic: p.mark(), Payload: []byte("retained, expires"), QoS: 1, Expiry: &second, Retain: true},
		&wire.Publish{Topic: p.topic("a"), Payload: []byte("forever"), QoS: 1},
	)
	other := x.pair()
	other.pub.publishAll(&wire.Publish{Topic: other.topic("a"), Payload: []byte("retained, keeps"), QoS: 1, Expiry: &minute, Retain: true})
	x.elapse(2)
	p.comeBack(persistent)
	for range 2 {
		m := p.sub.takePayload("keeps")
		if m.Expiry == nil || *m.Expiry > 58 || *m.Expiry < 40 {
			x.Fatalf("got %s with expiry %v, want what is left of 60 seconds after 2", describe(m), m.Expiry)
		}
	}
	if m := p.sub.takePayload("forever"); m.Expiry != nil {
		x.Fatalf("got %s with expiry %d", describe(m), *m.Expiry)
	}
	p.nothing()
	p.sub.subscribe(p.mark(), 1)
	p.nothing()
	other.sub.subscribe(other.all(), 1)
	if m := other.sub.takePayload("retained, keeps"); m.Expiry == nil || *m.Expiry > 58 || *m.Expiry < 40 {
		x.Fatalf("got %s with expiry %v, want what is left of 60 seconds after 2", describe(m), m.Expiry)
	}
}
