package broker

import (
	"crypto/tls"
	"fmt"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/wire"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/registry"
)

// TestRefusedInTheHandshake has every peer that never gets as far as MQTT.
func TestRefusedInTheHandshake(t *testing.T) {
	tests := []struct {
		name string
		peer func(h *testHub) certtest.Credential
		want mtls.Reason
	}{
		{"unknown device", func(h *testHub) certtest.Credential { return h.pki.Device("stranger") }, admission.ReasonUnknownDevice},
		{"suspended device", func(h *testHub) certtest.Credential {
			c := h.device("pi-2")
			h.devices.set("pi-2", func(s *registry.Status) { s.State = registry.StateSuspended })
			return c
		}, admission.ReasonSuspended},
		{"revoked device", func(h *testHub) certtest.Credential {
			c := h.device("pi-2")
			h.devices.set("pi-2", func(s *registry.Status) { s.State = registry.StateRevoked })
			return c
		}, admission.ReasonRevoked},
		{"another certificate of a known device", func(h *testHub) certtest.Credential {
			h.device("pi-2")
			return h.pki.Device("pi-2")
		}, admission.ReasonUnknownCertificate},
		{"expired certificate", func(h *testHub) certtest.Credential {
			c := h.pki.Device("pi-2", certtest.WithValidity(time.Now().Add(-48*time.Hour), 24*time.Hour))
			h.register(c)
			return c
		}, mtls.ReasonExpired},
		{"certificate of the future", func(h *testHub) certtest.Credential {
			c := h.pki.Device("pi-2", certtest.WithValidity(time.Now().Add(24*time.Hour), 24*time.Hour))
			h.register(c)
			return c
		}, mtls.ReasonNotYetValid},
		{"another fleet's certificate of the same name", func(h *testHub) certtest.Credential {
			h.device("pi-2")
			c := h.pki.Foreign().Device("pi-2")
			c.Roots = h.device("pi-3").Roots
			return c
		}, mtls.ReasonUnknownIssuer},
		{"operator", func(h *testHub) certtest.Credential { return h.pki.Operator("alice") }, mtls.ReasonRole},
		{"server certificate", func(h *testHub) certtest.Credential { return h.pki.Server() }, mtls.ReasonUsage},
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, tt := range tests {
			t.Run(tls.VersionName(version)+"/"+tt.name, func(t *testing.T) {
				h := startHub(t)
				rightful := h.online(h.device("pi-1"))
				config := tt.peer(h).ClientConfig()
				config.MaxVersion = version
				w, err := h.dial(config)
				if err == nil {
					_, err = w.connect("pi-2")
				}
				if err == nil {
					t.Fatal("the hub answered the CONNECT")
				}
				h.refusedFor(tt.want)
				rightful.alive()
			})
		}
	}
}

func TestClientWithoutCertificateIsRefused(t *testing.T) {
	h := startHub(t)
	config := h.device("pi-1").ClientConfig()
	config.Certificates = nil
	if w, err := h.dial(config); err == nil {
		if _, err := w.connect("pi-1"); err == nil {
			t.Fatal("the hub answered the CONNECT")
		}
	}
	h.refusedFor(mtls.ReasonNoCertificate)
}

