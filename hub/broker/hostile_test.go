package broker

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/fleethub/fleethub/hub/wire"

	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/protocol"
)

// truncatedSubscribe ends where the options byte of its filter should be: mochi's
// decoder reads behind the end of the packet and panics.
var truncatedSubscribe = []byte{0x82, 0x06, 0x00, 0x01, 0x00, 0x00, 0x01, 'a'}

func TestHostileFirstPackets(t *testing.T) {
	tests := []struct {
		name string
		data []byte
		want string
	}{
		{"truncated SUBSCRIBE", truncatedSubscribe, "first-packet"},
		{"PUBLISH", []byte{0x30, 0x03, 0x00, 0x01, 'a'}, "first-packet"},
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), "first-packet"},
		{"CONNECT with flags", []byte{0x1f, 0x00}, "malformed-connect"},
		{"CONNECT of 256 MB", []byte{0x10, 0xff, 0xff, 0xff, 0x7f}, "malformed-connect"},
		{"CONNECT of endless length", []byte{0x10, 0x80, 0x80, 0x80, 0x80, 0x80}, "malformed-connect"},
		{"empty CONNECT", []byte{0x10, 0x00}, "malformed-connect"},
		{"CONNECT with properties behind its end", []byte{0x10, 0x0b, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 60, 0x7f}, "malformed-connect"},
		{"CONNECT, reserved flag", []byte{0x10, 0x10, 0, 4, 'M', 'Q', 'T', 'T', 4, 3, 0, 60, 0, 4, 'p', 'i', '-', '1'}, "malformed-connect"},
	}
	h := startHub(t)
	c := h.device("pi-1")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := h.mustDial(c)
			w.t = t
			must(t, w.sendRaw(tt.data))
			for _, pk := range w.closed() {
				if ack, ok := pk.(*wire.Connack); ok && ack.Code == 0 {
					t.Error("accepted")
				}
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			if n := len(h.refusal); n == 0 || h.refusal[n-1] != tt.want {
				t.Errorf("refusals %q, want %q last", h.refusal, tt.want)
			}
		})
	}
}

// TestMalformedPacketEndsItsConnectionOnly: what the connection leaves behind is
// cleaned up as after any other end.
func TestMalformedPacketEndsItsConnectionOnly(t *testing.T) {
	h := startHub(t)
	service := h.online(h.pki.Service("backend"))
	service.subscribe(1, 0, "d/+/evt/#", "presence/#")
	w := h.online(h.device("pi-1"), v5, will("d/pi-1/evt/offline", "gone"))
	w.subscribe(1, 0, "d/pi-1/cmd/#")
	service.presence("pi-1")
	must(t, w.sendRaw(truncatedSubscribe))
	if got := w.closed(); !toldOnly(got, wire.MalformedPacket) {
		t.Errorf("got %+v, want DISCONNECT 0x81", got)
	}
	if pk := expect[*wire.Publish](service); string(pk.Payload) != "gone" {
		t.Errorf("instead of the will came %s", pk.Topic)
	}
	if s := service.presence("pi-1"); s.Online {
		t.Errorf("presence %+v", s)
	}
	until(t, "nothing is left of the session", func() bool {
		return h.Stats().Sessions == 1 && len(h.index.Match("d/pi-1/cmd/x/1").Direct) == 0
	})
	h.online(h.device("pi-1")).alive()
}

func TestPacketAboveTheLimitEndsTheConnection(t *testing.T) {
	h := startHub(t, func(c *Config, _ *listener.Config) { c.MaxPacketSize = 1024 })
	w := h.online(h.device("pi-1"), v5)
	w.publish("d/pi-1/tele/machine", strings.Repeat("x", 2048), 1, 1)
	w.closed()
}

