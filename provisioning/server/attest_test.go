package server

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/tpm"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

func withAttestation(t *testing.T) func(*Config) {
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
	if err == nil {
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