// TestRefusedAtConnect has what a good certificate may still not do, with the
// answer in both versions of the protocol, and proves that the session of
// whoever owns the name is not touched.
func TestRefusedAtConnect(t *testing.T) {
	tests := []struct {
		name     string
		service  bool
		clientID string
		options  []option
		want     mtls.Reason
		code     byte // of version 5; package wire maps it for 3.1.1, and back
	}{
		{"another device's client identifier", false, "pi-1", nil, admission.ReasonClientIdentifier, 0x85},
		{"service under a device's client identifier", true, "pi-1", nil, admission.ReasonClientIdentifier, 0x85},
		{"empty client identifier", false, "", nil, admission.ReasonClientIdentifier, 0x85},
		{"will on another's topic", false, "pi-2", []option{will("d/pi-1/evt/offline", "x")}, admission.ReasonWill, 0x87},
		{"will on a command", false, "pi-2", []option{will("d/pi-2/cmd/reboot/1", "x")}, admission.ReasonWill, 0x87},
	}
	for _, tt := range tests {
		for _, version := range []byte{wire.V311, wire.V5} {
			t.Run(fmt.Sprintf("%s/version %d", tt.name, version), func(t *testing.T) {
				h := startHub(t)
				rightful := h.online(h.device("pi-1"))
				intruder := h.device("pi-2")
				if tt.service {
					intruder = h.pki.Service("backend")
				}
				options := append([]option{func(pk *wire.Connect) { pk.Version = version }}, tt.options...)
				w := h.mustDial(intruder)
				ack, err := w.connect(tt.clientID, options...)
				must(t, err)
				if byte(ack.Code) != tt.code {
					t.Errorf("code %#x, want %#x", ack.Code, tt.code)
				}
				if version == 5 && ack.Reason == "" {
					t.Error("the CONNACK gives no reason string")
				}
				w.closed()
				h.refusedFor(tt.want)
				rightful.alive()
				if _, live := h.Live("pi-1"); !live {
					t.Error("the rightful owner is not connected any more")
				}
			})
		}
	}
}

// TestServiceMayBearTheNameOfADevice: roles are separate name spaces, and so
// are their sessions.
func TestServiceMayBearTheNameOfADevice(t *testing.T) {
	h := startHub(t)
	device := h.online(h.device("pi-1"), persistent)
	device.subscribe(1, 1, "d/pi-1/cmd/#")
	service := h.mustDial(h.pki.Service("pi-1"))
	if ack := service.mustConnect("pi-1", persistent); ack.SessionPresent {
		t.Error("the service inherited the device's session")
	}
	device.alive()
	service.publish("d/pi-1/cmd/reboot/1", "now", 1, 1)
	if pk := expect[*wire.Publish](device); string(pk.Payload) != "now" {
		t.Errorf("payload %q", pk.Payload)
	}
	service.ack(wire.TypePuback)
}

func TestServiceMayHaveSeveralSessions(t *testing.T) {
	h := startHub(t)
	c := h.pki.Service("backend")
	first, second := h.mustDial(c), h.mustDial(c)
	first.mustConnect("backend:1")
	second.mustConnect("backend:2")
	first.alive()
	second.alive()
	if n := h.Stats().Services; n != 2 {
		t.Errorf("%d services connected, want 2", n)
	}
}

func TestRevokedDeviceCannotResumeTLSSession(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, state := range []registry.State{registry.StateRevoked, registry.StateSuspended} {
			t.Run(tls.VersionName(version)+"/"+string(state), func(t *testing.T) {
				h := startHub(t)
				c := h.device("pi-1")
				config := c.ClientConfig()
				config.MaxVersion = version
				config.ClientSessionCache = tls.NewLRUClientSessionCache(4)

				for i := range 2 { // the second proves that a ticket resumes at all
					w, err := h.dial(config)
					must(t, err)
					w.mustConnect("pi-1")
					w.alive() // has read the ticket of TLS 1.3
					if resumed := w.conn.ConnectionState().DidResume; resumed != (i == 1) {
						t.Fatalf("connection %d resumed: %v", i, resumed)
					}
					w.disconnect()
				}
				h.cutOff("pi-1", state)
				w, err := h.dial(config)
				if err == nil {
					_, err = w.connect("pi-1")
				}
				if err == nil {
					t.Fatal("the hub answered the CONNECT")
				}
				h.refusedFor(mtls.Reason(state))
			})
		}
	}
}

func TestDeviceRevokedBetweenHandshakeAndConnect(t *testing.T) {
	h := startHub(t)
	w := h.mustDial(h.device("pi-1"))
	until(t, "the connection is tracked", func() bool { _, live := h.Live("pi-1"); return live })
	// Marked, but not disconnected: the CONNECT has to see it by itself.
	h.devices.set("pi-1", func(s *registry.Status) { s.State = registry.StateRevoked })
	ack, err := w.connect("pi-1", v5)
	must(t, err)
	if ack.Code != wire.Banned {
		t.Errorf("code %#x, want %#x", ack.Code, wire.Banned)
	}
	w.closed()
	h.refusedFor(admission.ReasonRevoked)
}

