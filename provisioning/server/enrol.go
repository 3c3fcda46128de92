package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/station"
)

// retryBusy is what a board is told to wait that meets another request of its own, or a
// full store of challenges; retryAuthority one that meets a station that may not issue.
const (
	retryBusy      = time.Second
	retryAuthority = time.Minute
)

func (s *Server) enroll(ctx context.Context, r est.Request) (est.Answer, error) {
	return s.enrol(ctx, r.Address, station.Applicant{CSR: r.CSR, Token: secret(r.Token), Claim: r.Peer})
}

func (s *Server) reenroll(ctx context.Context, r est.Request) (est.Answer, error) {
	return s.enrol(ctx, r.Address, station.Applicant{CSR: r.CSR, Current: r.Peer})
}

// challenge begins an attested enrolment. Only who has a credential that is still good
// is worth the work.
func (s *Server) challenge(ctx context.Context, x est.Exchange) ([]byte, error) {
	request, err := attestation.ParseRequest(x.JSON)
	if err != nil {
		return nil, refuse(ctx, err)
	}
	csr, err := issuance.ParseCSR(request.CSR)
	if err != nil {
		return nil, refuse(ctx, err)
	}
	if err := s.config.Station.Admits(applicant(csr, x), ledger.TPM); err != nil {
		return nil, refuse(ctx, err)
	}
	challenge, err := s.config.Attestation.Begin(request, s.binding)
	if err != nil {
		return nil, refuse(ctx, err)
	}
	return json.Marshal(challenge)
}

// applicant is who begins an attested enrolment. A claim certificate is by its own key, and
// one that is to be replaced is by the station's.
func applicant(csr *x509.CertificateRequest, x est.Exchange) station.Applicant {
	if x.Token == "" && x.Peer != nil && !bytes.Equal(x.Peer.RawIssuer, x.Peer.RawSubject) {
		return station.Applicant{CSR: csr, Current: x.Peer}
	}
	return station.Applicant{CSR: csr, Token: secret(x.Token), Claim: x.Peer}
}

func (s *Server) enrollAttested(ctx context.Context, x est.Exchange) (est.Answer, error) {
	csr, ek, err := s.proved(x)
	if err != nil {
		return est.Answer{}, refuse(ctx, err)
	}
	return s.enrol(ctx, x.Address, station.Applicant{CSR: csr, Token: secret(x.Token), Claim: x.Peer, EK: ek})
}

func (s *Server) reenrollAttested(ctx context.Context, x est.Exchange) (est.Answer, error) {
	csr, ek, err := s.proved(x)
	if err == nil {
		err = est.CheckRenewal(csr, x.Peer)
	}
	if err != nil {
		return est.Answer{}, refuse(ctx, err)
	}
	return s.enrol(ctx, x.Address, station.Applicant{CSR: csr, Current: x.Peer, EK: ek})
}

// proved judges the second message of an attested enrolment: it returns the request for the
// key that is in a TPM, and whose TPM that is.
func (s *Server) proved(x est.Exchange) (csr *x509.CertificateRequest, ek string, err error) {
	answer, err := attestation.ParseAnswer(x.JSON)
	if err != nil {
		return nil, "", err
	}
	evidence, err := s.config.Attestation.Finish(answer, s.binding)
	if err != nil {
		return nil, "", err
	}
	csr, err = issuance.ParseCSR(evidence.CSR.Raw)
	return csr, evidence.EK(), err
}

// secret takes a token as it was told or its secret alone.
func secret(text string) string {
	if t, err := est.ParseToken(text); err == nil {
		return t.Secret
	}
	return text
}

func (s *Server) enrol(ctx context.Context, address string, p station.Applicant) (est.Answer, error) {
	e, err := s.config.Station.Enrol(p)
	if err != nil {
		return est.Answer{}, refuse(ctx, err)
	}
	serial := identity.SerialString(e.Certificate.SerialNumber)
	s.config.Log.Info("device enrolled", "device", e.ID, "serial", serial, "protection", e.Protection, "address", address, "repeated", e.Repeated, "supersedes", e.Supersedes)
	return est.Answer{Certificate: e.Certificate, Sent: func() {
		if err := s.config.Station.Delivered(e.ID); err != nil {
			s.config.Log.Error("the certificate was delivered, and the ledger doesn't say so", "device", e.ID, "error", err)
		}
		s.config.OnEvent(Event{At: time.Now(), Address: address, ID: e.ID, Serial: serial, Protection: string(e.Protection), Repeated: e.Repeated})
	}}, nil
}

// refuse gives an error its status code, and leaves its reason for the request's event.
// One that is the station's own fault stays as it is, for the log.
func refuse(ctx context.Context, err error) error {
	refusal := refusalOf(err)
	if refusal == nil {
		return err
	}
	if t, ok := ctx.Value(toldKey{}).(*told); ok {
		t.reason = refusal.Reason
	}
	return refusal
}

func refusalOf(err error) *est.Refusal {
	refusal := func(status int, reason string, retry time.Duration) *est.Refusal {
		return &est.Refusal{Status: status, Reason: reason, Detail: err.Error(), RetryAfter: retry}
	}
	if r, ok := errors.AsType[*est.Refusal](err); ok {
		return r
	}
	if r, ok := errors.AsType[*attestation.Refusal](err); ok {
		switch {
		case errors.Is(err, attestation.Malformed):
			return refusal(http.StatusBadRequest, string(r.Reason), 0)
		case errors.Is(err, attestation.Busy):
			return refusal(http.StatusServiceUnavailable, string(r.Reason), retryBusy)
		}
		return refusal(http.StatusForbidden, string(r.Reason), 0)
	}
	switch {
	case errors.Is(err, ledger.ErrCredential):
		return refusal(http.StatusUnauthorized, "credential", 0)
	case errors.Is(err, ledger.ErrBusy):
		return refusal(http.StatusServiceUnavailable, "busy", retryBusy)
	case errors.Is(err, ledger.ErrBudget):
		return refusal(http.StatusForbidden, "budget", 0)
	case errors.Is(err, ledger.ErrConflict):
		return refusal(http.StatusForbidden, "conflict", 0)
	case errors.Is(err, ledger.ErrRefused):
		return refusal(http.StatusForbidden, "order", 0)
	case errors.Is(err, station.ErrDenied), errors.Is(err, issuance.ErrAuthority):
		return &est.Refusal{
			Status: http.StatusServiceUnavailable, Reason: "authority", RetryAfter: retryAuthority,
			Detail: fmt.Sprintf("the station may not issue now: %v", err),
		}
	case errors.Is(err, issuance.ErrKey), errors.Is(err, issuance.ErrRequest):
		return refusal(http.StatusBadRequest, "request", 0)
	}
	return nil
}
