package server_test

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/server"
)

// The record tells of the newest certificate; what a device may do is by the one that it
// presents. An attested renewal that was never used makes no key in a file one in a TPM.
func TestPolicyJudgesAKeyByTheCertificatePresented(t *testing.T) {
	h := issuing(t)
	must(t, os.WriteFile(filepath.Join(h.Dir, server.PolicyFile), []byte(`version: 1
rules:
- {rule: proved, role: device, allow: subscribe, when: {protection: tpm}, topics: 'secret/#'}
- {rule: any, role: device, allow: subscribe, when: {protection: unproven}, topics: 'open/#'}
`), 0o600))
	_, err := h.Operator().ReloadPolicy(t.Context(), "test")
	must(t, err)
	ek := strings.Repeat("5a", 32)
	first := h.Fleet.Device("pi-5", certtest.WithTPM())
	h.RegisterTPM(first, ek)
	plain, err := renew(t, h, first, newKey(t))
	must(t, err)
	proved := h.Fleet.Device("pi-5", certtest.WithIssuer(h.Fleet.Operational), certtest.WithTPM())
	judged := func(c certtest.Credential, tpm bool) {
		t.Helper()
		client, _ := lasting(t, h, c)
		defer client.Disconnect(100)
		if secret, open := granted(t, client, "secret/#"), granted(t, client, "open/#"); secret != tpm || open == tpm {
			t.Errorf("granted to a key in a TPM: %v, to one anywhere: %v", secret, open)
		}
		answer, err := h.Operator().ExplainPolicy(t.Context(), admin.PolicyQuestion{Role: identity.RoleDevice, ID: "pi-5", Action: policy.Subscribe, Topic: "secret/#"})
		if err != nil || !answer.Online || answer.Allowed != tpm {
			t.Errorf("explained as %+v, %v", answer, err)
		}
	}
	judged(plain, false)
	_, err = h.Server().Fleet().Renew(t.Context(), fleet.Renewal{Device: "pi-5", Presented: plain.Leaf, Key: proved.Leaf.RawSubjectPublicKeyInfo, EK: ek},
		func() (*x509.Certificate, error) { return proved.Leaf, nil })
	must(t, err)
	if d, err := h.Server().Fleet().Device(t.Context(), "pi-5"); err != nil || d.Protection != "tpm" {
		t.Fatalf("%s, %v", d.Protection, err)
	}
	judged(plain, false)
	judged(proved, true)
}
