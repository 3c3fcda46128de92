package broker

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/wire"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/registry"
)

// TestOfflineQueueKeepsItsOrder: mochi sorts it by seconds.
func TestOfflineQueueKeepsItsOrder(t *testing.T) {
	h := startHub(t)
	c := h.device("pi-1")
	device := h.online(c, persistent)
	device.subscribe(1, 1, "d/pi-1/cmd/#")
	device.disconnect()
	until(t, "the device is gone", func() bool { _, live := h.Live("pi-1"); return !live })

	service := h.online(h.pki.Service("backend"))
	const n = 300
	for i := 1; i <= n; i++ {
		service.publish("d/pi-1/cmd/step/1", fmt.Sprint(i), 1, uint16(i))
		service.ack(wire.TypePuback)
	}
	device = h.mustDial(c)
	if ack := device.mustConnect("pi-1", persistent); !ack.SessionPresent {
		t.Fatal("no session")
	}
	service.publish("d/pi-1/cmd/step/1", fmt.Sprint(n+1), 1, 1)
	for i := 1; i <= n+1; i++ {
		pk := expect[*wire.Publish](device)
		if string(pk.Payload) != fmt.Sprint(i) {
			t.Fatalf("message %d came in place %d", i, i)
		}
		must(t, device.send(&wire.Ack{Kind: wire.TypePuback, ID: pk.ID}))
	}
}

// TestStoredSessionPassesPolicyAgain: the device has lost its label while it
// was away, and must not get what was queued for that label.
func TestStoredSessionPassesPolicyAgain(t *testing.T) {
	h := startHub(t)
	c := h.device("pi-1", "site", "north")
	device := h.online(c, persistent)
	device.subscribe(1, 1, "g/site=north/cmd/#", "d/pi-1/cmd/#")
	device.disconnect()
	until(t, "the device is gone", func() bool { _, live := h.Live("pi-1"); return !live })
	service := h.online(h.pki.Service("backend"))
	service.publish("g/site=north/cmd/x/1", "for the north", 1, 1)
	service.ack(wire.TypePuback)
	service.publish("d/pi-1/cmd/x/1", "for pi-1", 1, 2)
	service.ack(wire.TypePuback)
	h.devices.set("pi-1", func(s *registry.Status) { s.Labels = nil })

	device = h.online(c, persistent)
	if pk := expect[*wire.Publish](device); string(pk.Payload) != "for pi-1" {
		t.Errorf("got %q", pk.Payload)
	}
	if n := len(h.index.Match("g/site=north/cmd/x/1").Direct); n != 0 {
		t.Error("the subscription survived the label")
	}
}

func TestCleanStartDropsTheStoredSession(t *testing.T) {
	h := startHub(t)
	c := h.device("pi-1")
	device := h.online(c, persistent)
	device.subscribe(1, 1, "d/pi-1/cmd/#")
	device.disconnect()
	until(t, "the device is gone", func() bool { _, live := h.Live("pi-1"); return !live })
	service := h.online(h.pki.Service("backend"))
	service.publish("d/pi-1/cmd/x/1", "old", 1, 1)
	service.ack(wire.TypePuback)
	device = h.mustDial(c)
	if ack := device.mustConnect("pi-1"); ack.SessionPresent {
		t.Error("session present after a clean start")
	}
	service.publish("d/pi-1/cmd/x/1", "new", 1, 2)
	service.ack(wire.TypePuback)
	device.alive() // and nothing before it
}

// TestExpiredSessionLeavesNothing: mochi keeps its subscriptions.
func TestExpiredSessionLeavesNothing(t *testing.T) {
	h := startHub(t)
	device := h.online(h.device("pi-1"), v5, sessionExpiry(1))
	device.subscribe(1, 1, "d/pi-1/cmd/#")
	device.disconnect()
	until(t, "the session is removed", func() bool { return h.Stats().Sessions == 0 })
	if n := len(h.index.Match("d/pi-1/cmd/x/1").Direct); n != 0 {
		t.Errorf("%d subscriptions are left", n)
	}
}

