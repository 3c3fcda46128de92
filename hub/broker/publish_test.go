package broker

import (
	"fmt"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/hub/registry"
)

func TestPublishReachesServicesAndIsAcknowledged(t *testing.T) {
	for _, version := range []option{func(*packets.Packet) {}, v5} {
		h := startHub(t)
		service := h.online(h.pki.Service("backend"), version)
		service.subscribe(1, 2, "d/+/tele/#")
		device := h.online(h.device("pi-1"), version)

		device.publish("d/pi-1/tele/machine", "zero", 0, 0)
		if pk := service.expect(packets.Publish); string(pk.Payload) != "zero" || pk.FixedHeader.Qos != 0 {
			t.Errorf("QoS %d %q", pk.FixedHeader.Qos, pk.Payload)
		}
		device.publish("d/pi-1/tele/machine", "one", 1, 7)
		if ack := device.expect(packets.Puback); ack.PacketID != 7 || ack.ReasonCode != 0 {
			t.Errorf("PUBACK %d, code %#x", ack.PacketID, ack.ReasonCode)
		}
		if pk := service.expect(packets.Publish); string(pk.Payload) != "one" || pk.FixedHeader.Qos != 1 {
			t.Errorf("QoS %d %q", pk.FixedHeader.Qos, pk.Payload)
		}
		device.publish("d/pi-1/tele/machine", "two", 2, 8)
		if ack := device.expect(packets.Pubrec); ack.PacketID != 8 || ack.ReasonCode != 0 {
			t.Errorf("PUBREC %d, code %#x", ack.PacketID, ack.ReasonCode)
		}
		if pk := service.expect(packets.Publish); string(pk.Payload) != "two" || pk.FixedHeader.Qos != 2 {
			t.Errorf("QoS %d %q", pk.FixedHeader.Qos, pk.Payload)
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
			if ack := w.expect(packets.Puback); ack.ReasonCode != packets.ErrNotAuthorized.Code || ack.PacketID != 1 {
				t.Errorf("PUBACK %d, code %#x", ack.PacketID, ack.ReasonCode)
			}
			w.publish(topic, "x", 2, 2)
			if ack := w.expect(packets.Pubrec); ack.ReasonCode != packets.ErrNotAuthorized.Code || ack.PacketID != 2 {
				t.Errorf("PUBREC %d, code %#x", ack.PacketID, ack.ReasonCode)
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

func TestTopicAliasIsRefused(t *testing.T) {
	for _, topic := range []string{"", "d/pi-1/tele/machine", "d/pi-2/tele/machine"} {
		h := startHub(t)
		w := h.online(h.device("pi-1"), v5)
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: topic, Payload: []byte("x")}
		pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = 1, true
		must(t, w.send(pk))
		got := w.closed()
		if len(got) != 1 || got[0].ReasonCode != packets.ErrTopicAliasInvalid.Code {
			t.Errorf("%q: got %+v, want DISCONNECT 0x94", topic, got)
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
	device.expect(packets.Pubrec)
	device.publish("d/pi-1/tele/machine", "once", 2, 5)
	device.expect(packets.Pubrec)
	device.hangUp()
	device = h.online(c, persistent) // the identifier is part of the session
	device.publish("d/pi-1/tele/machine", "once", 2, 5)
	device.expect(packets.Pubrec)
	must(t, device.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrel}, PacketID: 5}))
	device.expect(packets.Pubcomp)
	device.publish("d/pi-1/tele/machine", "twice", 2, 5)
	device.expect(packets.Pubrec)
	for _, want := range []string{"once", "twice"} {
		if pk := service.expect(packets.Publish); string(pk.Payload) != want {
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
			if pk := device.expect(packets.Publish); pk.PacketID != 1 {
				t.Fatalf("the command has identifier %d, want 1", pk.PacketID)
			}
			// Not acknowledged, while the device uses the same identifier itself.
			device.publish("d/pi-1/tele/machine", "x", 1, 1)
			device.expect(packets.Puback)
			device.publish("d/pi-1/tele/machine", "x", 2, 1)
			device.expect(packets.Pubrec)
			must(t, device.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrel}, PacketID: 1}))
			device.expect(packets.Pubcomp)
			if codes := device.subscribe(1, 1, "d/pi-1/sys/#"); codes[0] != 1 {
				t.Errorf("SUBACK code %#x", codes[0])
			}
			device.hangUp()
			device = h.mustDial(c)
			if ack := device.mustConnect("pi-1", persistent); !ack.SessionPresent {
				t.Fatal("no session")
			}
			if pk := device.expect(packets.Publish); pk.PacketID != 1 || !pk.FixedHeader.Dup || string(pk.Payload) != "now" {
				t.Errorf("resent: identifier %d, dup %v, %q", pk.PacketID, pk.FixedHeader.Dup, pk.Payload)
			}
		})
	}
}

func TestSubscribe(t *testing.T) {
	h := startHub(t)
	old := h.online(h.device("pi-1", "site", "north"))
	filters := []string{"d/pi-1/cmd/#", "g/site=north/cmd/#", "#", "d/+/cmd/#", "$share/g/d/pi-2/#", "sport#", "a/b+/c", "$share//x", "$SYS/#", "g/site=south/cmd/#"}
	v3codes := []byte{1, 1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80}
	v5codes := []byte{1, 1, 0x87, 0x87, 0x87, 0x8f, 0x8f, 0x8f, 0x87, 0x87}
	if got := old.subscribe(1, 1, filters...); string(got) != string(v3codes) {
		t.Errorf("3.1.1 codes % x, want % x", got, v3codes)
	}
	current := h.online(h.device("pi-1", "site", "north"), v5)
	if got := current.subscribe(1, 1, filters...); string(got) != string(v5codes) {
		t.Errorf("5.0 codes % x, want % x", got, v5codes)
	}
	must(t, current.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe}, PacketID: 2, Filters: packets.Subscriptions{{Filter: "d/pi-1/cmd/#"}}}))
	if ack := current.expect(packets.Unsuback); ack.PacketID != 2 {
		t.Errorf("UNSUBACK for %d", ack.PacketID)
	}
}

func TestSubscriptionsAreBounded(t *testing.T) {
	h := startHub(t)
	w := h.online(h.device("pi-1"), v5)
	var filters []string
	for i := range maxSubscriptions + 1 {
		filters = append(filters, fmt.Sprintf("d/pi-1/cmd/x/%d", i))
	}
	codes := w.subscribe(1, 0, filters...)
	if codes[maxSubscriptions-1] != 0 || codes[maxSubscriptions] != packets.ErrQuotaExceeded.Code {
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
	if pk := device.expect(packets.Publish); string(pk.Payload) != "first" {
		t.Errorf("got %q", pk.Payload)
	}
	h.devices.set("pi-1", func(s *registry.Status) { s.Labels = map[string]string{"site": "south"} })
	service.publish("g/site=north/cmd/x/2", "second", 0, 0)
	service.publish("d/pi-1/cmd/x/3", "third", 0, 0)
	if pk := device.expect(packets.Publish); string(pk.Payload) != "third" {
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
	if pk := service.expect(packets.Publish); string(pk.Payload) != "second" {
		t.Errorf("got %q", pk.Payload)
	}
}
