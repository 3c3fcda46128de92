package broker

import (
	"fmt"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/wire"
)

// delay is a will's.
func delay(seconds uint32) option { return func(pk *wire.Connect) { pk.Will.Delay = seconds } }

// TestEverythingOfASessionSurvivesACrash, with and without a checkpoint before it.
func TestEverythingOfASessionSurvivesACrash(t *testing.T) {
	for _, checkpoint := range []bool{false, true} {
		t.Run(fmt.Sprintf("checkpoint %v", checkpoint), func(t *testing.T) {
			h := startHub(t)
			c := h.device("pi-1")
			device := h.online(c, persistent)
			device.subscribe(1, 2, "d/pi-1/cmd/#", "d/pi-1/twin/desired")
			service := h.online(h.pki.Service("backend"))
			send := func(n int) {
				service.publish("d/pi-1/cmd/step/1", fmt.Sprint(n), 2, uint16(n))
				service.ack(wire.TypePubrec)
				must(t, service.send(&wire.Ack{Kind: wire.TypePubrel, ID: uint16(n)}))
				service.ack(wire.TypePubcomp)
			}
			// One is complete, of one the device has sent PUBREC, one it has got, two wait.
			send(1)
			first := *expect[*wire.Publish](device)
			must(t, device.send(&wire.Ack{Kind: wire.TypePubrec, ID: first.ID}))
			device.ack(wire.TypePubrel)
			must(t, device.send(&wire.Ack{Kind: wire.TypePubcomp, ID: first.ID}))
			send(2)
			second := *expect[*wire.Publish](device)
			must(t, device.send(&wire.Ack{Kind: wire.TypePubrec, ID: second.ID}))
			device.ack(wire.TypePubrel)
			send(3)
			third := *expect[*wire.Publish](device)
			device.publish("d/pi-1/tele/x", "once", 2, 77)
			device.ack(wire.TypePubrec)
			device.hangUp()
			until(t, "the device is gone", func() bool { _, live := h.Live("pi-1"); return !live })
			send(4)
			must(t, service.send(&wire.Publish{Topic: "d/pi-1/twin/desired", Payload: []byte("{}"), QoS: 1, ID: 5, Retain: true}))
			service.ack(wire.TypePuback)
			if checkpoint {
				must(t, h.checkpoint())
			}

			after := h.afterCrash()
			reader := after.online(after.pki.Service("reader"))
			reader.subscribe(1, 0, "d/+/tele/#")
			device = after.mustDial(c)
			if ack := device.mustConnect("pi-1", persistent); !ack.SessionPresent {
				t.Fatal("no session")
			}
			if pk := device.ack(wire.TypePubrel); pk.ID != second.ID {
				t.Errorf("PUBREL %d, want %d", pk.ID, second.ID)
			}
			if pk := expect[*wire.Publish](device); pk.ID != third.ID || !pk.Dup || string(pk.Payload) != "3" {
				t.Errorf("got %q under %d, DUP %v; want 3 under %d again", pk.Payload, pk.ID, pk.Dup, third.ID)
			}
			for _, want := range []string{"4", "{}"} {
				if pk := expect[*wire.Publish](device); string(pk.Payload) != want {
					t.Errorf("got %q, want %q", pk.Payload, want)
				}
			}
			// The identifier of the message that was accepted is still taken.
			device.publish("d/pi-1/tele/x", "once", 2, 77)
			device.ack(wire.TypePubrec)
			must(t, device.send(&wire.Ack{Kind: wire.TypePubrel, ID: 77}))
			device.ack(wire.TypePubcomp)
			device.publish("d/pi-1/tele/x", "next", 1, 78)
			device.ack(wire.TypePuback)
			if pk := expect[*wire.Publish](reader); string(pk.Payload) != "next" {
				t.Errorf("%q was routed: a repetition", pk.Payload)
			}
			late := after.online(after.device("pi-2"))
			late.alive()
			if m, ok := after.retained.Get("d/pi-1/twin/desired"); !ok || string(m.Payload) != "{}" {
				t.Error("what was retained is gone")
			}
		})
	}
}

