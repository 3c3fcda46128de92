package server_test

import (
	"crypto"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/authority"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/status"
)

// rotate gives the hub's issuing CA a successor of that name, as hub ca rotate does, and
// returns it. The hub has not been told.
func rotate(t *testing.T, h *hubtest.Hub, name string) *x509.Certificate {
	t.Helper()
	folder := authority.In(h.Dir, cakey.Opener{})
	request, err := folder.Request(name, func(path string) (crypto.Signer, []byte, error) {
		return cakey.Opener{}.Make(path, cakey.KeepInFile, nil)
	})
	must(t, err)
	cert, err := h.Fleet.Root.IssueCA(issuance.CARequest{Kind: identity.KindOperational, Name: name, TrustDomain: certtest.TrustDomain, PublicKey: request.CSR.PublicKey})
	must(t, err)
	must(t, folder.Install(cert, certtest.TrustDomain, time.Now()))
	return cert
}

// record has a certificate of the hub's CA on record, as the issue commands do.
func record(t *testing.T, h *hubtest.Hub, c certtest.Credential) certtest.Credential {
	t.Helper()
	must(t, authority.Record(filepath.Join(h.Dir, "ca"), c.Leaf))
	return c
}

// issuerOf returns what the API lists of an issuing CA.
func issuerOf(t *testing.T, h *hubtest.Hub, name string) admin.Issuer {
	t.Helper()
	list, err := h.Operator().Issuers(t.Context())
	must(t, err)
	i := slices.IndexFunc(list, func(i admin.Issuer) bool { return i.Name == name })
	if i < 0 {
		t.Fatalf("no issuer %s in %+v", name, list)
	}
	return list[i]
}

func TestIssuingCAIsReplacedWithOverlap(t *testing.T) {
	h := issuing(t)
	former := h.Fleet.Operational.Certificate()
	byFactory, renewed, later := h.Device("pi-1"), mustRenew(t, h, h.Device("pi-2")), h.Device("pi-3")
	first, second := online(t, h, byFactory), online(t, h, renewed)
	record(t, h, h.Fleet.Operator("admin", certtest.WithOU("admin")))
	waitFor(t, "the renewed certificate is the only one of its device", func() bool { return usable(t, h, "pi-2") == 1 })

	next := rotate(t, h, "hub-2")
	// The hub hasn't been told, and what it issues is good all the same.
	third := mustRenew(t, h, later)
	if third.Leaf.CheckSignatureFrom(next) != nil {
		t.Error("a renewal after the change is not by the new CA")
	}
	online(t, h, third)
	h.Server().Reload()

	if !first.IsConnectionOpen() || !second.IsConnectionOpen() {
		t.Error("the change cut a device off")
	}
	// A device that came by the former CA, and knows no other but the root, connects still.
	for name, c := range map[string]certtest.Credential{"of the station": byFactory, "by the former CA": renewed} {
		conn, err := dial(h.MQTTAddr(), c.ClientConfig())
		if err != nil {
			t.Fatalf("device %s: %v", name, err)
		}
		if conn.ConnectionState().PeerCertificates[0].CheckSignatureFrom(next) != nil {
			t.Error("the server certificate is not by the new CA")
		}
		conn.Close()
	}
	// It learns of both, and gets its next one by the new.
	cas, err := estClient(t, h, renewed).CACerts(t.Context())
	must(t, err)
	for what, want := range map[string]*x509.Certificate{"root": h.Fleet.Root.Certificate(), "former CA": former, "new CA": next} {
		if !slices.ContainsFunc(cas, want.Equal) {
			t.Errorf("/cacerts lacks the %s", what)
		}
	}
	if issuerOf(t, h, "hub").Devices != 1 || issuerOf(t, h, "hub-2").Devices != 1 {
		t.Errorf("by the former %d devices, by the new %d", issuerOf(t, h, "hub").Devices, issuerOf(t, h, "hub-2").Devices)
	}
	h.Advance(25 * time.Hour) // past the bound on renewals
	again := mustRenew(t, h, renewed)
	if again.Leaf.CheckSignatureFrom(next) != nil {
		t.Error("the next renewal is not by the new CA")
	}
	second.Disconnect(0)
	online(t, h, again)
	waitFor(t, "no device depends on the former CA", func() bool { return issuerOf(t, h, "hub").Devices == 0 })

	// The former is needed by an operator, and then by nobody.
	if _, err := h.Operator().RemoveIssuer(t.Context(), "hub", ""); err == nil || !strings.Contains(err.Error(), "admin") {
		t.Errorf("got %v, want that admin has no other certificate", err)
	}
	key, err := pemfile.ReadKey(caKeyFile(h))
	must(t, err)
	issuer, err := issuance.NewIssuer(next, key, nil)
	must(t, err)
	record(t, h, h.Fleet.Operator("admin", certtest.WithOU("admin"), certtest.WithIssuer(issuer))).WriteTo(filepath.Join(h.Dir, "operator"), "operator")
	if _, err := h.Operator().RemoveIssuer(t.Context(), "hub-2", ""); err == nil || !strings.Contains(err.Error(), "can't do without") {
		t.Errorf("got %v", err)
	}
	removed, err := h.Operator().RemoveIssuer(t.Context(), "hub", "replaced")
	must(t, err)
	if len(removed.MovedTo) != 2 {
		t.Errorf("moved to %v, want certificate and key", removed.MovedTo)
	}
	bundle, err := pemfile.ReadCertificates(filepath.Join(h.Dir, "ca.crt"))
	must(t, err)
	if slices.ContainsFunc(bundle, former.Equal) || !slices.ContainsFunc(bundle, next.Equal) {
		t.Error("the trust bundle has the former CA, or lacks the new one")
	}
	for _, when := range []string{"at once", "after a restart"} {
		if admitted(h, renewed) {
			t.Errorf("%s: a certificate by the removed CA is good", when)
		}
		mustDial(t, h, again.ClientConfig())
		mustDial(t, h, byFactory.ClientConfig())
		h.Restart()
	}
}

