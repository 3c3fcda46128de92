package agent

import (
	"bytes"
	"context"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/tpm"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
	"github.com/fleethub/fleethub/device-agent/keystore"
	"github.com/fleethub/fleethub/hub/hubtest"
)

// shortLived is a certificate of 17 minutes, of which one is left.
func shortLived() certtest.Option {
	return certtest.WithValidity(time.Now().Add(-10*time.Minute), 11*time.Minute)
}

// renewalHub is a hub with its issuing key.
func renewalHub(t *testing.T) *hubtest.Hub {
	t.Helper()
	h := hubtest.Start(t)
	noError(t, pemfile.WriteKey(filepath.Join(h.Dir, "ca", "operational.key"), h.Fleet.OperationalKey))
	return h
}

// startWith runs an agent until the end of the test.
func startWith(t *testing.T, h *hubtest.Hub, dir string) {
	t.Helper()
	startAs(t, Config{Dir: dir, Hub: h.MQTTAddr(), Renewal: "https://" + h.HTTPSAddr(), RefusedRetry: 10 * time.Millisecond})
}

// startAs is startWith of that configuration.
func startAs(t *testing.T, config Config) {
	t.Helper()
	config.TPM, config.Log = TPMOff, slog.New(slog.NewTextHandler(t.Output(), nil))
	a, err := New(config)
	noError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		noError(t, <-ended)
	})
}

func fingerprintIn(t *testing.T, dir string) string {
	t.Helper()
	certs, err := pemfile.ReadCertificates(filepath.Join(dir, "device.crt")) // and no TPM, which the agent is using
	noError(t, err)
	return identity.Fingerprint(certs[0])
}

// waitFor waits until ok holds.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// settled waits until the hub accepts the certificate in dir and none else, and the
// device is connected by it.
func settled(t *testing.T, h *hubtest.Hub, dir, former string) {
	t.Helper()
	waitFor(t, "another certificate in place", func() bool { return fingerprintIn(t, dir) != former })
	waitFor(t, "the former one superseded", func() bool {
		status, _ := h.Server().Fleet().Status("pi-1")
		return len(status.Fingerprints) == 1 && status.Fingerprints[0].String() == fingerprintIn(t, dir)
	})
	waitFor(t, "connected", func() bool {
		d, err := h.Operator().Device(t.Context(), "pi-1")
		return err == nil && d.Session != nil
	})
}

func TestAgentRenewsItsCertificate(t *testing.T) {
	h := renewalHub(t)
	device := h.Fleet.Device("pi-1", shortLived())
	h.Register(device)
	dir := device.WriteTo(t.TempDir(), "device")
	startWith(t, h, dir)
	settled(t, h, dir, identity.Fingerprint(device.Leaf))
	keys, err := keystore.Open(dir)
	noError(t, err)
	leaf := keys.Credentials().Leaf
	if left := time.Until(leaf.NotAfter); left < 300*24*time.Hour {
		t.Errorf("the new certificate ends in %s", left)
	}
	if former := device.Leaf.RawSubjectPublicKeyInfo; bytes.Equal(leaf.RawSubjectPublicKeyInfo, former) {
		t.Error("the new certificate is for the old key")
	}
}

// A device whose certificate has ended can't connect, and renews all the same.
func TestExpiredAgentComesBackByItself(t *testing.T) {
	h := renewalHub(t)
	device := h.Fleet.Device("pi-1", certtest.WithValidity(time.Now().Add(-2*time.Hour), time.Hour))
	h.Register(device)
	dir := device.WriteTo(t.TempDir(), "device")
	startWith(t, h, dir)
	settled(t, h, dir, identity.Fingerprint(device.Leaf))
}

