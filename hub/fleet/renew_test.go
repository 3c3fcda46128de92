package fleet

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
)

// renewal returns a request of a device for a new key, and what the hub would sign.
func (r *rig) renewal(d certtest.Credential) (Renewal, func() (*x509.Certificate, error)) {
	r.t.Helper()
	return r.renewalBy(d, "", certtest.WithIssuer(r.pki.Operational))
}

// renewalBy is renewal with the word of the TPM of that endorsement key.
func (r *rig) renewalBy(d certtest.Credential, ek string, options ...certtest.Option) (Renewal, func() (*x509.Certificate, error)) {
	r.t.Helper()
	next := r.pki.Device(d.Identity.ID, options...).Leaf
	return Renewal{Device: d.Identity.ID, Presented: d.Leaf, Key: next.RawSubjectPublicKeyInfo, Address: "192.0.2.9:1", EK: ek}, func() (*x509.Certificate, error) { return next, nil }
}

func (r *rig) renew(d certtest.Credential) *x509.Certificate {
	r.t.Helper()
	request, issue := r.renewal(d)
	leaf, err := r.Renew(r.t.Context(), request, issue)
	if err != nil {
		r.t.Fatal(err)
	}
	return leaf
}

func (r *rig) mustImport(entries ...manifest.Entry) {
	r.t.Helper()
	if _, err := r.Import(r.t.Context(), r.sign(entries...), ann); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) admits(leaf *x509.Certificate) bool {
	status, ok := r.Status(leaf.Subject.CommonName)
	return ok && status.Admits(sha256.Sum256(leaf.Raw))
}

func TestRenewedCertificateSurvivesARestart(t *testing.T) {
	r := newRig(t)
	old := r.pki.Device("pi-1")
	r.mustImport(entryOf(old))
	next := r.renew(old)
	for range 2 {
		if !r.admits(old.Leaf) || !r.admits(next) || !r.Renewing("pi-1") {
			t.Fatal("the old and the new are not both good")
		}
		r.restart()
	}
	if got, err := r.Connected(t.Context(), "pi-1", next); err != nil || len(got) != 1 {
		t.Fatalf("superseded %v, %v", got, err)
	}
	for range 2 {
		if r.admits(old.Leaf) || !r.admits(next) || r.Renewing("pi-1") {
			t.Fatal("the old one is good still, or the new one isn't")
		}
		r.restart()
	}
	if got, err := r.Connected(t.Context(), "pi-1", next); err != nil || got != nil {
		t.Errorf("superseded again: %v, %v", got, err)
	}
}

// A device that is cut off while its certificate is being signed gets none.
func TestCutOffWhileSigningGetsNothing(t *testing.T) {
	r := newRig(t)
	old := r.pki.Device("pi-1")
	r.mustImport(entryOf(old))
	request, issue := r.renewal(old)
	leaf, err := r.Renew(t.Context(), request, func() (*x509.Certificate, error) {
		if _, err := r.Revoke(t.Context(), "pi-1", revocation.KeyCompromise, ann); err != nil {
			t.Error(err)
		}
		return issue()
	})
	refusal, ok := errors.AsType[*RenewalRefusal](err)
	if !ok || refusal.Reason != string(registry.StateRevoked) || leaf != nil {
		t.Errorf("got %v, %v", leaf, err)
	}
	d, err := r.Device(t.Context(), "pi-1")
	if err != nil || len(d.Certificates) != 1 {
		t.Errorf("%d certificates, %v", len(d.Certificates), err)
	}
}

// While the store can't be written nobody gets a certificate that it doesn't have.
func TestRenewalThatIsNotDurableIsNoRenewal(t *testing.T) {
	r := newRig(t)
	old := r.pki.Device("pi-1")
	r.mustImport(entryOf(old))
	request, issue := r.renewal(old)
	r.store.broken.Store(true)
	if leaf, err := r.Renew(t.Context(), request, issue); err == nil || leaf != nil {
		t.Fatalf("got %v, %v", leaf, err)
	}
	r.store.broken.Store(false)
	next := r.renew(old)
	r.store.broken.Store(true)
	if got, err := r.Connected(t.Context(), "pi-1", next); err == nil || got != nil || !r.admits(old.Leaf) {
		t.Errorf("superseded %v in memory alone, %v", got, err)
	}
	r.store.broken.Store(false)
}

// budgeted returns entries of a station that may make that many devices.
func TestManifestBeyondTheStationsBudgetIsRejected(t *testing.T) {
	r := newRig(t)
	key := r.pki.FactoryKey
	authority, err := r.pki.Root.IssueCA(issuance.CARequest{Kind: identity.KindFactory, Name: certtest.StationName, TrustDomain: certtest.TrustDomain, PublicKey: key.Public(), Valid: 10 * 365 * 24 * time.Hour, MaxDevices: 3})
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := issuance.NewIssuer(authority, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.config.Issuers = func() []*x509.Certificate { return []*x509.Certificate{authority} }
	device := func(id string) certtest.Credential { return r.pki.Device(id, certtest.WithIssuer(issuer)) }
	number := uint64(0)
	send := func(entries ...manifest.Entry) error {
		number++
		m := manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: certtest.StationName, Number: number, CreatedAt: time.Now(), Devices: entries}
		data, err := manifest.Sign(m, []*x509.Certificate{authority}, key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Import(t.Context(), data, ann)
		return err
	}
	one := device("pi-1")
	if err := send(entryOf(one), entryOf(device("pi-2"))); err != nil {
		t.Fatal(err)
	}
	if err := send(entryOf(device("pi-3")), entryOf(device("pi-4"))); !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "may make 3 devices, and with this manifest it has made 4") {
		t.Fatalf("beyond the budget: %v", err)
	}
	if r.Len() != 2 {
		t.Errorf("%d devices are registered by a manifest that was rejected", r.Len()-2)
	}
	if err := send(entryOf(device("pi-3"))); err != nil {
		t.Fatalf("the last one: %v", err)
	}
	// One that is out of service counts still, another certificate doesn't.
	if _, err := r.Revoke(t.Context(), "pi-3", revocation.KeyCompromise, ann); err != nil {
		t.Fatal(err)
	}
	if err := send(entryOf(device("pi-5"))); !errors.Is(err, ErrRejected) {
		t.Errorf("a revoked device makes room: %v", err)
	}
	again := entryOf(device("pi-1"))
	again.Supersedes = identity.SerialString(one.Leaf.SerialNumber)
	if err := send(again); err != nil {
		t.Errorf("a replacement: %v", err)
	}
}