// The hub goes on publishing what is revoked of the CA before.
func TestFormerIssuingCAStillHasItsRevocationList(t *testing.T) {
	h := startPublishing(t)
	_, leaf := h.renewed("pi-1")
	next := rotate(t, h.Hub, "hub-2")
	h.Server().Reload()
	must1(h.Operator().Revoke(t.Context(), "pi-1", revocation.KeyCompromise))(t)
	listOf := func(ca *x509.Certificate) (l revocation.List, ok bool) {
		response, err := http.Get(h.url(status.ListPath + status.KeyID(ca) + ".crl"))
		h.must(err)
		defer response.Body.Close()
		der, err := io.ReadAll(response.Body)
		h.must(err)
		if response.StatusCode != http.StatusOK {
			return l, false
		}
		l, err = revocation.ReadList(der, ca)
		h.must(err)
		return l, true
	}
	waitFor(t, "the former CA's list has the certificate", func() bool {
		l, ok := listOf(h.Fleet.Operational.Certificate())
		return ok && slices.ContainsFunc(l.Entries, func(e revocation.Entry) bool { return e.Serial.Cmp(leaf.SerialNumber) == 0 })
	})
	waitFor(t, "the new CA has a list", func() bool {
		l, ok := listOf(next)
		return ok && len(l.Entries) == 0
	})
}

// Without the new CA's key the hub's certificate stays as it was, which is good.
func TestServerCertificateWaitsForTheNewKey(t *testing.T) {
	h := issuing(t)
	next := rotate(t, h, "hub-2")
	safe := filepath.Join(t.TempDir(), "key")
	must(t, os.Rename(caKeyFile(h), safe))
	h.Server().Reload()
	device := h.Device("pi-1")
	serverLeaf := func() *x509.Certificate {
		conn, err := dial(h.MQTTAddr(), device.ClientConfig())
		must(t, err)
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0]
	}
	if serverLeaf().CheckSignatureFrom(h.Fleet.Operational.Certificate()) != nil {
		t.Error("the server certificate is by another CA than before")
	}
	if _, err := h.Operator().RemoveIssuer(t.Context(), "hub", ""); err == nil || !strings.Contains(err.Error(), "the hub's own certificate") {
		t.Errorf("got %v", err)
	}
	must(t, os.Rename(safe, caKeyFile(h)))
	h.Restart()
	if serverLeaf().CheckSignatureFrom(next) != nil {
		t.Error("the server certificate is not by the new CA")
	}
}

// Nobody but the root makes an issuing CA.
func TestIssuingCAByAnotherRootIsRefused(t *testing.T) {
	h := issuing(t)
	folder := authority.In(h.Dir, cakey.Opener{})
	request, err := folder.Request("hub-2", func(path string) (crypto.Signer, []byte, error) {
		return cakey.Opener{}.Make(path, cakey.KeepInFile, nil)
	})
	must(t, err)
	ask := issuance.CARequest{Kind: identity.KindOperational, Name: "hub-2", TrustDomain: certtest.TrustDomain, PublicKey: request.CSR.PublicKey}
	foreign, err := h.Fleet.Foreign().Root.IssueCA(ask)
	must(t, err)
	factory := ask
	factory.Kind = identity.KindFactory
	wrongKind, err := h.Fleet.Root.IssueCA(factory)
	must(t, err)
	elsewhere := ask
	elsewhere.TrustDomain = "other.example"
	wrongDomain, err := h.Fleet.Root.IssueCA(elsewhere)
	must(t, err)
	another := ask
	another.PublicKey = newKey(t).Public()
	wrongKey, err := h.Fleet.Root.IssueCA(another)
	must(t, err)
	brief := ask
	brief.Valid = time.Hour
	expired, err := h.Fleet.Root.At(func() time.Time { return time.Now().Add(-2 * time.Hour) }).IssueCA(brief)
	must(t, err)
	before, err := os.ReadFile(filepath.Join(h.Dir, "ca.crt"))
	must(t, err)
	for name, bad := range map[string]*x509.Certificate{"another root's": foreign, "a station's": wrongKind, "another trust domain's": wrongDomain, "another key's": wrongKey, "expired": expired} {
		if err := folder.Install(bad, certtest.TrustDomain, time.Now()); err == nil {
			t.Errorf("%s certificate was installed", name)
		}
	}
	if after, err := os.ReadFile(filepath.Join(h.Dir, "ca.crt")); err != nil || string(after) != string(before) {
		t.Errorf("a refused certificate changed the trust bundle (%v)", err)
	}
	if _, err := os.Stat(filepath.Join(h.Dir, "ca", "next.crt")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a refused certificate is in the folder")
	}
}
