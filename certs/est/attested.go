package est

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
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

func (h *Handler) challenge(w http.ResponseWriter, r *http.Request) error {
	if h.config.Challenge == nil {
		return errNoAttestation()
	}
	x, err := h.exchange(w, r)
	if err != nil {
		return err
	}
	message, err := h.config.Challenge(r.Context(), x)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", typeExchange)
	w.Write(message) // a client that is gone begins again
	return nil
}

func (h *Handler) enrollAttested(w http.ResponseWriter, r *http.Request) error {
	if h.config.EnrollAttested == nil {
		return errNoAttestation()
	}
	x, err := h.exchange(w, r)
	if err != nil {
		return err
	}
	answer, err := h.config.EnrollAttested(r.Context(), x)
	if err != nil {
		return err
	}
	return h.deliver(w, answer)
}

func (h *Handler) reenrollAttested(w http.ResponseWriter, r *http.Request) error {
	if h.config.ReenrollAttested == nil {
		return errNoAttestation()
	}
	if len(r.TLS.PeerCertificates) == 0 {
		return errNoCertificate()
	}
	x, err := h.exchange(w, r)
	if err != nil {
		return err
	}
	answer, err := h.config.ReenrollAttested(r.Context(), x)
	if err != nil {
		return err
	}
	return h.deliver(w, answer)
}

func errNoAttestation() error {
	return &Refusal{Status: http.StatusForbidden, Reason: "no-attestation", Detail: "no TPM is asked to vouch for a key here: use simpleenroll, or simplereenroll"}
}

func errNoCertificate() error {
	return &Refusal{Status: http.StatusForbidden, Reason: "no-certificate", Detail: "a certificate is renewed over TLS with that certificate, and none was presented"}
}

func (h *Handler) exchange(w http.ResponseWriter, r *http.Request) (Exchange, error) {
	if err := credential(r); err != nil {
		return Exchange{}, err
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != typeExchange {
		return Exchange{}, &Refusal{Status: http.StatusUnsupportedMediaType, Reason: "media-type", Detail: "the content type must be " + typeExchange}
	}
	body, err := readBody(w, r, maxExchange)
	x := Exchange{JSON: body, Token: token(r), Address: r.RemoteAddr}
	if peers := r.TLS.PeerCertificates; len(peers) > 0 {
		x.Peer = peers[0]
	}
	return x, err
}

// credential refuses who brings none, before a body is read.
func credential(r *http.Request) error {
	if token(r) == "" && len(r.TLS.PeerCertificates) == 0 {
		return &Refusal{Status: http.StatusUnauthorized, Reason: "no-credential", Detail: "an enrolment token (HTTP Basic, as the password) or a claim certificate (TLS) is required"}
	}
	return nil
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, &Refusal{Status: http.StatusRequestEntityTooLarge, Reason: "size", Detail: fmt.Sprintf("a request has at most %d bytes", large.Limit)}
	}
	if err != nil {
		return nil, &Refusal{Status: http.StatusBadRequest, Reason: "cut-short", Detail: "the request was cut short"}
	}
	return body, nil
}
