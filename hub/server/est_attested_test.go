package server_test

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/tpm"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/hubtest"
)

// board is a device with a TPM, which it is known by.
type board struct {
	certtest.Credential
	chip *tpm.TPM
	ek   string
}

func newChip(t *testing.T) (*tpm.TPM, string) {
	t.Helper()
	return open(t, tpmtest.Start(t))
}

// open returns a TPM and its endorsement key.
func open(t *testing.T, e *tpmtest.Emulator) (*tpm.TPM, string) {
	t.Helper()
	chip, err := tpm.Open(e.Address())
	must(t, err)
	return chip, endorsement(t, chip)
}

func endorsement(t *testing.T, chip *tpm.TPM) string {
	t.Helper()
	e, err := chip.Endorsement()
	must(t, err)
	return e.Hash()
}

// newBoard returns a registered board. Its first key is in a file, though its certificate
// says otherwise: what the tests are about is the next one.
func newBoard(t *testing.T, h *hubtest.Hub, id string) board {
	t.Helper()
	chip, ek := newChip(t)
	b := board{Credential: h.Fleet.Device(id, certtest.WithTPM()), chip: chip, ek: ek}
	h.RegisterTPM(b.Credential, ek)
	return b
}

// enrolment has a TPM vouch for a new key in it.
func enrolment(t *testing.T, chip *tpm.TPM, id string) (*tpm.Key, *tpm.Enrolment) {
	t.Helper()
	key, err := chip.CreateKey(nil)
	must(t, err)
	csr, err := issuance.NewCSR(key, id)
	must(t, err)
	e, err := key.Enrol(csr)
	must(t, err)
	return key, e
}

// challenge sends a TPM's word and returns the challenge to it.
func challenge(t *testing.T, client *est.Client, request attestation.Request) (attestation.Challenge, error) {
	t.Helper()
	message, err := json.Marshal(request)
	must(t, err)
	reply, err := client.Challenge(t.Context(), message)
	if err != nil {
		return attestation.Challenge{}, err
	}
	c, err := attestation.ParseChallenge(reply)
	must(t, err)
	return c, nil
}

// answer has a TPM answer the challenge, bound to the hub.
func answer(t *testing.T, client *est.Client, e *tpm.Enrolment, c attestation.Challenge) []byte {
	t.Helper()
	binding, err := client.ServerBinding(t.Context())
	must(t, err)
	a, err := e.Answer(c, binding)
	must(t, err)
	message, err := json.Marshal(a)
	must(t, err)
	return message
}

// renewAttested goes the whole way.
func (b board) renewAttested(t *testing.T, h *hubtest.Hub) (board, error) {
	t.Helper()
	client := estClient(t, h, b.Credential)
	key, e := enrolment(t, b.chip, b.Identity.ID)
	c, err := challenge(t, client, e.Request())
	if err != nil {
		return b, err
	}
	leaf, err := client.ReenrollAttested(t.Context(), answer(t, client, e, c), key.Public())
	if err != nil {
		return b, err
	}
	next := b
	next.Key, next.Leaf, next.Issuer = key, leaf, h.Fleet.Operational.Certificate()
	next.Certificate = tls.Certificate{Certificate: [][]byte{leaf.Raw, next.Issuer.Raw}, PrivateKey: key, Leaf: leaf}
	return next, nil
}

// refusedWith checks that the hub refused with that status, and a detail that has want in it.
func refusedWith(t *testing.T, err error, status int, want string) {
	t.Helper()
	refusal, ok := errors.AsType[*est.ServerError](err)
	if !ok || refusal.Status != status || !strings.Contains(refusal.Detail, want) {
		t.Errorf("want %d and %q, got %v", status, want, err)
	}
}

