package broker

import (
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/wire"
)

func TestDeviceIsToldWhenItsCertificateShouldHaveBeenRenewed(t *testing.T) {
	h := startHub(t, func(c *Config, _ *listener.Config) { c.ExpirySweep = 20 * time.Millisecond })
	old := h.pki.Device("pi-1", certtest.WithValidity(time.Now().Add(-4*time.Hour), 5*time.Hour))
	young := h.pki.Device("pi-2", certtest.WithValidity(time.Now().Add(-2*time.Hour), 5*time.Hour))
	h.register(old)
	h.register(young)
	quiet := h.online(young)
	quiet.subscribe(1, 0, "d/pi-2/sys/renewal")
	w := h.online(old)
	w.subscribe(1, 0, "d/pi-1/sys/renewal") // before it is told or after: it is retained
	pk := expect[*wire.Publish](w)
	n, err := protocol.ParseRenewalNotice(pk.Payload)
	if err != nil || n.Certificate != identity.Fingerprint(old.Leaf) {
		t.Errorf("told %q, %v", pk.Payload, err)
	}
	w.disconnect()
	w = h.online(old)
	w.subscribe(1, 0, "d/pi-1/sys/renewal")
	if pk := expect[*wire.Publish](w); pk.Topic != "d/pi-1/sys/renewal" {
		t.Errorf("after coming back it is told %+v", pk)
	}
	quiet.alive() // a PINGRESP comes, and no notice before it
}

func TestRenewalIsOverdueAtThreeQuartersOfTheLifetime(t *testing.T) {
	t.Parallel()
	pki := certtest.New(t)
	leaf := pki.Device("pi-1", certtest.WithValidity(time.Now(), 100*time.Hour)).Leaf
	whole := leaf.NotAfter.Sub(leaf.NotBefore)
	for part, want := range map[float64]bool{0: false, 0.5: false, 0.74: false, 0.76: true, 1.1: true} {
		if got := overdue(leaf, leaf.NotBefore.Add(time.Duration(float64(whole)*part))); got != want {
			t.Errorf("at %v of the lifetime: %v", part, got)
		}
	}
	if overdue(nil, time.Now()) {
		t.Error("a peer without a certificate is overdue")
	}
}
