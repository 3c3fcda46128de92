package fleet

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/ticket"
)

// names returns what tickets may call a certificate.
func names(c certtest.Credential) [][]byte {
	sum := sha256.Sum256(c.Leaf.Raw)
	return [][]byte{sum[:ticket.ShortName], sum[:ticket.LongName]}
}

func (r *rig) mustResume(c certtest.Credential, want bool) {
	r.t.Helper()
	for _, name := range names(c) {
		leaf, issuer, ok := r.Resumable(name)
		if ok != want {
			r.t.Errorf("certificate of %s, by %d octets: resumable is %v, want %v", c.Identity.ID, len(name), ok, want)
		}
		if ok && (!bytes.Equal(leaf, c.Leaf.Raw) || !issuer.Equal(c.Issuer)) {
			r.t.Errorf("another certificate than that of %s was found", c.Identity.ID)
		}
	}
}

func TestTicketsOfWhoMayNotConnectFindNoCertificate(t *testing.T) {
	r := newRig(t)
	devices := r.register("good", "suspended", "revoked")
	for _, d := range devices {
		r.mustResume(d, true)
	}
	if _, err := r.Suspend(t.Context(), "suspended", "", ann); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Revoke(t.Context(), "revoked", revocation.KeyCompromise, ann); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		r.mustResume(devices[0], true)
		r.mustResume(devices[1], false)
		r.mustResume(devices[2], false)
		r.mustResume(r.pki.Device("stranger"), false)
	}
	check()
	r.restart()
	check()
	if _, err := r.Resume(t.Context(), "suspended", "", ann); err != nil {
		t.Fatal(err)
	}
	r.mustResume(devices[1], true)
}

func TestTicketOfARemovedIssuerFindsNoCertificate(t *testing.T) {
	r := newRig(t)
	device := r.register("pi-1")[0]
	r.mustResume(device, true)
	r.config.Issuers = func() []*x509.Certificate { return []*x509.Certificate{r.pki.Operational.Certificate()} }
	r.mustResume(device, false)
}

func TestNameOfTwoCertificatesFindsNeither(t *testing.T) {
	r := newRig(t)
	devices := r.register("one", "two")
	// As if the two began alike: "two" is found where "one" is, with a fingerprint that begins as one's does.
	one, two := names(devices[0])[0], names(devices[1])[0]
	d, err := r.record(t.Context(), "two")
	if err != nil {
		t.Fatal(err)
	}
	facts := d.Facts()
	alike := facts.Usable[0]
	copy(alike[:], one)
	facts.Usable = append(facts.Usable, alike)
	r.index.put(&facts)
	if _, _, ok := r.Resumable(one); ok {
		t.Error("four octets that fit two certificates found one")
	}
	if leaf, _, ok := r.Resumable(names(devices[0])[1]); !ok || !bytes.Equal(leaf, devices[0].Leaf.Raw) {
		t.Error("eight octets that fit one certificate did not find it")
	}
	if leaf, _, ok := r.Resumable(two); !ok || !bytes.Equal(leaf, devices[1].Leaf.Raw) {
		t.Error("the other's own name did not find it")
	}
}