// A power cut after the certificate came leaves it staged: the next start goes on there.
func TestAgentGoesOnWithAStagedRenewal(t *testing.T) {
	h := renewalHub(t)
	device := h.Fleet.Device("pi-1", shortLived())
	h.Register(device)
	dir := device.WriteTo(t.TempDir(), "device")
	a, err := New(Config{Dir: dir, Hub: h.MQTTAddr(), Renewal: "https://" + h.HTTPSAddr(), TPM: TPMOff})
	noError(t, err)
	a.lock.release()
	ctx, stop := context.WithCancel(t.Context())
	a.relink.Store(&stop) // the cut: nothing happens once the certificate is here
	_ = a.renewal.Run(ctx)
	if _, err := keystore.OpenStaged(dir); err != nil {
		t.Fatal(err)
	}
	h.Restart() // the hub's, too
	startWith(t, h, dir)
	settled(t, h, dir, identity.Fingerprint(device.Leaf))
}

// A certificate that the hub doesn't know after all, as after its restore from a backup,
// costs the device nothing.
func TestAgentFallsBackToTheFormerCertificate(t *testing.T) {
	h := renewalHub(t)
	device := h.Device("pi-1")
	dir := device.WriteTo(t.TempDir(), "device")
	draft, err := keystore.NewDraft(dir)
	noError(t, err)
	key, err := draft.SoftwareKey()
	noError(t, err)
	leaf, err := h.Fleet.Operational.Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: device.Identity, PublicKey: key.Public()})
	noError(t, err)
	noError(t, draft.Stage([]*x509.Certificate{leaf, h.Fleet.Operational.Certificate()}, h.Fleet.Bundle()))
	startWith(t, h, dir)
	waitFor(t, "connected", func() bool {
		d, err := h.Operator().Device(t.Context(), "pi-1")
		return err == nil && d.Session != nil
	})
	waitFor(t, "the unknown certificate dropped", func() bool { _, err := keystore.OpenStaged(dir); return err != nil })
	if got := fingerprintIn(t, dir); got != identity.Fingerprint(device.Leaf) {
		t.Errorf("in place is %s", got)
	}
}

// A board whose clock is slow doesn't know that its certificate is old; the hub does.
func TestAgentRenewsWhenTheHubAsksForIt(t *testing.T) {
	h := renewalHub(t)
	device := h.Fleet.Device("pi-1", certtest.WithValidity(time.Now(), 10*time.Minute))
	h.Register(device)
	dir := device.WriteTo(t.TempDir(), "device")
	startAs(t, Config{Dir: dir, Hub: h.MQTTAddr(), Renewal: "https://" + h.HTTPSAddr(), StableAfter: time.Millisecond})
	waitFor(t, "connected", func() bool {
		d, err := h.Operator().Device(t.Context(), "pi-1")
		return err == nil && d.Session != nil
	})
	if got := fingerprintIn(t, dir); got != identity.Fingerprint(device.Leaf) {
		t.Fatal("it renews before it is told")
	}
	lifetime := device.Leaf.NotAfter.Sub(device.Leaf.NotBefore)
	h.Advance(time.Until(device.Leaf.NotBefore.Add(lifetime * 9 / 10)))
	settled(t, h, dir, identity.Fingerprint(device.Leaf))
}

// A key in a TPM is followed by a key in that TPM.
func TestAgentRenewsItsKeyInTheTPM(t *testing.T) {
	h := renewalHub(t)
	address := tpmtest.Start(t).Address()
	device := h.Fleet.Device("pi-1")
	dir := device.WriteTo(t.TempDir(), "device")
	chip, err := tpm.Open(address)
	noError(t, err)
	draft, err := keystore.NewDraft(dir)
	noError(t, err)
	key, err := draft.TPMKey(chip)
	noError(t, err)
	past := h.Fleet.Factory.At(func() time.Time { return time.Now().Add(-10 * time.Minute) })
	leaf, err := past.Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: device.Identity, PublicKey: key.Public(), Valid: 11 * time.Minute})
	noError(t, err)
	noError(t, draft.Install([]*x509.Certificate{leaf, h.Fleet.Factory.Certificate()}, h.Fleet.Bundle()))
	device.Leaf = leaf
	h.Register(device)
	startWith(t, h, dir)
	settled(t, h, dir, identity.Fingerprint(leaf))
	data, err := os.ReadFile(filepath.Join(dir, "device.key"))
	noError(t, err)
	if !tpm.IsKeyFile(data) {
		t.Error("the new key is a file, the old one was in the TPM")
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
