package broker

import (
	"fmt"
	"slices"
	"testing"

	"github.com/fleethub/fleethub/hub/wire"

	"github.com/fleethub/fleethub/hub/registry"
)

func TestPublishReachesServicesAndIsAcknowledged(t *testing.T) {
	for _, version := range []option{func(*wire.Connect) {}, v5} {
		h := startHub(t)
		service := h.online(h.pki.Service("backend"), version)
		service.subscribe(1, 2, "d/+/tele/#")
		device := h.online(h.device("pi-1"), version)

		device.publish("d/pi-1/tele/machine", "zero", 0, 0)
		if pk := expect[*wire.Publish](service); string(pk.Payload) != "zero" || pk.QoS != 0 {
			t.Errorf("QoS %d %q", pk.QoS, pk.Payload)
		}
		device.publish("d/pi-1/tele/machine", "one", 1, 7)
		if ack := device.ack(wire.TypePuback); ack.ID != 7 || ack.Code != 0 {
			t.Errorf("PUBACK %d, code %#x", ack.ID, ack.Code)
		}
		if pk := expect[*wire.Publish](service); string(pk.Payload) != "one" || pk.QoS != 1 {
			t.Errorf("QoS %d %q", pk.QoS, pk.Payload)
		}
		device.publish("d/pi-1/tele/machine", "two", 2, 8)
		if ack := device.ack(wire.TypePubrec); ack.ID != 8 || ack.Code != 0 {
			t.Errorf("PUBREC %d, code %#x", ack.ID, ack.Code)
		}
		if pk := expect[*wire.Publish](service); string(pk.Payload) != "two" || pk.QoS != 2 {
			t.Errorf("QoS %d %q", pk.QoS, pk.Payload)
		}
	}
}

func TestDeniedPublish(t *testing.T) {
	for _, topic := range []string{"d/pi-2/tele/machine", "d/pi-1/cmd/reboot/1", "presence/pi-1", "$SYS/broker/version", "g/a=b/cmd/x/1"} {
		t.Run(topic, func(t *testing.T) {
			h := startHub(t)
			var got []Message
			ctx := t.Context()
			watching := make(chan struct{})
			go func() {
				defer close(watching)
				_ = h.Watch(ctx, "#", func(m Message) { got = append(got, m) })
			}()
			until(t, "the watch is on", func() bool { return h.Stats().Watchers == 1 })

			w := h.online(h.device("pi-1"), v5)
			w.publish(topic, "x", 0, 0) // dropped
			w.publish(topic, "x", 1, 1)
			if ack := w.ack(wire.TypePuback); ack.Code != wire.NotAuthorized || ack.ID != 1 {
				t.Errorf("PUBACK %d, code %#x", ack.ID, ack.Code)
			}
			w.publish(topic, "x", 2, 2)
			if ack := w.ack(wire.TypePubrec); ack.Code != wire.NotAuthorized || ack.ID != 2 {
				t.Errorf("PUBREC %d, code %#x", ack.ID, ack.Code)
			}
			w.disconnect()

			// 3.1.1 knows no refusal: QoS 0 is dropped, otherwise the connection
			// ends without an acknowledgement.
			old := h.online(h.device("pi-1"))
			old.publish(topic, "x", 0, 0)
			old.alive()
			old.publish(topic, "x", 1, 1)
			if answers := old.closed(); len(answers) != 0 {
				t.Errorf("3.1.1 client got %+v", answers)
			}
			if n := h.Stats().Denied; n != 5 {
				t.Errorf("%d denials counted, want 5", n)
			}
			must(t, h.Broker.Close())
			<-watching
			for _, m := range got {
				if string(m.Payload) == "x" {
					t.Errorf("a denied message was routed to %s", m.Topic)
				}
			}
		})
	}
}