func TestRenewalWithTheTPMsWordKeepsTheProof(t *testing.T) {
	h := issuing(t, hubtest.DemandingTPM())
	b := newBoard(t, h, "pi-5")
	for round := range 2 { // the second with the renewed certificate, whose key is in the TPM
		next, err := b.renewAttested(t, h)
		must(t, err)
		if identity.ProtectionOf(next.Leaf) != identity.ProtectionTPM {
			t.Fatalf("round %d: the certificate says %s", round, identity.ProtectionOf(next.Leaf))
		}
		if d, err := h.Server().Fleet().Device(t.Context(), "pi-5"); err != nil || d.Protection != "tpm" || d.EK != b.ek {
			t.Errorf("round %d: %s, EK %s, %v", round, d.Protection, d.EK, err)
		}
		if !admitted(h, next.Credential) {
			t.Fatalf("round %d: the hub doesn't take what it issued", round)
		}
		b = next
	}
	h.Restart()
	if !admitted(h, b.Credential) {
		t.Error("refused after a restart")
	}
}

// The hub knows no manufacturer: a TPM with a certificate by one is known by its key like any
// other, and one that the registry doesn't have is refused in spite of its certificate.
func TestTPMWithACertificateIsKnownByItsKey(t *testing.T) {
	h := issuing(t, hubtest.DemandingTPM())
	maker := tpmtest.NewManufacturer(t)
	chip, ek := open(t, maker.Start(t))
	b := board{Credential: h.Fleet.Device("pi-5", certtest.WithTPM()), chip: chip, ek: ek}
	h.RegisterTPM(b.Credential, ek)
	if next, err := b.renewAttested(t, h); err != nil || identity.ProtectionOf(next.Leaf) != identity.ProtectionTPM {
		t.Fatal(err)
	}
	b.chip, _ = open(t, maker.Start(t))
	_, err := b.renewAttested(t, h)
	refusedWith(t, err, http.StatusForbidden, "is not device pi-5's")
}

