package broker

import (
	"fmt"
	"testing"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/wire"
)

// TestNothingOfARevokedDeviceIsDelivered: not the will that waits for its delay, nor what
// is retained below its topics, nor what was queued for it, though it comes back with
// another certificate. However it was when it was cut off, and also over a crash.
func TestNothingOfARevokedDeviceIsDelivered(t *testing.T) {
	for _, connected := range []bool{true, false} {
		for _, crash := range []string{"none", "after", "between the mark and the end"} {
			t.Run(fmt.Sprintf("connected %v, crash %s", connected, crash), func(t *testing.T) {
				h := startHub(t)
				service := h.online(h.pki.Service("backend"))
				device := h.online(h.device("pi-1"), v5, sessionExpiry(3600), will("d/pi-1/evt/offline", "its will"), delay(1))
				device.subscribe(1, 1, "d/pi-1/cmd/#")
				must(t, device.send(&wire.Publish{Topic: "d/pi-1/twin/reported", Payload: []byte("{}"), QoS: 1, ID: 1, Retain: true}))
				device.ack(wire.TypePuback)
				if !connected {
					device.hangUp()
					h.gone("pi-1")
				}
				service.publish("d/pi-1/cmd/open/1", "queued", 1, 1)
				service.ack(wire.TypePuback)
				must(t, service.send(&wire.Publish{Topic: "d/pi-1/twin/desired", Payload: []byte("{}"), QoS: 1, ID: 2, Retain: true}))
				service.ack(wire.TypePuback)

				if crash == "between the mark and the end" {
					h.devices.set("pi-1", func(s *registry.Status) { s.State, s.Fingerprints = registry.StateRevoked, nil })
				} else {
					h.cutOff("pi-1", registry.StateRevoked)
				}
				if crash != "none" {
					h = h.afterCrash()
				}
				reader := h.online(h.pki.Service("reader"))
				reader.subscribe(1, 1, "d/+/evt/#", "d/+/twin/reported")
				again := h.mustDial(h.device("pi-1")) // reinstated, with a new certificate
				if ack := again.mustConnect("pi-1", v5, persistent, sessionExpiry(3600)); ack.SessionPresent {
					t.Error("its session is still there")
				}
				again.subscribe(1, 1, "d/pi-1/cmd/#", "d/pi-1/twin/desired")
				again.publish("d/pi-1/evt/hello", "anew", 1, 1)
				again.ack(wire.TypePuback)
				// The will of another, which waits longer, comes after all that would still come.
				h.online(h.device("pi-2"), v5, sessionExpiry(3600), will("d/pi-2/evt/offline", "another's will"), delay(2)).hangUp()
				for _, want := range []string{"anew", "another's will"} {
					pk := expect[*wire.Publish](reader)
					if string(pk.Payload) != want {
						t.Errorf("%q was delivered on %s, want %q", pk.Payload, pk.Topic, want)
					}
					must(t, reader.send(&wire.Ack{Kind: wire.TypePuback, ID: pk.ID}))
				}
				again.alive() // which fails on any packet but the answer
				if s := h.sessions.find(sessionKey(identity.RoleDevice, "pi-1")); s == nil {
					t.Error("its new session is gone")
				}
			})
		}
	}
}