func TestSilentConnectionIsClosed(t *testing.T) {
	h := startHub(t, func(_ *Config, l *listener.Config) { l.ConnectTimeout = 50 * time.Millisecond })
	c := h.device("pi-1")
	h.mustDial(c).closed() // says nothing
	h.refusedFor(ReasonConnectTimeout)
	half := h.mustDial(c) // says half of it
	must(t, half.sendRaw([]byte{0x10, 0x10, 0, 4, 'M', 'Q'}))
	half.closed()
	until(t, "both are refused", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.refusal) == 2 && h.refusal[1] == string(ReasonConnectTimeout)
	})
	until(t, "nothing is left", func() bool { return h.listener.Open() == 0 })
}

// TestGarbageNeverEndsTheHub throws mutated packets at a live connection.
func TestGarbageNeverEndsTheHub(t *testing.T) {
	h := startHub(t)
	good := h.online(h.pki.Service("backend"))
	c := h.device("pi-1")
	random := rand.New(rand.NewPCG(1, 2))
	seeds := [][]byte{
		truncatedSubscribe,
		{0x32, 0x0a, 0, 4, 'd', '/', 'x', '/', 0, 1, 0, 'x'},
		{0x62, 0x02, 0, 1}, {0x40, 0x02, 0, 1}, {0x50, 0x02, 0, 1}, {0x70, 0x02, 0, 1},
		{0xa2, 0x05, 0, 1, 0, 0, 1}, {0xe0, 0x02, 0, 0}, {0xf0, 0x02, 0, 0}, {0xc0, 0x00}, {0x20, 0x02, 0, 0},
	}
	for range 150 {
		w := h.mustDial(c)
		if _, err := w.connect("pi-1", v5); err != nil {
			continue
		}
		for range 8 {
			data := append([]byte{}, seeds[random.IntN(len(seeds))]...)
			for range random.IntN(4) {
				data[random.IntN(len(data))] = byte(random.Uint32())
			}
			if w.sendRaw(data) != nil {
				break
			}
		}
		w.hangUp()
	}
	good.alive()
	h.online(c).alive()
}

func TestTwoBrokersInOneProcess(t *testing.T) {
	first, second := startHub(t), startHub(t)
	one, two := first.online(first.pki.Service("backend")), second.online(second.pki.Service("backend"))
	one.subscribe(1, 0, "d/+/tele/#")
	two.subscribe(1, 0, "d/+/tele/#")
	first.online(first.device("pi-1")).publish("d/pi-1/tele/x", "first", 0, 0)
	second.online(second.device("pi-1")).publish("d/pi-1/tele/x", "second", 0, 0)
	if pk := expect[*wire.Publish](one); string(pk.Payload) != "first" {
		t.Errorf("got %q", pk.Payload)
	}
	if pk := expect[*wire.Publish](two); string(pk.Payload) != "second" {
		t.Errorf("got %q", pk.Payload)
	}
}

func TestWatch(t *testing.T) {
	h := startHub(t)
	if err := h.Watch(t.Context(), "a#", nil); !errors.Is(err, ErrFilter) {
		t.Errorf("bad filter: %v", err)
	}
	w := h.online(h.device("pi-1"))
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan Message, 16)
	done := make(chan error, 1)
	go func() { done <- h.Watch(ctx, "#", func(m Message) { got <- m }) }()
	if m := <-got; m.Topic != protocol.Presence("pi-1") || !m.Retained {
		t.Errorf("first %+v, want the retained presence", m)
	}
	w.publish("d/pi-1/tele/machine", "x", 1, 1)
	if m := <-got; m.Topic != "d/pi-1/tele/machine" || string(m.Payload) != "x" || m.QoS != 1 || m.Retained || m.Time.IsZero() {
		t.Errorf("second %+v", m)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ended with %v", err)
	}
	go func() { done <- h.Watch(t.Context(), "#", func(Message) {}) }()
	until(t, "the second watch is on", func() bool { return h.Stats().Watchers == 1 })
	must(t, h.Broker.Close())
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("at shutdown: %v", err)
	}
	if err := h.Watch(t.Context(), "#", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after shutdown: %v", err)
	}
}