// TestWillsSurviveACrash: who was connected has lost its connection with the hub, and a
// delay begins then. Who said goodbye leaves none; whose delay was running goes on.
func TestWillsSurviveACrash(t *testing.T) {
	h := startHub(t)
	listening := h.online(h.pki.Service("backend"), persistent)
	listening.subscribe(1, 1, "d/+/evt/#")
	h.online(h.device("pi-1"), will("d/pi-1/evt/offline", "at once")) // a clean session's, too
	h.online(h.device("pi-2"), v5, sessionExpiry(3600), will("d/pi-2/evt/offline", "delayed"), delay(1))
	h.online(h.device("pi-3"), will("d/pi-3/evt/offline", "never")).disconnect()
	h.online(h.device("pi-4"), v5, sessionExpiry(3600), will("d/pi-4/evt/offline", "much later"), delay(3600)).hangUp()
	h.online(h.device("pi-5"), v5, sessionExpiry(3600), will("d/pi-5/evt/offline", "it came back"), delay(2))
	h.online(h.device("pi-6"), will("d/pi-6/evt/offline", "revoked meanwhile"))
	until(t, "pi-4 is gone", func() bool { _, live := h.Live("pi-4"); return !live })

	h.devices.set("pi-6", func(s *registry.Status) { s.State = registry.StateRevoked })
	after := h.afterCrash()
	back := after.mustDial(after.device("pi-5"))
	if ack := back.mustConnect("pi-5", v5, persistent, sessionExpiry(3600)); !ack.SessionPresent {
		t.Error("pi-5 has no session")
	}
	service := after.mustDial(after.pki.Service("backend"))
	service.mustConnect("backend", persistent)
	for _, want := range []string{"at once", "delayed"} {
		pk := expect[*wire.Publish](service)
		if string(pk.Payload) != want {
			t.Errorf("got %q, want %q", pk.Payload, want)
		}
		must(t, service.send(&wire.Ack{Kind: wire.TypePuback, ID: pk.ID}))
	}
	// A will of a second, left now, comes after all that would still come.
	after.online(after.device("pi-7"), v5, sessionExpiry(3600), will("d/pi-7/evt/offline", "last"), delay(2)).hangUp()
	if pk := expect[*wire.Publish](service); string(pk.Payload) != "last" {
		t.Errorf("%q was published", pk.Payload)
	}
}

// TestStoredWillIsJudgedByTheCertificateOfWhoLeftIt: the rules are about organizational
// units and names, which nobody shows after a restart.
func TestStoredWillIsJudgedByTheCertificateOfWhoLeftIt(t *testing.T) {
	for _, checkpoint := range []bool{false, true} {
		t.Run(fmt.Sprintf("checkpoint %v", checkpoint), func(t *testing.T) {
			rules := func(c *Config, _ *listener.Config) {
				c.Allow = withRules(t, `
  - {rule: pumps-only, role: device, deny: publish, unless: {ou: pump, san: 'uri:spiffe://*'}, topics: 'd/${id}/evt/#'}
  - {rule: ops-only, role: service, deny: publish, unless: {ou: ops}, topics: 'd/+/cmd/#'}
`).Allow
			}
			h := startHub(t, rules)
			device := func(id, ou string) certtest.Credential {
				c := h.pki.Device(id, certtest.WithOU(ou))
				h.register(c)
				return c
			}
			h.online(device("pi-1", "pump"), will("d/pi-1/evt/offline", "of a pump"))
			h.online(device("pi-2", "pump"), v5, sessionExpiry(3600), will("d/pi-2/evt/offline", "of a pump, delayed"), delay(1))
			h.online(h.pki.Service("backend", certtest.WithOU("ops")), will("d/pi-9/cmd/stop/1", "of operations"))
			// Its rules change while the hub is away: what was a pump's may be a lamp's only.
			h.online(device("pi-3", "pump"), will("d/pi-3/tele/x", "of a pump"))
			reader := h.online(h.pki.Service("reader"), persistent)
			reader.subscribe(1, 1, "d/+/evt/#", "d/+/tele/#")
			lamp := device("pi-9", "lamp")
			listening := h.online(lamp, persistent)
			listening.subscribe(1, 1, "d/pi-9/cmd/#")
			if checkpoint {
				must(t, h.checkpoint())
			}

			after := h.afterCrash(func(c *Config, _ *listener.Config) {
				c.Allow = withRules(t, `
  - {rule: pumps-only, role: device, deny: publish, unless: {ou: pump, san: 'uri:spiffe://*'}, topics: 'd/${id}/evt/#'}
  - {rule: ops-only, role: service, deny: publish, unless: {ou: ops}, topics: 'd/+/cmd/#'}
  - {rule: lamps-only, role: device, deny: publish, when: {ou: pump}, topics: 'd/${id}/tele/#'}
`).Allow
			})
			reader = after.online(h.pki.Service("reader"), persistent)
			for _, want := range []string{"of a pump", "of a pump, delayed"} {
				pk := expect[*wire.Publish](reader)
				if string(pk.Payload) != want || pk.Topic == "d/pi-3/tele/x" {
					t.Errorf("got %q on %s, want %q", pk.Payload, pk.Topic, want)
				}
				must(t, reader.send(&wire.Ack{Kind: wire.TypePuback, ID: pk.ID}))
			}
			listening = after.online(lamp, persistent)
			if pk := expect[*wire.Publish](listening); string(pk.Payload) != "of operations" {
				t.Errorf("got %q", pk.Payload)
			}
		})
	}
}

