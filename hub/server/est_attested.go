package server

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/hub/fleet"
)

// A device whose key is in a TPM renews with the TPM's word for the new key, so that its
// certificate goes on saying where the key is:
//
//  1. It sends what its TPM says of the new key (POST tpm/challenge), over TLS with its
//     current certificate. 2. The hub looks whether that device may renew, and whether the
//     endorsement key is the one that the registry has for it. 3. It reads the TPM's words,
//     and makes a challenge that only a TPM with that endorsement key and that attestation
//     key can open. 4. The device sends the answer (POST tpm/reenroll), bound to the hub's
//     certificate. 5. The challenge is spent, whatever the answer; if the answer is right,
//     reenroll's steps follow.
//
// The hub trusts no manufacturer: what it knows is that this is the TPM which a station
// found genuine. Challenges are in memory; a restart costs the device a second attempt.

// newTPMVerifier returns what judges TPMs' words: those of TPMs in the registry.
func (h *Hub) newTPMVerifier() (*attestation.Verifier, error) {
	return attestation.NewVerifier(attestation.Config{
		Allowed: func(ek [sha256.Size]byte) bool {
			return h.fleet.Endorsed(context.Background(), hex.EncodeToString(ek[:]))
		},
		Now: h.now,
	})
}

// challengeTPM answers the first message, of a device that may renew.
func (h *Hub) challengeTPM(ctx context.Context, x est.Exchange) ([]byte, error) {
	if x.Peer == nil {
		return nil, h.refuseEST(&est.Refusal{Status: http.StatusForbidden, Reason: "no-certificate", Detail: "a certificate is renewed over TLS with that certificate, and none was presented"})
	}
	id, err := h.identify(x.Peer)
	if err != nil {
		return nil, h.refuseRenewal(x.Address, id, err)
	}
	challenge, err := h.challengeFor(ctx, id, x)
	if r, ok := errors.AsType[*fleet.RenewalRefusal](err); ok && r.Reason == fleet.RefusedForNoTPM {
		return nil, h.refuseEST(err) // it renews without, which is nothing to write down
	}
	if err != nil {
		return nil, h.refuseRenewal(x.Address, id, err)
	}
	return json.Marshal(challenge)
}

func (h *Hub) challengeFor(ctx context.Context, id identity.Identity, x est.Exchange) (attestation.Challenge, error) {
	var none attestation.Challenge
	request, err := attestation.ParseRequest(x.JSON)
	if err != nil {
		return none, err
	}
	ek, err := request.EKHash()
	if err != nil {
		return none, err
	}
	csr, err := renewalCSR(request.CSR, x.Peer)
	if err != nil {
		return none, err
	}
	// As claimed: the work below is for devices only that would get a certificate.
	claim := fleet.Renewal{Device: id.ID, Presented: x.Peer, Key: csr.RawSubjectPublicKeyInfo, EK: hex.EncodeToString(ek[:])}
	if err := h.fleet.CheckRenewal(ctx, claim); err != nil {
		return none, err
	}
	binding, err := h.binding()
	if err != nil {
		return none, err
	}
	return h.tpms.Begin(request, binding)
}

// reenrollAttested is reenroll for a key that a TPM has vouched for.
func (h *Hub) reenrollAttested(ctx context.Context, x est.Exchange) (est.Answer, error) {
	evidence, err := h.finishTPM(x.JSON)
	if err != nil {
		id, unknown := h.identify(x.Peer)
		if unknown != nil {
			err = unknown
		}
		return est.Answer{}, h.refuseRenewal(x.Address, id, err)
	}
	csr, err := renewalCSR(evidence.CSR.Raw, x.Peer)
	if err != nil {
		return est.Answer{}, h.refuseEST(err)
	}
	// Whose TPM it is, the fleet looks at: the challenge may have been another device's.
	return h.renewFor(ctx, csr, fleet.Renewal{Presented: x.Peer, Address: x.Address, EK: evidence.EK()})
}

// finishTPM judges a TPM's answer to its challenge.
func (h *Hub) finishTPM(message []byte) (attestation.Evidence, error) {
	answer, err := attestation.ParseAnswer(message)
	if err != nil {
		return attestation.Evidence{}, err
	}
	binding, err := h.binding()
	if err != nil {
		return attestation.Evidence{}, err
	}
	return h.tpms.Finish(answer, binding)
}

// renewalCSR reads a certificate request as the handler does for those that come without
// a TPM's word.
func renewalCSR(der []byte, current *x509.Certificate) (*x509.CertificateRequest, error) {
	csr, err := issuance.ParseCSR(der)
	if err != nil {
		return nil, &est.Refusal{Status: http.StatusBadRequest, Reason: "request", Detail: err.Error()}
	}
	return csr, est.CheckRenewal(csr, current)
}

// binding is what a TPM's answer is bound to: the hub's certificate. A connection that was
// made with a former one is told to begin again.
func (h *Hub) binding() ([]byte, error) {
	own, err := h.certificate.Certificate()
	if err != nil {
		return nil, err
	}
	return est.Binding(own.Leaf), nil
}

// statusOfTPM returns the HTTP status of a refused attestation. What another attempt may
// mend is no 403: a device that hears that goes on without its TPM's word.
func statusOfTPM(reason attestation.Reason) int {
	switch reason {
	case attestation.Malformed:
		return http.StatusBadRequest
	case attestation.Busy:
		return http.StatusServiceUnavailable
	case attestation.UnknownChallenge, attestation.Expired, attestation.Answered, attestation.MixedUp, attestation.Relayed:
		return http.StatusConflict
	}
	return http.StatusForbidden
}