func TestTopicAliasIsResolvedBeforePolicyIsAsked(t *testing.T) {
	h := startHub(t)
	service := h.online(h.pki.Service("backend"))
	service.subscribe(1, 1, "d/+/tele/#")
	w := h.online(h.device("pi-1"), v5)
	must(t, w.send(&wire.Publish{Topic: "d/pi-1/tele/machine", Alias: 1, Payload: []byte("by name")}))
	must(t, w.send(&wire.Publish{Alias: 1, Payload: []byte("by alias")}))
	for _, want := range []string{"by name", "by alias"} {
		if pk := expect[*wire.Publish](service); string(pk.Payload) != want || pk.Topic != "d/pi-1/tele/machine" {
			t.Errorf("got %q on %s", pk.Payload, pk.Topic)
		}
	}
	// An alias for somebody else's topic is that topic.
	must(t, w.send(&wire.Publish{Topic: "d/pi-2/tele/machine", Alias: 1, QoS: 1, ID: 1}))
	if ack := w.ack(wire.TypePuback); ack.Code != wire.NotAuthorized {
		t.Errorf("code %#x", ack.Code)
	}
	must(t, w.send(&wire.Publish{Alias: 1, QoS: 1, ID: 2}))
	if ack := w.ack(wire.TypePuback); ack.Code != wire.NotAuthorized {
		t.Errorf("by alias: code %#x", ack.Code)
	}
}

func TestTopicAliasThatStandsForNothing(t *testing.T) {
	for alias, want := range map[uint16]wire.Code{2: wire.ProtocolError, topicAliases + 1: wire.TopicAliasInvalid} {
		h := startHub(t)
		w := h.online(h.device("pi-1"), v5)
		must(t, w.send(&wire.Publish{Alias: alias, Payload: []byte("x")}))
		if got := w.closed(); !toldOnly(got, want) {
			t.Errorf("alias %d: got %+v, want DISCONNECT %#x", alias, got, want)
		}
	}
}

// TestQoS2RepeatIsNotRoutedTwice: mochi answers the repeat with 0x91.
func TestQoS2RepeatIsNotRoutedTwice(t *testing.T) {
	h := startHub(t)
	service := h.online(h.pki.Service("backend"))
	service.subscribe(1, 0, "d/+/tele/#")
	c := h.device("pi-1")
	device := h.online(c, persistent)
	device.publish("d/pi-1/tele/machine", "once", 2, 5)
	device.ack(wire.TypePubrec)
	device.publish("d/pi-1/tele/machine", "once", 2, 5)
	device.ack(wire.TypePubrec)
	device.hangUp()
	device = h.online(c, persistent) // the identifier is part of the session
	device.publish("d/pi-1/tele/machine", "once", 2, 5)
	device.ack(wire.TypePubrec)
	must(t, device.send(&wire.Ack{Kind: wire.TypePubrel, ID: 5}))
	device.ack(wire.TypePubcomp)
	device.publish("d/pi-1/tele/machine", "twice", 2, 5)
	device.ack(wire.TypePubrec)
	for _, want := range []string{"once", "twice"} {
		if pk := expect[*wire.Publish](service); string(pk.Payload) != want {
			t.Errorf("got %q, want %q", pk.Payload, want)
		}
	}
}

// TestPacketIdentifiersOfBothDirectionsAreApart: to mochi, a device's message 1,
// subscription 1 or PUBREL 1 is the hub's command 1.
func TestPacketIdentifiersOfBothDirectionsAreApart(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
			h := startHub(t)
			c := h.device("pi-1")
			device := h.online(c, persistent)
			device.subscribe(9, qos, "d/pi-1/cmd/#")
			service := h.online(h.pki.Service("backend"))
			service.publish("d/pi-1/cmd/reboot/1", "now", qos, 1)
			if pk := expect[*wire.Publish](device); pk.ID != 1 {
				t.Fatalf("the command has identifier %d, want 1", pk.ID)
			}
			// Not acknowledged, while the device uses the same identifier itself.
			device.publish("d/pi-1/tele/machine", "x", 1, 1)
			device.ack(wire.TypePuback)
			device.publish("d/pi-1/tele/machine", "x", 2, 1)
			device.ack(wire.TypePubrec)
			must(t, device.send(&wire.Ack{Kind: wire.TypePubrel, ID: 1}))
			device.ack(wire.TypePubcomp)
			if codes := device.subscribe(1, 1, "d/pi-1/sys/#"); codes[0] != 1 {
				t.Errorf("SUBACK code %#x", codes[0])
			}
			device.hangUp()
			device = h.mustDial(c)
			if ack := device.mustConnect("pi-1", persistent); !ack.SessionPresent {
				t.Fatal("no session")
			}
			if pk := expect[*wire.Publish](device); pk.ID != 1 || !pk.Dup || string(pk.Payload) != "now" {
				t.Errorf("resent: identifier %d, dup %v, %q", pk.ID, pk.Dup, pk.Payload)
			}
		})
	}
}

