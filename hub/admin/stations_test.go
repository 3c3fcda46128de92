package admin

import (
	"crypto/tls"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/registry"
)

// station returns a client with the certificate of a factory station.
func (h *hub) station(pki *certtest.Fleet, name string) *Client {
	h.t.Helper()
	key, err := issuance.NewKey()
	h.must(err)
	id, err := identity.New(certtest.TrustDomain, identity.RoleStation, name)
	h.must(err)
	leaf, err := pki.Operational.Issue(issuance.Request{Profile: issuance.StationProfile(), Identity: id, PublicKey: key.Public()})
	h.must(err)
	client, err := NewClient(h.url, mtls.Credentials{
		Certificate: tls.Certificate{Certificate: [][]byte{leaf.Raw, pki.Operational.Certificate().Raw}, PrivateKey: key, Leaf: leaf},
		Leaf:        leaf, Roots: h.pki.Bundle(), Identity: id,
	})
	h.must(err)
	h.t.Cleanup(client.Close)
	return client
}

func TestStationSendsItsOwnManifestsAndNothingElse(t *testing.T) {
	h := newHub(t, anyCertificate, nil)
	own := h.station(h.pki, certtest.StationName)
	report, err := own.Import(t.Context(), h.manifest("pi-1"))
	if err != nil || report.Registered != 1 {
		t.Fatalf("its own manifest: %+v, %v", report, err)
	}
	page, err := h.fleet.Audit(t.Context(), registry.AuditQuery{Action: "manifest.import"})
	if err != nil || len(page.Records) == 0 || page.Records[0].Actor != "spiffe://fleet.example/station/bench-1" {
		t.Errorf("the audit log says %+v, %v", page.Records, err)
	}
	for name, try := range map[string]struct {
		do   func() error
		says string
	}{
		"another station's manifest": {func() error {
			_, err := h.station(h.pki, "bench-2").Import(t.Context(), h.manifest("pi-2"))
			return err
		}, "this one is station bench-1's"},
		"a manifest that was changed": {func() error {
			data := h.manifest("pi-3")
			data[len(data)/2] ^= 1
			_, err := own.Import(t.Context(), data)
			return err
		}, "manifest rejected"},
		"a station of another fleet": {func() error {
			_, err := h.station(h.pki.Foreign(), certtest.StationName).Import(t.Context(), h.manifest("pi-2"))
			return err
		}, "an operator's certificate is required"},
		"a device": {func() error {
			_, err := h.client(h.pki.Device(certtest.StationName)).Import(t.Context(), h.manifest("pi-2"))
			return err
		}, "an operator's certificate is required"},
		"the list of devices": {func() error { _, err := own.Devices(t.Context(), "", 1); return err }, "an operator's certificate is required"},
		"a suspension":        {func() error { _, err := own.Suspend(t.Context(), "pi-1", "mine"); return err }, "an operator's certificate is required"},
	} {
		if err := try.do(); err == nil || !strings.Contains(err.Error(), try.says) {
			t.Errorf("%s: %v, want an error that says %q", name, err, try.says)
		}
	}
	if h.fleet.Len() != 1 || h.state("pi-1") != registry.StateRegistered {
		t.Errorf("%d devices, pi-1 is %s", h.fleet.Len(), h.state("pi-1"))
	}
	_, err = h.station(h.pki, "bench-2").Import(t.Context(), h.manifest("pi-2"))
	if p, ok := errors.AsType[*Problem](err); ok && p.Status != http.StatusForbidden {
		t.Errorf("another's manifest is answered with %d", p.Status)
	}
}
