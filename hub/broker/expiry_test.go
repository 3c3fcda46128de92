package broker

import (
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/wire"
)

// A device that reconnects all day, with a session that is kept for a week, is looked at
// once, not once for every time that it went.
func TestReconnectingLeavesOneDeadline(t *testing.T) {
	h := startHub(t)
	c := h.device("pi-1")
	for range 20 {
		h.online(c, persistent).disconnect()
		until(t, "the device is gone", func() bool { return h.Stats().Devices == 0 })
	}
	if n := h.deadlines.len(); n != 1 {
		t.Errorf("%d deadlines for one session", n)
	}
}

// A will that waits is looked at first, and the session's end is not forgotten over it.
func TestSessionEndsAfterItsWillWasPublished(t *testing.T) {
	h := startHub(t)
	service := h.online(h.pki.Service("backend"))
	service.subscribe(1, 0, "d/+/evt/#")
	delayed := func(pk *wire.Connect) { pk.Will.Delay = 1 }
	h.online(h.device("pi-1"), v5, sessionExpiry(2), will("d/pi-1/evt/offline", "gone"), delayed).hangUp()
	if pk := expect[*wire.Publish](service); string(pk.Payload) != "gone" {
		t.Errorf("got %q", pk.Payload)
	}
	if h.sessions.find(sessionKey(identity.RoleDevice, "pi-1")) == nil {
		t.Error("the session ended with its will")
	}
	until(t, "the session ends", func() bool { return h.sessions.find(sessionKey(identity.RoleDevice, "pi-1")) == nil })
}

func TestConnectionEndsWithItsCertificate(t *testing.T) {
	h := startHub(t, func(c *Config, _ *listener.Config) { c.ExpirySweep = 50 * time.Millisecond })
	stays := h.online(h.device("pi-2"))
	short := h.pki.Device("pi-1", certtest.WithValidity(time.Now().Add(-time.Hour), time.Hour+3*time.Second))
	h.register(short)
	w := h.online(short, v5)
	w.alive()
	if got := w.closed(); !toldOnly(got, wire.AdministrativeAction) {
		t.Errorf("got %+v, want DISCONNECT 0x98", got)
	}
	if time.Now().Before(short.Leaf.NotAfter) {
		t.Error("cut before its time")
	}
	stays.alive()
}