// TestRevokedDevicesSessionIsNotRestored: the crash came between the revocation and the
// end of the session.
func TestRevokedDevicesSessionIsNotRestored(t *testing.T) {
	h := startHub(t)
	h.online(h.device("pi-1"), persistent).subscribe(1, 1, "d/pi-1/cmd/#")
	h.online(h.device("pi-2"), persistent).subscribe(1, 1, "d/pi-2/cmd/#")
	h.devices.set("pi-1", func(s *registry.Status) { s.State = registry.StateRevoked })
	h.devices.set("pi-2", func(s *registry.Status) { s.State = registry.StateSuspended })
	after := h.afterCrash()
	if n := after.Stats().Sessions; n != 1 || after.sessions.find(sessionKey(identity.RoleDevice, "pi-2")) == nil {
		t.Errorf("%d sessions, want that of the suspended device", n)
	}
}

// TestClockThatJumpsOverARestart: an hour or a year, either way. A clock that was set back
// prolongs no session; one set forward ends those whose time is over by it, and no others.
func TestClockThatJumpsOverARestart(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for _, tt := range []struct {
		jump, expiry time.Duration
		remains      bool
	}{
		{-time.Hour, 30 * time.Minute, true}, {-year, 30 * time.Minute, true},
		{time.Hour, 30 * time.Minute, false}, {time.Hour, 3 * time.Hour, true}, {year, 7 * 24 * time.Hour, false},
	} {
		t.Run(fmt.Sprintf("%v, %v", tt.jump, tt.expiry), func(t *testing.T) {
			h := startHub(t)
			h.online(h.device("pi-1"), v5, sessionExpiry(uint32(tt.expiry/time.Second))).hangUp()
			until(t, "the device is gone", func() bool { _, live := h.Live("pi-1"); return !live })
			after := h.afterCrash(func(c *Config, _ *listener.Config) {
				c.Now = func() time.Time { return time.Now().Add(tt.jump) }
			})
			key := sessionKey(identity.RoleDevice, "pi-1")
			if !tt.remains {
				until(t, "the session has ended", func() bool { return after.sessions.find(key) == nil })
				return
			}
			s := after.sessions.find(key)
			if s == nil {
				t.Fatal("the session is gone")
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if left := s.left.Add(s.expiry).Sub(after.config.Now()); left > tt.expiry || left <= 0 {
				t.Errorf("it lives for another %v, of %v", left, tt.expiry)
			}
		})
	}
}

// TestSessionTimeIsMonotonic: a clock that is set while the hub runs moves no deadline.
// Go's times have a monotonic reading unless somebody strips it; then they would not
// differ from their own wall time.
func TestSessionTimeIsMonotonic(t *testing.T) {
	h := startHub(t)
	h.online(h.device("pi-1"), v5, sessionExpiry(3600), will("d/pi-1/evt/offline", "x"), delay(60)).hangUp()
	until(t, "the device is gone", func() bool { _, live := h.Live("pi-1"); return !live })
	s := h.sessions.find(sessionKey(identity.RoleDevice, "pi-1"))
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, at := range map[string]time.Time{"the end of the connection": s.left, "the will": s.willDue, "the deadline": s.alarm.at} {
		if at == at.Round(0) { // Round strips the monotonic reading
			t.Errorf("%s is kept in wall time", name)
		}
	}
	expiry := uint32(60)
	if m := h.newMessage(&wire.Publish{Topic: "t", Expiry: &expiry}, ingest.Sender{}, nil); m.deadline == m.deadline.Round(0) {
		t.Error("a message's expiry is kept in wall time")
	}
}