func TestAttestedRenewalIsRefusedToOthers(t *testing.T) {
	h := issuing(t)
	b, other := newBoard(t, h, "pi-5"), newBoard(t, h, "pi-6")
	stranger, _ := newChip(t)
	software := h.Device("pi-7")
	client := estClient(t, h, b.Credential)

	t.Run("another device's TPM", func(t *testing.T) {
		_, e := enrolment(t, other.chip, "pi-5")
		_, err := challenge(t, client, e.Request())
		refusedWith(t, err, http.StatusForbidden, "is not device pi-5's")
	})
	t.Run("a TPM that nobody knows", func(t *testing.T) {
		_, e := enrolment(t, stranger, "pi-5")
		_, err := challenge(t, client, e.Request())
		refusedWith(t, err, http.StatusForbidden, "is not device pi-5's")
	})
	t.Run("a device without a TPM", func(t *testing.T) {
		_, e := enrolment(t, stranger, "pi-7")
		_, err := challenge(t, estClient(t, h, software), e.Request())
		refusedWith(t, err, http.StatusNotFound, "knows no TPM of device pi-7")
	})
	t.Run("a software key under the TPM's word", func(t *testing.T) {
		_, e := enrolment(t, b.chip, "pi-5")
		csr, err := issuance.NewCSR(newKey(t), "pi-5")
		must(t, err)
		request := e.Request()
		request.CSR = csr
		_, err = challenge(t, client, request)
		refusedWith(t, err, http.StatusForbidden, "certified for another EK")
	})
	t.Run("the EK of one with the word of another", func(t *testing.T) {
		_, mine := enrolment(t, b.chip, "pi-5")
		_, theirs := enrolment(t, stranger, "pi-5")
		request := theirs.Request()
		request.EKPublic, request.EKCertificate = mine.Request().EKPublic, mine.Request().EKCertificate
		_, err := challenge(t, client, request)
		refusedWith(t, err, http.StatusForbidden, "certified for another EK")
	})
	t.Run("another name", func(t *testing.T) {
		_, e := enrolment(t, b.chip, "pi-6")
		_, err := challenge(t, client, e.Request())
		refusedWith(t, err, http.StatusBadRequest, "asks for the common name")
	})
	t.Run("the answer in another device's name", func(t *testing.T) {
		key, e := enrolment(t, b.chip, "")
		c, err := challenge(t, client, e.Request())
		must(t, err)
		theirs := estClient(t, h, other.Credential)
		_, err = theirs.ReenrollAttested(t.Context(), answer(t, theirs, e, c), key.Public())
		refusedWith(t, err, http.StatusForbidden, "is not device pi-6's")
	})
	t.Run("an answer twice", func(t *testing.T) {
		b := newBoard(t, h, "pi-8")
		client := estClient(t, h, b.Credential)
		key, e := enrolment(t, b.chip, "pi-8")
		c, err := challenge(t, client, e.Request())
		must(t, err)
		message := answer(t, client, e, c)
		_, err = client.ReenrollAttested(t.Context(), message, key.Public())
		must(t, err)
		_, err = client.ReenrollAttested(t.Context(), message, key.Public())
		refusedWith(t, err, http.StatusConflict, "answered before")
	})
	t.Run("an answer for another server", func(t *testing.T) {
		key, e := enrolment(t, b.chip, "pi-5")
		c, err := challenge(t, client, e.Request())
		must(t, err)
		a, err := e.Answer(c, est.Binding(h.Fleet.Server("elsewhere").Leaf))
		must(t, err)
		message, err := json.Marshal(a)
		must(t, err)
		_, err = client.ReenrollAttested(t.Context(), message, key.Public())
		refusedWith(t, err, http.StatusConflict, "another connection")
	})
	t.Run("an answer to a challenge of before the restart", func(t *testing.T) {
		key, e := enrolment(t, b.chip, "pi-5")
		c, err := challenge(t, client, e.Request())
		must(t, err)
		message := answer(t, client, e, c)
		h.Restart()
		_, err = estClient(t, h, b.Credential).ReenrollAttested(t.Context(), message, key.Public())
		refusedWith(t, err, http.StatusConflict, "no such challenge")
	})
	t.Run("nobody", func(t *testing.T) {
		_, e := enrolment(t, b.chip, "pi-5")
		anonymous := h.Fleet.Device("pi-5")
		anonymous.Certificate = tls.Certificate{}
		nobody, err := est.NewClient(est.ClientConfig{URL: "https://" + h.HTTPSAddr(), TLS: anonymous.ClientConfig(), Token: "x"})
		must(t, err)
		t.Cleanup(nobody.Close)
		_, err = challenge(t, nobody, e.Request())
		refusedWith(t, err, http.StatusForbidden, "none was presented")
	})
	t.Run("a suspended device", func(t *testing.T) {
		_, err := h.Server().Fleet().Suspend(t.Context(), "pi-6", "", fleet.Actor{Name: "test"})
		must(t, err)
		_, e := enrolment(t, other.chip, "pi-6")
		_, err = challenge(t, estClient(t, h, other.Credential), e.Request())
		refusedWith(t, err, http.StatusForbidden, "suspended")
	})
	for _, id := range []string{"pi-5", "pi-6", "pi-7"} {
		if n := usable(t, h, id); n != 1 {
			t.Errorf("%s has %d certificates", id, n)
		}
	}
}

// A model whose keys must be in a TPM loses that by no renewal, and its device is told why.
func TestModelThatDemandsATPMRenewsAttestedOnly(t *testing.T) {
	h := issuing(t, hubtest.DemandingTPM())
	b := newBoard(t, h, "pi-5")
	_, err := renew(t, h, b.Credential, newKey(t))
	refusedWith(t, err, http.StatusForbidden, "must be in a TPM")
	if n := usable(t, h, "pi-5"); n != 1 {
		t.Errorf("%d certificates", n)
	}
	found := false
	answer, err := h.Operator().Why(t.Context(), "pi-5")
	must(t, err)
	for _, e := range answer.Events {
		found = found || e.Reason == fleet.RefusedForProtection
	}
	if !found {
		t.Errorf("hub why doesn't tell: %+v", answer)
	}
}