func TestReceiveMaximumIsKept(t *testing.T) {
	h := startHub(t)
	c := h.device("pi-1")
	limit := func(pk *wire.Connect) { pk.ReceiveMaximum = 3 }
	device := h.online(c, v5, sessionExpiry(60), limit)
	device.subscribe(1, 1, "d/pi-1/cmd/#")
	service := h.online(h.pki.Service("backend"))
	const n = 20
	send := func(from, to int) {
		for i := from; i <= to; i++ {
			service.publish("d/pi-1/cmd/step/1", fmt.Sprint(i), 1, uint16(i))
			service.ack(wire.TypePuback)
		}
	}
	receive := func(w *peer, from, to int) {
		t.Helper()
		var unacknowledged []uint16
		for i := from; i <= to; i++ {
			pk := expect[*wire.Publish](w)
			if string(pk.Payload) != fmt.Sprint(i) {
				t.Fatalf("got %q, want %d", pk.Payload, i)
			}
			unacknowledged = append(unacknowledged, pk.ID)
			if len(unacknowledged) == 3 {
				w.alive() // no fourth message comes before the pong
				for _, id := range unacknowledged {
					must(t, w.send(&wire.Ack{Kind: wire.TypePuback, ID: id}))
				}
				unacknowledged = nil
			}
		}
	}
	send(1, n)
	receive(device, 1, 18)
	s := h.sessions.find(sessionKey(identity.RoleDevice, "pi-1"))
	until(t, "the acknowledgements are taken", func() bool { // or hanging up might overtake them
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.box.inflight == 2
	})
	// What was held goes on after a reconnect, in order and within the limit.
	device.hangUp()
	until(t, "the device is gone", func() bool { _, live := h.Live("pi-1"); return !live })
	send(n+1, 2*n)
	device = h.online(c, v5, persistent, sessionExpiry(60), limit)
	receive(device, 19, 2*n)
}

func TestManyRetainedMessagesArriveAtOnce(t *testing.T) {
	h := startHub(t)
	const n = 5000
	for i := range n {
		h.tell(protocol.Presence(fmt.Sprintf("pi-%d", i)), []byte(strings.Repeat("x", 100)), 1)
	}
	for _, qos := range []byte{0, 1} {
		service := h.online(h.pki.Service("backend"), v5, func(pk *wire.Connect) { pk.ReceiveMaximum = 20 })
		service.subscribe(1, qos, "presence/#")
		got := make(map[string]bool)
		for len(got) < n {
			pk := expect[*wire.Publish](service)
			if !pk.Retain || pk.QoS != qos {
				t.Fatalf("retain %v, QoS %d", pk.Retain, pk.QoS)
			}
			if qos == 1 {
				must(t, service.send(&wire.Ack{Kind: wire.TypePuback, ID: pk.ID}))
			}
			got[pk.Topic] = true
		}
		service.alive() // and nothing twice
	}
}

// TestBurstFromManyDevices has one service take what a fleet sends at once.
func TestBurstFromManyDevices(t *testing.T) {
	h := startHub(t)
	service := h.online(h.pki.Service("backend"))
	service.subscribe(1, 1, "d/+/tele/#")
	const senders, each = 20, 50
	var all sync.WaitGroup
	for i := range senders {
		w := h.online(h.device(fmt.Sprintf("pi-%d", i)))
		all.Go(func() {
			for n := 1; n <= each; n++ {
				data, _ := wire.Append(nil, &wire.Publish{QoS: 1, Topic: fmt.Sprintf("d/pi-%d/tele/x", i), Payload: []byte("x"), ID: uint16(n)}, wire.V311)
				if _, err := w.conn.Write(data); err != nil {
					t.Error(err)
				}
			}
			for range each {
				if pk, err := w.read(); err != nil || pk.Type() != wire.TypePuback {
					t.Errorf("%T: %v", pk, err)
					return
				}
			}
		})
	}
	for range senders * each {
		pk := expect[*wire.Publish](service)
		must(t, service.send(&wire.Ack{Kind: wire.TypePuback, ID: pk.ID}))
	}
	all.Wait()
}

// TestSubscriberThatStopsReadingHarmsNobody: it is cut when it takes nothing for long,
// publishers never wait for it, and until then it can be disconnected at once.
func TestSubscriberThatStopsReadingHarmsNobody(t *testing.T) {
	h := startHub(t, func(_ *Config, l *listener.Config) { l.WriteTimeout = 300 * time.Millisecond })
	service := h.online(h.pki.Service("backend"))
	other := h.online(h.pki.Service("other"))
	other.subscribe(1, 0, "presence/#")
	device := h.online(h.device("pi-1"))
	device.subscribe(1, 1, "d/pi-1/cmd/#")
	must(t, device.conn.NetConn().(*net.TCPConn).SetReadBuffer(4096))
	payload := strings.Repeat("x", 60_000)
	other.presence("pi-1")
	for i := 1; ; i++ {
		service.publish("d/pi-1/cmd/fill/1", payload, 1, uint16(i))
		service.ack(wire.TypePuback)
		if _, live := h.Live("pi-1"); !live {
			break
		}
		if i > 2000 {
			t.Fatal("120 MB later the reader that doesn't read is still connected")
		}
	}
	if s := other.presence("pi-1"); s.Online {
		t.Errorf("presence %+v", s)
	}
}

