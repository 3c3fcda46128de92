package enrolment

import (
	"crypto/x509"
	"path/filepath"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/tpm"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
	"github.com/fleethub/fleethub/device-agent/keystore"
	"github.com/fleethub/fleethub/hub/hubtest"
)

// A board whose key is in its TPM renews at a real hub, whose model demands the TPM, and
// its certificate goes on saying where the key is.
func TestBoardWithATPMRenewsAtAHubThatDemandsIt(t *testing.T) {
	h := hubtest.Start(t, hubtest.DemandingTPM())
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(pemfile.WriteKey(filepath.Join(h.Dir, "ca", "operational.key"), h.Fleet.OperationalKey))
	chip, err := tpm.Open(tpmtest.Start(t).Address())
	must(err)
	ek, err := chip.Endorsement()
	must(err)
	dir := t.TempDir()
	draft, err := keystore.NewDraft(dir)
	must(err)
	key, err := draft.TPMKey(chip)
	must(err)
	id, err := identity.New(certtest.TrustDomain, identity.RoleDevice, "board-5")
	must(err)
	leaf, err := h.Fleet.Factory.Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: id, PublicKey: key.Public(), Protection: identity.ProtectionTPM})
	must(err)
	must(draft.Install([]*x509.Certificate{leaf, h.Fleet.Factory.Certificate()}, h.Fleet.Bundle()))
	var credential certtest.Credential
	credential.Leaf = leaf
	h.RegisterTPM(credential, ek.Hash())

	for round := range 2 {
		r, err := Renew(t.Context(), Config{Dir: dir, Server: "https://" + h.HTTPSAddr()})
		if err != nil || !r.Attested || r.TPM != chip.Address() {
			t.Fatalf("round %d: %+v, %v", round, r, err)
		}
		keys, err := keystore.Open(dir)
		must(err)
		if says := identity.ProtectionOf(keys.Credentials().Leaf); says != identity.ProtectionTPM || keys.Fingerprint() != r.Fingerprint {
			t.Fatalf("round %d: the certificate says %s", round, says)
		}
	}
}