func TestSubscribe(t *testing.T) {
	h := startHub(t)
	old := h.online(h.device("pi-1", "site", "north"))
	filters := []string{"d/pi-1/cmd/#", "g/site=north/cmd/#", "#", "d/+/cmd/#", "$share/g/d/pi-2/#", "sport#", "a/b+/c", "$share//x", "$SYS/#", "g/site=south/cmd/#"}
	v3codes := []wire.Code{1, 1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80}
	v5codes := []wire.Code{1, 1, 0x87, 0x87, 0x87, 0x8f, 0x8f, 0x8f, 0x87, 0x87}
	if got := old.subscribe(1, 1, filters...); !slices.Equal(got, v3codes) {
		t.Errorf("3.1.1 codes % x, want % x", got, v3codes)
	}
	current := h.online(h.device("pi-1", "site", "north"), v5)
	if got := current.subscribe(1, 1, filters...); !slices.Equal(got, v5codes) {
		t.Errorf("5.0 codes % x, want % x", got, v5codes)
	}
	must(t, current.send(&wire.Unsubscribe{ID: 2, Filters: []string{"d/pi-1/cmd/#"}}))
	if ack := expect[*wire.Suback](current); ack.ID != 2 {
		t.Errorf("UNSUBACK for %d", ack.ID)
	}
}

func TestSubscriptionsAreBounded(t *testing.T) {
	h := startHub(t)
	w := h.online(h.device("pi-1"), v5)
	var filters []string
	const maxSubscriptions = 256
	for i := range maxSubscriptions + 1 {
		filters = append(filters, fmt.Sprintf("d/pi-1/cmd/x/%d", i))
	}
	codes := w.subscribe(1, 0, filters...)
	if codes[maxSubscriptions-1] != 0 || codes[maxSubscriptions] != wire.QuotaExceeded {
		t.Errorf("last codes %#x %#x", codes[maxSubscriptions-1], codes[maxSubscriptions])
	}
	if codes := w.subscribe(2, 0, filters[0]); codes[0] != 0 {
		t.Errorf("renewing one that exists: %#x", codes[0])
	}
}

func TestLabelChangeTakesEffectWithTheNextMessage(t *testing.T) {
	h := startHub(t)
	device := h.online(h.device("pi-1", "site", "north"))
	device.subscribe(1, 0, "g/site=north/cmd/#", "d/pi-1/cmd/#")
	service := h.online(h.pki.Service("backend"))
	service.publish("g/site=north/cmd/x/1", "first", 0, 0)
	if pk := expect[*wire.Publish](device); string(pk.Payload) != "first" {
		t.Errorf("got %q", pk.Payload)
	}
	h.devices.set("pi-1", func(s *registry.Status) { s.Labels = map[string]string{"site": "south"} })
	service.publish("g/site=north/cmd/x/2", "second", 0, 0)
	service.publish("d/pi-1/cmd/x/3", "third", 0, 0)
	if pk := expect[*wire.Publish](device); string(pk.Payload) != "third" {
		t.Errorf("got %q", pk.Payload)
	}
}

func TestWillIsPublishedUnlessDisconnected(t *testing.T) {
	h := startHub(t)
	service := h.online(h.pki.Service("backend"))
	service.subscribe(1, 0, "d/+/evt/#")
	c := h.device("pi-1")
	w := h.online(c, will("d/pi-1/evt/offline", "first"))
	w.disconnect()
	w = h.online(c, will("d/pi-1/evt/offline", "second"))
	w.hangUp()
	if pk := expect[*wire.Publish](service); string(pk.Payload) != "second" {
		t.Errorf("got %q", pk.Payload)
	}
}