func TestWatcherThatLagsMissesMessagesAndIsTold(t *testing.T) {
	h := startHub(t, func(c *Config, _ *listener.Config) { c.WatchQueue = 2 })
	w := h.online(h.device("pi-1"))
	holding, release := make(chan struct{}), make(chan struct{})
	got := make(chan Message, 16)
	go h.Watch(t.Context(), "d/#", func(m Message) {
		if string(m.Payload) == "first" {
			close(holding)
			<-release
		}
		got <- m
	})
	until(t, "the watch is on", func() bool { return h.Stats().Watchers == 1 })
	w.publish("d/pi-1/tele/x", "first", 1, 1)
	<-holding
	for i := range 5 {
		w.publish("d/pi-1/tele/x", "more", 1, uint16(i+2))
	}
	for range 6 {
		w.ack(wire.TypePuback)
	}
	close(release)
	<-got
	if m := <-got; m.Missed != 3 {
		t.Errorf("missed %d, want 3", m.Missed)
	}
	if n := h.Stats().WatchDropped; n != 3 {
		t.Errorf("counted %d, want 3", n)
	}
}

func TestCloseTellsClientsAndPublishesNoWills(t *testing.T) {
	h := startHub(t)
	w := h.online(h.device("pi-1"), v5, will("d/pi-1/evt/offline", "x"))
	service := h.online(h.pki.Service("backend"))
	service.subscribe(1, 0, "d/+/evt/#")
	must(t, h.Broker.Close())
	if got := w.closed(); !toldOnly(got, wire.ServerShuttingDown) {
		t.Errorf("got %+v, want DISCONNECT 0x8b", got)
	}
	for _, pk := range service.closed() {
		t.Errorf("%T came", pk)
	}
}

func TestLogsHoldNoPayload(t *testing.T) {
	h := startHub(t)
	w := h.online(h.device("pi-1"), v5, will("d/pi-1/evt/offline", "secret-will"))
	w.publish("d/pi-2/tele/machine", "secret-payload", 1, 1)
	w.ack(wire.TypePuback)
	must(t, w.sendRaw([]byte("\x30\x1b\x00\x0dd/pi-1/tele/+\x00secret-will")))
	w.closed()
	until(t, "the end is logged", func() bool { return strings.Contains(h.log.String(), "disconnected") })
	if strings.Contains(h.log.String(), "secret") {
		t.Errorf("the log has a payload: %s", h.log)
	}
}

// TestForeignClient has a client that we did not write.
func TestForeignClient(t *testing.T) {
	h := startHub(t)
	connect := func(id string, config *paho.ClientOptions) paho.Client {
		config.AddBroker("ssl://" + h.addr).SetClientID(id).SetAutoReconnect(false).SetConnectTimeout(patience)
		client := paho.NewClient(config)
		token := client.Connect()
		if !token.WaitTimeout(patience) || token.Error() != nil {
			t.Fatalf("connect %s: %v", id, token.Error())
		}
		t.Cleanup(func() { client.Disconnect(100) })
		return client
	}
	service := connect("backend:1", paho.NewClientOptions().SetTLSConfig(h.pki.Service("backend").ClientConfig()))
	got := make(chan string, 1)
	token := service.Subscribe("d/+/tele/#", 1, func(_ paho.Client, m paho.Message) { got <- m.Topic() + " " + string(m.Payload()) })
	if !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatalf("subscribe: %v", token.Error())
	}
	device := connect("pi-1", paho.NewClientOptions().SetTLSConfig(h.device("pi-1").ClientConfig()))
	token = device.Publish("d/pi-1/tele/machine", 1, false, "42")
	if !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatalf("publish: %v", token.Error())
	}
	if m := <-got; m != "d/pi-1/tele/machine 42" {
		t.Errorf("got %q", m)
	}
}
