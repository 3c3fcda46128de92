package broker

import (
	"crypto/tls"
	"testing"

	"github.com/fleethub/fleethub/hub/wire"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/protocol"
)

func ofFactory(p mtls.Peer) bool { return p.Issuer.Subject.CommonName == certtest.StationName }

func TestDisconnectPeersCutsThoseAndNobodyElse(t *testing.T) {
	h := startHub(t)
	service := h.online(h.pki.Service("backend"))
	first := h.online(h.device("pi-1"), v5, sessionExpiry(3600), will("d/pi-1/evt/offline", "last words"))
	renewed := h.pki.Device("pi-2", certtest.WithIssuer(h.pki.Operational))
	h.register(renewed)
	stays := h.online(renewed, v5)
	service.subscribe(1, 1, "d/+/evt/#")
	for i, id := range []string{"pi-1", "pi-2"} { // one by one: retained messages come in any order
		service.subscribe(uint16(2+i), 1, protocol.Presence(id))
		service.presence(id)
	}

	if peers := h.Peers(ofFactory); len(peers) != 1 || peers[0].Peer.Identity.ID != "pi-1" {
		t.Errorf("peers %+v, want pi-1 alone", peers)
	}
	closed, last := h.DisconnectPeers(t.Context(), ofFactory, protocol.ReasonUntrusted)
	if closed != 1 || last.IsZero() {
		t.Errorf("closed %d, last %v; want 1 and a time", closed, last)
	}
	if got := first.closed(); !toldOnly(got, wire.AdministrativeAction) {
		t.Errorf("the device got %+v, want DISCONNECT 0x98", got)
	}
	// The next message is the presence, not the will.
	if pk := expect[*wire.Publish](service); pk.Topic != protocol.Presence("pi-1") {
		t.Errorf("%s was published", pk.Topic)
	}
	stays.subscribe(1, 1, "d/pi-2/cmd/#") // still served
}

func TestDisconnectPeersCancelsADelayedWill(t *testing.T) {
	h := startHub(t)
	delayed := func(pk *wire.Connect) { pk.Will.Delay = 1 }
	h.online(h.device("pi-1"), v5, sessionExpiry(3600), will("d/pi-1/evt/offline", "x"), delayed).hangUp()
	until(t, "the device is gone", func() bool { _, live := h.Live("pi-1"); return !live })
	service := h.online(h.pki.Service("backend"))
	service.subscribe(1, 1, "d/+/evt/#")
	h.DisconnectPeers(t.Context(), ofFactory, protocol.ReasonUntrusted)
	// A second device's delayed will, set later, marks the time by which the first
	// would have come.
	h.online(h.device("pi-2"), v5, sessionExpiry(3600), will("d/pi-2/evt/offline", "y"), delayed).hangUp()
	if pk := expect[*wire.Publish](service); pk.Topic != "d/pi-2/evt/offline" {
		t.Errorf("%s was published", pk.Topic)
	}
}

func TestIssuerRemovedBetweenHandshakeAndConnect(t *testing.T) {
	h := startHub(t)
	w := h.mustDial(h.device("pi-1"))
	until(t, "the connection is tracked", func() bool { _, live := h.Live("pi-1"); return live })
	// Removed, but not disconnected: the CONNECT has to see it by itself.
	h.devices.mu.Lock()
	h.devices.removed = h.pki.Factory.Certificate()
	h.devices.mu.Unlock()
	ack, err := w.connect("pi-1", v5)
	must(t, err)
	if ack.Code != wire.NotAuthorized {
		t.Errorf("code %#x, want %#x", ack.Code, wire.NotAuthorized)
	}
	w.closed()
	h.refusedFor(mtls.ReasonUnknownIssuer)
}

func TestLiveConnectionTellsItsTLSParameters(t *testing.T) {
	h := startHub(t)
	h.online(h.device("pi-1"))
	c, ok := h.Live("pi-1")
	if !ok || c.Version != tls.VersionTLS13 || c.Suite == 0 || c.Curve == 0 || c.Peer.Identity.Role != identity.RoleDevice || c.Since.IsZero() {
		t.Errorf("%v %+v", ok, c)
	}
}