func TestDisconnectDoesNotWaitForThePeer(t *testing.T) {
	h := startHub(t, func(_ *Config, l *listener.Config) { l.WriteTimeout = time.Hour })
	service := h.online(h.pki.Service("backend"))
	device := h.online(h.device("pi-1"), v5)
	device.subscribe(1, 0, "d/pi-1/cmd/#")
	must(t, device.conn.NetConn().(*net.TCPConn).SetReadBuffer(4096))
	payload := strings.Repeat("x", 60_000)
	for i := 1; i <= 100; i++ { // more than both kernels' buffers take, less than the hub's limit cuts for
		service.publish("d/pi-1/cmd/fill/1", payload, 1, uint16(i))
		service.ack(wire.TypePuback)
		if _, live := h.Live("pi-1"); !live {
			break
		}
	}
	closed := make(chan int, 1)
	go func() {
		n, _ := h.cutOff("pi-1", registry.StateRevoked)
		closed <- n
	}()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("Disconnect waits for a peer that doesn't read")
	}
	// The socket is closed; the connection's reader notices in its own time.
	until(t, "the device is gone", func() bool { _, live := h.Live("pi-1"); return !live })
}

// TestNoCommandIsLostWhileADeviceKeepsReconnecting takes the session over again
// and again while commands arrive: each comes at least once, and for the first
// time in its order.
func TestNoCommandIsLostWhileADeviceKeepsReconnecting(t *testing.T) {
	h := startHub(t)
	c := h.device("pi-1")
	device := h.online(c, persistent)
	device.subscribe(1, 1, "d/pi-1/cmd/#")
	service := h.online(h.pki.Service("backend"))
	const n = 400
	var sending sync.WaitGroup
	sending.Go(func() {
		for i := 1; i <= n; i++ {
			data, _ := wire.Append(nil, &wire.Publish{QoS: 1, Topic: "d/pi-1/cmd/step/1", Payload: fmt.Append(nil, i), ID: uint16(i)}, wire.V311)
			if _, err := service.conn.Write(data); err != nil {
				t.Error(err)
				return
			}
			if pk, err := service.read(); err != nil || pk.Type() != wire.TypePuback {
				t.Errorf("%T: %v", pk, err)
				return
			}
		}
	})
	next := 1
	for reads := 0; next <= n; reads++ {
		if reads%25 == 24 { // the next connection cuts this one
			device = h.mustDial(c)
			if ack := device.mustConnect("pi-1", persistent); !ack.SessionPresent {
				t.Fatal("no session")
			}
		}
		pk := expect[*wire.Publish](device)
		var i int
		if _, err := fmt.Sscan(string(pk.Payload), &i); err != nil || i > next {
			t.Fatalf("%q came instead of %d", pk.Payload, next)
		}
		next = max(next, i+1)
		must(t, device.send(&wire.Ack{Kind: wire.TypePuback, ID: pk.ID}))
	}
	sending.Wait()
	if d := h.Stats().Dropped; d != 0 {
		t.Errorf("%d dropped", d)
	}
}

func TestSharedSubscriptionGoesToOneConnectedMember(t *testing.T) {
	h := startHub(t)
	c := h.pki.Service("workers")
	away := h.mustDial(c)
	away.mustConnect("workers:away", persistent)
	away.subscribe(1, 1, "$share/g/d/+/tele/#")
	away.disconnect()
	until(t, "the member is away", func() bool { return h.Stats().Services == 0 })
	here := h.mustDial(c)
	here.mustConnect("workers:here")
	here.subscribe(1, 1, "$share/g/d/+/tele/#")
	device := h.online(h.device("pi-1"))
	for i := range 20 {
		device.publish("d/pi-1/tele/x", fmt.Sprint(i), 1, uint16(i+1))
		if pk := expect[*wire.Publish](here); string(pk.Payload) != fmt.Sprint(i) {
			t.Fatalf("got %q, want %d", pk.Payload, i)
		}
	}
}

func TestRetainFlagAndSubscriptionIdentifier(t *testing.T) {
	h := startHub(t)
	service := h.online(h.pki.Service("backend"), v5)
	pk := &wire.Subscribe{ID: 1, SubID: 7, Filters: []wire.Subscription{{Filter: "d/+/twin/reported", RetainAsPublished: true}}}
	must(t, service.send(pk))
	expect[*wire.Suback](service)
	plain := h.online(h.pki.Service("plain"), v5)
	plain.subscribe(1, 0, "d/+/twin/reported")
	device := h.online(h.device("pi-1"))
	must(t, device.send(&wire.Publish{Retain: true, Topic: "d/pi-1/twin/reported", Payload: []byte("{}")}))
	if got := expect[*wire.Publish](service); !got.Retain || len(got.SubIDs) != 1 || got.SubIDs[0] != 7 {
		t.Errorf("retain %v, identifiers %v; want as published, 7", got.Retain, got.SubIDs)
	}
	if got := expect[*wire.Publish](plain); got.Retain {
		t.Error("a live message has the retain flag")
	}
	late := h.online(h.pki.Service("late"))
	late.subscribe(1, 0, "d/pi-1/twin/#", "d/+/twin/reported")
	if got := expect[*wire.Publish](late); !got.Retain || string(got.Payload) != "{}" {
		t.Errorf("retained: %v %q", got.Retain, got.Payload)
	}
}
