package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/hub/fleet"
)

// keyAway is what a device is told to wait while the hub's issuing key is not here.
const keyAway = time.Hour

// keyUnusable is the same while the key is there and somebody has to see to it.
const keyUnusable = 5 * time.Minute

// newEST returns the operations by which devices renew their certificates (RFC 7030):
// /cacerts and /csrattrs for anybody, /simplereenroll for a device with the certificate
// it has, and the same with its TPM's word for the new key. First certificates are a factory station's to issue.
func (h *Hub) newEST() *est.Handler {
	return est.NewHandler(est.Config{
		CACerts: h.caCerts, ParseCSR: issuance.ParseCSR, Reenroll: h.reenroll,
		Challenge: h.challengeTPM, ReenrollAttested: h.reenrollAttested, Now: h.now, Log: h.log,
	})
}

// withEST puts the operations of EST beside what the API serves.
func withEST(operations, api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, est.Prefix) {
			operations.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

// apiTLS is the policy of the HTTPS door. A client may come without a certificate: what
// serves it asks each request for the one it needs, and /cacerts needs none (RFC 7030
// §4.1.1). One that is presented must be of this fleet.
func (h *Hub) apiTLS() *tls.Config {
	policy := mtls.ServerConfig(mtls.ServerOptions{Certificate: h.presented, Verify: h.verifyAPI})
	policy.ClientAuth = tls.RequestClientCert
	return policy
}

// caCerts returns the roots, and the CAs that sign, and have signed, what devices get here.
func (h *Hub) caCerts() []*x509.Certificate {
	trust := h.verifier.Trust()
	certs := append([]*x509.Certificate{}, trust.Roots...)
	for _, c := range trust.Issuers {
		if isOperational(c) {
			certs = append(certs, c)
		}
	}
	return certs
}

// reenroll gives a device another certificate for a new key:
//
// 1. The certificate presented is verified, whose key the handshake has proved: a
// device's, by an issuer trusted now, and valid, or expired no longer ago than the grace.
// 2. If it is itself a renewal, its use supersedes what it took the place of. 3. The
// fleet looks whether that device may renew with it, 4. the hub's issuing CA signs, and 5.
// the fleet makes it durable, unless the device was cut off meanwhile. 6. It goes out.
// After a crash before 5 nobody has it; after 5, who asks again with the same key hears
// the same.
func (h *Hub) reenroll(ctx context.Context, r est.Request) (est.Answer, error) {
	return h.renewFor(ctx, r.CSR, fleet.Renewal{Presented: r.Peer, Address: r.Address})
}

// renewFor is reenroll for a request that may have its TPM's word (Renewal.EK). The rest
// of the renewal is filled in here.
func (h *Hub) renewFor(ctx context.Context, csr *x509.CertificateRequest, r fleet.Renewal) (est.Answer, error) {
	id, err := h.identify(r.Presented)
	if err == nil {
		err = h.settle(ctx, id.ID, r.Presented)
	}
	if err != nil {
		return est.Answer{}, h.refuseRenewal(r.Address, id, err)
	}
	r.Device, r.Key = id.ID, csr.RawSubjectPublicKeyInfo
	request := issuance.Request{Profile: issuance.DeviceProfile(), Identity: id, PublicKey: csr.PublicKey, Valid: h.config.Renewal.Lifetime}
	if r.EK != "" {
		request.Protection = identity.ProtectionTPM
	}
	leaf, err := h.fleet.Renew(ctx, r, func() (*x509.Certificate, error) { return h.issue(request) })
	if err != nil {
		return est.Answer{}, h.refuseRenewal(r.Address, id, err)
	}
	h.log.Info("certificate renewed", "device", id.ID, "serial", identity.SerialString(leaf.SerialNumber), "until", leaf.NotAfter,
		"protection", identity.ProtectionOf(leaf), "address", r.Address)
	return est.Answer{Certificate: leaf}, nil
}

// identify returns the device of a certificate that may be renewed.
func (h *Hub) identify(leaf *x509.Certificate) (identity.Identity, error) {
	peer, err := h.verifier.VerifyCertificate(leaf, x509.ExtKeyUsageClientAuth, identity.RoleDevice)
	if refusal, ok := errors.AsType[*mtls.Refusal](err); ok && h.inGrace(leaf, refusal) {
		return refusal.Identity, nil
	}
	if err == nil {
		err = h.refusedByList(peer)
	}
	return peer.Identity, err
}

// inGrace reports whether a certificate was refused for nothing but its end, is a
// device's, and ended no longer ago than may be forgiven. Such a device reaches its
// renewal and nothing else.
func (h *Hub) inGrace(leaf *x509.Certificate, refusal *mtls.Refusal) bool {
	return refusal.Reason == mtls.ReasonExpired && refusal.Identity.Role == identity.RoleDevice && !h.now().After(leaf.NotAfter.Add(h.config.Renewal.Grace))
}

// issue signs a certificate of the hub's issuing CA for a device.
func (h *Hub) issue(r issuance.Request) (*x509.Certificate, error) {
	ca, err := h.issuer()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &est.Refusal{Status: http.StatusServiceUnavailable, Reason: "issuing-key", RetryAfter: keyAway, Detail: "the hub's issuing key is not at the hub now; the certificate you have stays as it is, ask again later"}
	}
	if err != nil {
		h.log.Error("no certificate can be renewed", "error", err)
		return nil, &est.Refusal{Status: http.StatusServiceUnavailable, Reason: "issuing-key", RetryAfter: keyUnusable, Detail: "the hub's issuing key can't be used now; the certificate you have stays as it is, ask again later"}
	}
	leaf, err := ca.At(h.now).Issue(r)
	if errors.Is(err, issuance.ErrAuthority) {
		h.log.Error("no certificate can be renewed", "error", err)
		return nil, &est.Refusal{Status: http.StatusServiceUnavailable, Reason: "issuing-ca", RetryAfter: keyAway, Detail: "the hub's issuing CA may not sign now; ask again later"}
	}
	return leaf, err
}

// refuseEST says a refusal in the terms of EST, and counts it. Other errors stay what
// they are.
func (h *Hub) refuseEST(err error) error {
	refusal, known := errors.AsType[*est.Refusal](err)
	if r, ok := errors.AsType[*mtls.Refusal](err); ok {
		refusal, known = &est.Refusal{Status: http.StatusForbidden, Reason: string(r.Reason), Detail: r.Detail}, true
	}
	if r, ok := errors.AsType[*attestation.Refusal](err); ok {
		refusal, known = &est.Refusal{Status: statusOfTPM(r.Reason), Reason: "tpm-" + string(r.Reason), Detail: r.Detail}, true
	}
	if r, ok := errors.AsType[*fleet.RenewalRefusal](err); ok {
		refusal, known = &est.Refusal{Status: http.StatusForbidden, Reason: r.Reason, Detail: r.Detail, RetryAfter: r.RetryAfter}, true
		switch r.Reason {
		case fleet.RefusedForKey:
			refusal.Status = http.StatusBadRequest
		case fleet.RefusedForNoTPM: // there is another way, and the client knows it by that
			refusal.Status = http.StatusNotFound
		case fleet.RefusedForRate:
			refusal.Status = http.StatusTooManyRequests
		}
	}
	if !known {
		return fmt.Errorf("renew: %w", err)
	}
	h.metrics.refused.WithLabelValues("est-" + refusal.Reason).Inc()
	return refusal
}
