package est

import (
	"crypto/x509"
	"net/http"
)

// Exchange is a message of a board's TPM with the credential it came with.
type Exchange struct {
	JSON    []byte
	Token   string            // as in Request
	Peer    *x509.Certificate // as in Request
	Address string            // as in Request
}

// The exchange's operations, its media type and the size of its messages.
const (
	opChallenge  = "tpm/challenge"
	opAttested   = "tpm/enroll"
	opReattested = "tpm/reenroll"
	typeExchange = "application/json"
	maxExchange  = 64 << 10
)

func (h *Handler) challenge(w http.ResponseWriter, r *http.Request, body []byte) error {
	message, err := h.config.Challenge(r.Context(), exchange(r, body))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", typeExchange)
	w.Write(message) // a client that is gone begins again
	return nil
}

func (h *Handler) enrollAttested(w http.ResponseWriter, r *http.Request, body []byte) error {
	answer, err := h.config.EnrollAttested(r.Context(), exchange(r, body))
	if err != nil {
		return err
	}
	return h.deliver(w, answer)
}

func (h *Handler) reenrollAttested(w http.ResponseWriter, r *http.Request, body []byte) error {
	answer, err := h.config.ReenrollAttested(r.Context(), exchange(r, body))
	if err != nil {
		return err
	}
	return h.deliver(w, answer)
}

// mayChallenge refuses, before a body is read, who gets nothing by the exchange: where no
// first certificates are issued, that is whoever has none.
func (h *Handler) mayChallenge(r *http.Request) error {
	switch {
	case h.config.Challenge == nil:
		return errNoAttestation()
	case h.config.EnrollAttested == nil:
		return certificate(r)
	}
	return credential(r)
}

func (h *Handler) mayEnrollAttested(r *http.Request) error {
	if h.config.EnrollAttested == nil {
		return errNoAttestation()
	}
	return credential(r)
}

func (h *Handler) mayReenrollAttested(r *http.Request) error {
	if h.config.ReenrollAttested == nil {
		return errNoAttestation()
	}
	return certificate(r)
}

func errNoAttestation() error {
	return &Refusal{Status: http.StatusForbidden, Reason: "no-attestation", Detail: "no TPM is asked to vouch for a key here: use simpleenroll, or simplereenroll"}
}

func exchange(r *http.Request, body []byte) Exchange {
	x := Exchange{JSON: body, Token: token(r), Address: r.RemoteAddr}
	if peers := r.TLS.PeerCertificates; len(peers) > 0 {
		x.Peer = peers[0]
	}
	return x
}

// certificate refuses who presented none, before a body is read.
func certificate(r *http.Request) error {
	if len(r.TLS.PeerCertificates) == 0 {
		return &Refusal{Status: http.StatusForbidden, Reason: "no-certificate", Detail: "a certificate is renewed over TLS with that certificate, and none was presented"}
	}
	return nil
}

// credential refuses who brings none, before a body is read.
func credential(r *http.Request) error {
	if token(r) == "" && len(r.TLS.PeerCertificates) == 0 {
		return &Refusal{Status: http.StatusUnauthorized, Reason: "no-credential", Detail: "an enrolment token (HTTP Basic, as the password) or a claim certificate (TLS) is required"}
	}
	return nil
}