func TestUnsupportedProtocolVersion(t *testing.T) {
	tests := []struct {
		name  string
		level byte
		proto string
		code  byte
	}{
		{"MQTT 3.1", 3, "MQIsdp", 0x84},
		{"level 9", 9, "MQTT", 0x84},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := startHub(t)
			w := h.mustDial(h.device("pi-1"))
			ack, err := w.connect("pi-1", func(pk *wire.Connect) {
				pk.Version, pk.ProtocolName = tt.level, tt.proto
			})
			must(t, err)
			if byte(ack.Code) != tt.code {
				t.Errorf("code %#x, want %#x", ack.Code, tt.code)
			}
			w.closed()
			h.refusedFor(ReasonVersion)
		})
	}
}

func TestSecondConnectionOfADeviceTakesOver(t *testing.T) {
	h := startHub(t)
	service := h.online(h.pki.Service("backend"))
	c := h.device("pi-1")
	first := h.online(c, v5)
	service.subscribe(1, 1, "presence/#", "d/+/evt/#")
	service.presence("pi-1")
	second := h.online(c, v5)
	got := first.closed()
	if !toldOnly(got, wire.SessionTakenOver) {
		t.Errorf("the first connection got %+v, want DISCONNECT 0x8e", got)
	}
	second.alive()
	if s := service.presence("pi-1"); s.Online || s.Reason != protocol.ReasonTakenOver {
		t.Errorf("presence %+v, want taken-over first", s)
	}
	if s := service.presence("pi-1"); !s.Online {
		t.Errorf("presence %+v, want online last", s)
	}
}

// TestOneLiveConnectionWhateverRaces: mochi alone leaves up to three.
func TestOneLiveConnectionWhateverRaces(t *testing.T) {
	h := startHub(t)
	c := h.device("pi-1")
	const n = 40
	live := make(chan *peer, n)
	for range n {
		go func() {
			w, err := h.dial(c.ClientConfig())
			if err != nil {
				live <- nil
				return
			}
			if ack, err := w.connect("pi-1", persistent); err != nil || ack.Code != 0 {
				live <- nil
				return
			}
			live <- w
		}()
	}
	answering := 0
	var all []*peer
	for range n {
		if w := <-live; w != nil {
			all = append(all, w)
		}
	}
	for _, w := range all {
		if w.send(&wire.Ping{Kind: wire.TypePingreq}) != nil {
			continue
		}
		if pk, err := w.read(); err == nil && pk.Type() == wire.TypePingresp {
			answering++
		}
	}
	if answering != 1 {
		t.Errorf("%d connections of one identifier answer, want 1 (of %d accepted)", answering, len(all))
	}
	until(t, "one tracked connection", func() bool { return h.Stats().Devices == 1 })
	if n := h.Stats().Sessions; n != 1 {
		t.Errorf("%d sessions, want 1", n)
	}
}

func TestRevokeCutsAndIsSilent(t *testing.T) {
	for _, state := range []registry.State{registry.StateRevoked, registry.StateSuspended} {
		t.Run(string(state), func(t *testing.T) {
			h := startHub(t)
			service := h.online(h.pki.Service("backend"))
			c := h.device("pi-1")
			device := h.online(c, v5, sessionExpiry(3600), will("d/pi-1/evt/offline", "last words"))
			device.subscribe(1, 1, "d/pi-1/cmd/#")
			service.subscribe(1, 1, "presence/#", "d/+/evt/#")
			service.presence("pi-1")

			closed, last := h.cutOff("pi-1", state)
			if closed != 1 || last.IsZero() {
				t.Errorf("closed %d, last %v; want 1 and a time", closed, last)
			}
			got := device.closed()
			if !toldOnly(got, wire.AdministrativeAction) {
				t.Errorf("the device got %+v, want DISCONNECT 0x98", got)
			}
			// The next message a service gets is the presence, not the will.
			pk := expect[*wire.Publish](service)
			if pk.Topic != protocol.Presence("pi-1") {
				t.Errorf("%s was published", pk.Topic)
			}
			stored := h.sessions.find(sessionKey(identity.RoleDevice, "pi-1")) != nil
			if want := state == registry.StateSuspended; stored != want {
				t.Errorf("the session is stored: %v, want %v", stored, want)
			}
		})
	}
}

