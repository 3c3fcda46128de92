package conformance

import (
	"time"

	"github.com/fleethub/fleethub/hub/wire"
)

func willRules() []rule {
	return []rule{
		{"MQTT-3.1.2-8", "MQTT-3.1.2-7 MQTT-3.1.2-8", willIsPublishedWhenTheConnectionEnds},
		{"MQTT-3.1.2-10", "MQTT-3.1.2-10", willIsPublishedOnce},
		{"MQTT-3.1.2-12", "", noWillNoMessage},
		{"MQTT-3.1.2-16", "MQTT-3.1.2-14", willIsNotRetainedUnlessItSaysSo},
		{"MQTT-3.1.2-17", "MQTT-3.1.2-15", willIsRetainedIfItSaysSo},
		{"MQTT-3.14.4-3", "MQTT-3.14.4-3", disconnectDiscardsTheWill},
		{"", "MQTT-3.1.3-9", delayedWillIsNotSentToThoseWhoReturn},
		{"", "MQTT-3.1.3-10", willKeepsTheOrderOfItsUserProperties},
	}
}

// gone is the topic of a device's will.
func gone(d *client) string { return "d/" + d.id + "/evt/gone" }

// nothingFrom fails the test if the watcher gets anything before a message that the device sends only now, on a connection
// that begins when the one before has ended for the hub.
func nothingFrom(d, watcher *client) {
	d.Helper()
	next := d.again()
	next.connect(clean)
	next.publish("d/"+d.id+"/tele/mark", "mark", 1)
	if m := watcher.take(); string(m.Payload) != "mark" {
		d.Fatalf("the watcher got %s, want nothing", describe(m))
	}
}

func willIsPublishedWhenTheConnectionEnds(x *exam) {
	ends := map[string]func(*client){
		"lost":      func(d *client) { d.hangUp() },
		"violation": func(d *client) { d.write(packet(0xC1)) },
		"takeover":  func(d *client) { d.again().connect(clean) },
		"TLS alert": func(d *client) { d.conn.Close() },
	}
	if x.version == wire.V5 {
		ends["asked for"] = func(d *client) { d.send(&wire.Disconnect{Code: wire.DisconnectWithWill}) }
	}
	each(x, ends, func(x *exam, end func(*client)) {
		d := x.device()
		w := x.watch(d)
		d.connect(will(gone(d), "last words", 1))
		d.alive()
		end(d)
		if m := w.takePayload("last words"); m.Topic != gone(d) || m.Retain {
			x.Fatalf("got %s", describe(m))
		}
	})
}

func willIsPublishedOnce(x *exam) {
	d := x.device()
	w := x.watch(d)
	d.connect(persistent, will(gone(d), "once", 1))
	d.hangUp()
	w.takePayload("once")
	d = d.again()
	d.connect(persistent)
	d.hangUp()
	nothingFrom(d, w)
	d = d.again()
	d.connect(persistent, will(gone(d), "never", 1))
	d.leave()
	d = d.again()
	d.connect(persistent)
	d.hangUp()
	nothingFrom(d, w)
}

func noWillNoMessage(x *exam) {
	d := x.device()
	w := x.watch(d)
	d.connect()
	d.hangUp()
	nothingFrom(d, w)
}

func willIsNotRetainedUnlessItSaysSo(x *exam) {
	d := x.device()
	w := x.watch(d)
	d.connect(will(gone(d), "not kept", 1))
	d.hangUp()
	w.takePayload("not kept")
	later := x.watch(d)
	nothingFrom(d, later)
}

func willIsRetainedIfItSaysSo(x *exam) {
	d := x.device()
	w := x.watch(d)
	d.connect(will(gone(d), "kept", 1), func(c *wire.Connect) { c.Will.Message.Retain = true })
	d.hangUp()
	w.takePayload("kept")
	if m := x.watch(d).takePayload("kept"); !m.Retain {
		x.Fatalf("got %s, want it retained", describe(m))
	}
}

func disconnectDiscardsTheWill(x *exam) {
	d := x.device()
	w := x.watch(d)
	d.connect(will(gone(d), "never", 1))
	d.leave()
	nothingFrom(d, w)
}

// delayedWillIsNotSentToThoseWhoReturn uses the later will of another device as the clock.
func delayedWillIsNotSentToThoseWhoReturn(x *exam) {
	d := x.device()
	w := x.watch(d)
	began := time.Now()
	d.connect(fresh, will(gone(d), "too early", 1), delay(1))
	d.hangUp()
	d = d.again()
	d.connect(persistent)
	clock := x.device()
	cw := x.watch(clock)
	clock.connect(fresh, will(gone(clock), "two seconds", 1), delay(2))
	clock.hangUp()
	cw.takePayload("two seconds")
	if waited := time.Since(began); waited < 2*time.Second {
		x.Fatalf("a will with a delay of 2 s came after %v", waited)
	}
	d.alive()
	d.publish("d/"+d.id+"/tele/mark", "mark", 1)
	w.takePayload("mark")
}

func delay(seconds uint32) option { return func(c *wire.Connect) { c.Will.Delay = seconds } }

func willKeepsTheOrderOfItsUserProperties(x *exam) {
	d := x.device()
	w := x.watch(d)
	properties := fullProperties()
	d.connect(will(gone(d), "last words", 1), func(c *wire.Connect) { c.Will.Message.Props = properties })
	d.hangUp()
	sameProperties(x, w.takePayload("last words"), properties)
}

func willKeepsItsQoS(x *exam) {
	for qos := range byte(3) {
		d := x.device()
		w := x.watch(d)
		d.connect(will(gone(d), "last words", qos))
		d.hangUp()
		if m := w.takePayload("last words"); m.QoS != qos {
			x.Fatalf("got %s, want QoS %d", describe(m), qos)
		}
	}
}
