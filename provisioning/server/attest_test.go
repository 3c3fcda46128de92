package server

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/tpm"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

func withAttestation(t testing.TB) func(*Config) {
	return func(c *Config) {
		v, err := attestation.NewVerifier(attestation.Config{Allowed: func([sha256.Size]byte) bool { return true }})
		if err != nil {
			t.Fatal(err)
		}
		c.Attestation = v
	}
}

// attest goes the board's way with a key in its TPM.
func (b *bench) attest(token string, key *tpm.Key) error {
	b.t.Helper()
	c := b.client(token, nil)
	ctx := b.t.Context()
	e, err := key.Enrol(mustCSR(b.t, key, "x"))
	if err != nil {
		b.t.Fatal(err)
	}
	request, err := json.Marshal(e.Request())
	if err != nil {
		b.t.Fatal(err)
	}
	reply, err := c.Challenge(ctx, request)
	if err != nil {
		return err
	}
	challenge, err := attestation.ParseChallenge(reply)
	if err != nil {
		b.t.Fatal(err)
	}
	binding, err := c.ServerBinding(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	answer, err := e.Answer(challenge, binding)
	if err != nil {
		b.t.Fatal(err)
	}
	message, err := json.Marshal(answer)
	if err != nil {
		b.t.Fatal(err)
	}
	_, err = c.EnrollAttested(ctx, message, key.Public())
	if _, timed := b.t.(*testing.B); err == nil && !timed {
		if _, err := c.EnrollAttested(ctx, message, key.Public()); !errors.Is(err, est.ErrDenied) {
			b.t.Errorf("the same answer again: %v", err)
		}
	}
	return err
}

func TestTPMVouchesForTheKeyAndBelongsToOneDevice(t *testing.T) {
	b := newBench(t, withAttestation(t))
	order := b.order(ledger.Attributes{Protection: ledger.TPM}, "a", "b")
	tokens := b.tokens(order, 2)
	chip, err := tpm.Open(tpmtest.Start(t).Address())
	if err != nil {
		t.Fatal(err)
	}
	key, err := chip.CreateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.attest("no token of ours", key); !errors.Is(err, est.ErrDenied) {
		t.Errorf("without a token: %v", err)
	}
	if err := b.attest(tokens[0], key); err != nil {
		t.Fatal(err)
	}
	record, _, err := b.station.Ledger().Device("a")
	if err != nil || record.Protection != ledger.TPM || len(record.EK) != 64 {
		t.Errorf("%+v %v", record, err)
	}
	// Another key in the same TPM is the same board.
	next, err := chip.CreateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.attest(tokens[1], next); !errors.Is(err, est.ErrDenied) || !strings.Contains(err.Error(), "the TPM is that of a") {
		t.Errorf("the board became a second device: %v", err)
	}
	c := b.client(tokens[1], nil)
	for name, message := range map[string]string{"challenge": "{", "answer": `{"id": 1}`} {
		var err error
		if name == "challenge" {
			_, err = c.Challenge(t.Context(), []byte(message))
		} else {
			_, err = c.EnrollAttested(t.Context(), []byte(message), next.Public())
		}
		if refusal, ok := errors.AsType[*est.ServerError](err); !ok || refusal.Status != 400 {
			t.Errorf("a malformed %s: %v", name, err)
		}
	}
}

// A board whose certificate is replaced over the network has its TPM vouch for the new key,
// too, and the certificate and the manifest say so.
func TestReplacementComesWithTheTPMsWord(t *testing.T) {
	b := newBench(t, withAttestation(t))
	token := b.tokens(b.order(ledger.Attributes{Protection: ledger.TPM}, "a"), 1)[0]
	chip, other := newChip(t), newChip(t)
	first, cert, err := b.vouch(chip, token, nil)
	if err != nil || identity.ProtectionOf(cert) != identity.ProtectionTPM {
		t.Fatal(cert, err)
	}
	holder := board{key: first}.with(cert)
	if _, _, err := b.vouch(chip, "", holder); !errors.Is(err, est.ErrDenied) || !strings.Contains(err.Error(), "provisioning replace") {
		t.Errorf("without an order: %v", err)
	}
	if _, err := b.station.OrderReplacement("a", "test"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.vouch(other, "", holder); !errors.Is(err, est.ErrDenied) || !strings.Contains(err.Error(), "has another TPM") {
		t.Errorf("another TPM: %v", err)
	}
	plain := newBoard(t, "a")
	if _, err := b.client("", holder).Reenroll(t.Context(), plain.csr, plain.key.Public()); !errors.Is(err, est.ErrDenied) || !strings.Contains(err.Error(), "demands a key in a tpm") {
		t.Errorf("without the TPM's word: %v", err)
	}
	_, next, err := b.vouch(chip, "", holder)
	if err != nil || identity.ProtectionOf(next) != identity.ProtectionTPM {
		t.Fatal(next, err)
	}
	record, _, err := b.station.Ledger().Device("a")
	if err != nil || record.Protection != ledger.TPM || record.Supersedes != identity.SerialString(cert.SerialNumber) {
		t.Errorf("%+v %v", record, err)
	}
	out := t.TempDir()
	exported, err := b.station.Export(out)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(exported.File)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := manifest.Open(data, []*x509.Certificate{b.fleet.Root.Certificate()}, time.Now())
	if err != nil || len(m.Devices) != 2 {
		t.Fatalf("%+v %v", m, err)
	}
	for _, d := range m.Devices {
		if d.Protection != "tpm" || d.EK != record.EK || len(d.EK) != 64 {
			t.Errorf("the manifest says %s, EK %q", d.Protection, d.EK)
		}
	}
}

func newChip(t *testing.T) *tpm.TPM {
	t.Helper()
	chip, err := tpm.Open(tpmtest.Start(t).Address())
	if err != nil {
		t.Fatal(err)
	}
	return chip
}

// vouch has the TPM vouch for a new key, for who brings a token, or a certificate that is to
// be replaced.
func (b *bench) vouch(chip *tpm.TPM, token string, current *tls.Certificate) (*tpm.Key, *x509.Certificate, error) {
	b.t.Helper()
	must := func(err error) {
		b.t.Helper()
		if err != nil {
			b.t.Fatal(err)
		}
	}
	c, ctx := b.client(token, current), b.t.Context()
	key, err := chip.CreateKey(nil)
	must(err)
	e, err := key.Enrol(mustCSR(b.t, key, "a"))
	must(err)
	request, err := json.Marshal(e.Request())
	must(err)
	reply, err := c.Challenge(ctx, request)
	if err != nil {
		return nil, nil, err
	}
	challenge, err := attestation.ParseChallenge(reply)
	must(err)
	binding, err := c.ServerBinding(ctx)
	must(err)
	answer, err := e.Answer(challenge, binding)
	must(err)
	message, err := json.Marshal(answer)
	must(err)
	finish := c.EnrollAttested
	if current != nil {
		finish = c.ReenrollAttested
	}
	cert, err := finish(ctx, message, key.Public())
	return key, cert, err
}