func TestRevokeCancelsADelayedWill(t *testing.T) {
	h := startHub(t)
	c := h.device("pi-1")
	device := h.online(c, v5, sessionExpiry(3600), will("d/pi-1/evt/offline", "x"), func(pk *wire.Connect) { pk.Will.Delay = 1 })
	device.hangUp()
	until(t, "the device is gone", func() bool { _, live := h.Live("pi-1"); return !live })
	service := h.online(h.pki.Service("backend"))
	service.subscribe(1, 1, "d/+/evt/#")
	h.cutOff("pi-1", registry.StateRevoked)
	// A second device's delayed will, set later, marks the time by which the
	// first would have come.
	other := h.online(h.device("pi-2"), v5, sessionExpiry(3600), will("d/pi-2/evt/offline", "y"), func(pk *wire.Connect) { pk.Will.Delay = 1 })
	other.hangUp()
	if pk := expect[*wire.Publish](service); pk.Topic != "d/pi-2/evt/offline" {
		t.Errorf("%s was published", pk.Topic)
	}
}

func TestPresence(t *testing.T) {
	h := startHub(t)
	service := h.online(h.pki.Service("backend"))
	service.subscribe(1, 1, "presence/#")
	c := h.device("pi-1")

	w := h.online(c)
	if s := service.presence("pi-1"); !s.Online || s.Reason != protocol.ReasonConnected || s.Address == "" || s.Since.IsZero() {
		t.Errorf("connected: %+v", s)
	}
	w.disconnect()
	if s := service.presence("pi-1"); s.Online || s.Reason != protocol.ReasonDisconnected {
		t.Errorf("DISCONNECT: %+v", s)
	}
	w = h.online(c)
	service.presence("pi-1")
	w.hangUp()
	if s := service.presence("pi-1"); s.Online || s.Reason != protocol.ReasonLost {
		t.Errorf("hung up: %+v", s)
	}
	w = h.online(c, keepAlive(1))
	service.presence("pi-1")
	if s := service.presence("pi-1"); s.Online || s.Reason != protocol.ReasonKeepAlive {
		t.Errorf("silent: %+v", s)
	}
	w.closed()
	w = h.online(c)
	service.presence("pi-1")
	must(t, w.sendRaw([]byte{0xF0, 0x00}))
	if s := service.presence("pi-1"); s.Online || s.Reason != protocol.ReasonProtocol {
		t.Errorf("protocol error: %+v", s)
	}

	// It is retained: a service that comes later knows.
	late := h.online(h.pki.Service("late"))
	late.subscribe(1, 1, "presence/pi-1")
	if s := late.presence("pi-1"); s.Online {
		t.Errorf("retained: %+v", s)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.seen) != 8 || h.seen[0] != "pi-1" {
		t.Errorf("seen: %q", h.seen)
	}
}

// TestKeepAliveAbove12Hours: mochi computes one and a half times the keep-alive
// in 16 bits and closes after a second.
func TestKeepAliveAbove12Hours(t *testing.T) {
	h := startHub(t)
	w := h.online(h.device("pi-1"), keepAlive(43691))
	until(t, "a second has passed", func() bool { l, _ := h.Live("pi-1"); return time.Since(l.Since) > 1200*time.Millisecond })
	w.alive()
}

func TestSessionExpiryIsBoundedAndTold(t *testing.T) {
	h := startHub(t)
	w := h.mustDial(h.device("pi-1"))
	ack := w.mustConnect("pi-1", v5, sessionExpiry(0xffffffff))
	if want := uint32((7 * 24 * time.Hour).Seconds()); ack.SessionExpiry == nil || *ack.SessionExpiry != want {
		t.Errorf("CONNACK says %v, want %d", ack.SessionExpiry, want)
	}
	if ack.MaximumPacketSize != 256<<10 || ack.TopicAliasMaximum != topicAliases || ack.ReceiveMaximum != 1024 {
		t.Errorf("maximum packet size %d, topic alias maximum %d, receive maximum %d", ack.MaximumPacketSize, ack.TopicAliasMaximum, ack.ReceiveMaximum)
	}
}
