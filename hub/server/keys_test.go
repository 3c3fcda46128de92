package server_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/receipt"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/server"
)

const caPassphrase = "correct horse battery"

// knowing has the hub know that passphrase of its keys.
func knowing(passphrase string) hubtest.Option {
	return func(c *server.Config) {
		c.Passphrase = func(string) ([]byte, error) { return []byte(passphrase), nil }
	}
}

func caKeyFile(h *hubtest.Hub) string { return filepath.Join(h.Dir, "ca", "operational.key") }

// encrypted gives the hub its issuing key, encrypted.
func encrypted(t *testing.T, h *hubtest.Hub) {
	t.Helper()
	file, err := cakey.Encrypt(h.Fleet.OperationalKey, []byte(caPassphrase))
	must(t, err)
	must(t, pemfile.Write(caKeyFile(h), file, 0o600))
}

// refusedRenewal renews, which must be refused with 503 and that reason.
func refusedRenewal(t *testing.T, h *hubtest.Hub, with certtest.Credential, says string) {
	t.Helper()
	_, err := renew(t, h, with, newKey(t))
	answer, ok := errors.AsType[*est.ServerError](err)
	if !ok || answer.Status != http.StatusServiceUnavailable || answer.RetryAfter <= 0 || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want 503 with a Retry-After and %q", err, says)
	}
}

func TestEncryptedIssuingKeyIsUsedWhileItIsThere(t *testing.T) {
	h := hubtest.Start(t, knowing(caPassphrase))
	encrypted(t, h)
	device := mustRenew(t, h, h.Device("pi-1"))
	if device.Leaf.CheckSignatureFrom(h.Fleet.Operational.Certificate()) != nil {
		t.Error("the renewed certificate is not by the hub's issuing CA")
	}

	// Into a safe, and back: what was open doesn't outlive its file.
	safe := filepath.Join(t.TempDir(), "safe.key")
	must(t, os.Rename(caKeyFile(h), safe))
	other := h.Device("pi-2")
	refusedRenewal(t, h, other, "not at the hub now")
	must(t, os.Rename(safe, caKeyFile(h)))
	mustRenew(t, h, other)

	// Another key in its place is not taken for it, and the true one in a plain file is.
	must(t, pemfile.WriteKey(caKeyFile(h), newKey(t)))
	other = h.Device("pi-3")
	refusedRenewal(t, h, other, "can't be used now")
	must(t, pemfile.WriteKey(caKeyFile(h), h.Fleet.OperationalKey))
	mustRenew(t, h, other)
}

// A hub that can't open its issuing key serves its devices all the same, and says so.
func TestHubStartsWithoutThePassphraseOfItsIssuingKey(t *testing.T) {
	for name, option := range map[string]hubtest.Option{
		"wrong": knowing("wrong passphrase"),
		"none":  func(c *server.Config) {}, // no credentials here
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("CREDENTIALS_DIRECTORY", "")
			h := hubtest.Start(t, option)
			encrypted(t, h)
			h.Restart()
			device := h.Device("pi-1")
			mustDial(t, h, device.ClientConfig())
			refusedRenewal(t, h, device, "can't be used now")
			if n := strings.Count(h.Log(), "an issuing key can't be used"); n != 1 {
				t.Errorf("the log says it %d times", n)
			}
			// A receipt is signed by the hub's other key.
			done, err := h.Operator().Revoke(t.Context(), "pi-1", revocation.KeyCompromise)
			must(t, err)
			signed, err := h.Operator().SignedReceipt(t.Context(), done.ReceiptID)
			must(t, err)
			if _, _, err := receipt.Open(signed, h.Fleet.Bundle()[:1]); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestIssuingKeyTakesItsPassphraseFromSystemd(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "hub-ca"), []byte(caPassphrase+"\n"), 0o400))
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	h := hubtest.Start(t, func(c *server.Config) { c.IssuingKey.Credential = "hub-ca" })
	encrypted(t, h)
	mustRenew(t, h, h.Device("pi-1"))
}

func TestIssuingKeyInTheTPMRenews(t *testing.T) {
	emulator := tpmtest.Start(t)
	key, file, err := cakey.Opener{TPM: emulator.Address()}.Create()
	must(t, err)
	h := hubtest.Start(t, func(c *server.Config) { c.IssuingKey.TPM = emulator.Address() })
	cert, err := h.Fleet.Root.IssueCA(issuance.CARequest{Kind: identity.KindOperational, Name: "hub-tpm", TrustDomain: certtest.TrustDomain, PublicKey: key.Public()})
	must(t, err)
	must(t, pemfile.WriteCertificates(filepath.Join(h.Dir, "ca", "operational.crt"), cert))
	must(t, pemfile.Write(caKeyFile(h), file, 0o600))
	h.Server().Reload()
	if next := mustRenew(t, h, h.Device("pi-1")); next.Leaf.CheckSignatureFrom(cert) != nil {
		t.Error("the renewed certificate is not by the CA in the TPM")
	}
	emulator.Stop()
	if _, err := renew(t, h, h.Device("pi-2"), newKey(t)); err == nil {
		t.Error("renewed without the TPM")
	}
}
