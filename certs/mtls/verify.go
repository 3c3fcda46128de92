package mtls

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
)

// Reason is why a peer was refused, as a word for logs and metric labels.
type Reason string

// The reasons that a certificate alone can give. Package admission adds those of the
// registry.
const (
	ReasonNoCertificate Reason = "no-certificate"
	ReasonUnknownIssuer Reason = "unknown-issuer"
	ReasonExpired       Reason = "expired"
	ReasonNotYetValid   Reason = "not-yet-valid"
	ReasonUsage         Reason = "wrong-usage"
	ReasonIdentity      Reason = "no-identity"
	ReasonTrustDomain   Reason = "trust-domain"
	ReasonRole          Reason = "wrong-role"
	ReasonChain         Reason = "bad-chain"
)

// Refusal is the error of a refused peer.
type Refusal struct {
	Reason   Reason
	Identity identity.Identity // zero if the certificate was refused before it named one
	Detail   string            // one sentence for the log
}

// Error returns the reason and the sentence.
func (r *Refusal) Error() string { return string(r.Reason) + ": " + r.Detail }

// Trust is what a peer's certificate is held against: issuing CAs, each signed by a
// root. A peer's issuer must be one of Issuers; a root's signature alone is not
// enough, so that removing an issuer here is removing its trust.
type Trust struct {
	TrustDomain string
	Roots       []*x509.Certificate
	Issuers     []*x509.Certificate
}

// anchor is one trusted issuing CA, made ready to verify leaves.
type anchor struct {
	cert *x509.Certificate
	kind identity.IssuerKind
	pool *x509.CertPool // cert alone
}

type snapshot struct {
	trust   Trust
	anchors map[string][]anchor // by subject key identifier
	chains  chainCache
}

// Verifier decides whose certificate is good. It is safe for concurrent use; SetTrust
// takes effect for the next verification.
type Verifier struct {
	current atomic.Pointer[snapshot]
	now     func() time.Time
}

// NewVerifier returns a verifier with that trust, or an error naming an issuer that
// no root signed. A nil now is time.Now.
func NewVerifier(trust Trust, now func() time.Time) (*Verifier, error) {
	if now == nil {
		now = time.Now
	}
	v := &Verifier{now: now}
	return v, v.SetTrust(trust)
}

// Trust returns the trust in force; nobody may change it.
func (v *Verifier) Trust() Trust { return v.current.Load().trust }

// SetTrust replaces the trust. On an error the old one stays.
func (v *Verifier) SetTrust(trust Trust) error {
	roots := x509.NewCertPool()
	for _, r := range trust.Roots {
		roots.AddCert(r)
	}
	next := &snapshot{trust: trust, anchors: make(map[string][]anchor, len(trust.Issuers))}
	for _, c := range trust.Issuers {
		kind, err := identity.KindOf(c)
		if err != nil {
			return err
		}
		if kind == identity.KindRoot {
			return fmt.Errorf("%q is a root, which issues no leaf certificates", c.Subject.CommonName)
		}
		if len(c.SubjectKeyId) == 0 {
			return fmt.Errorf("issuer %q has no subject key identifier", c.Subject.CommonName)
		}
		// At its first moment: an issuer that has expired since vouches for what it signed in its time.
		if _, err := c.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: c.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			return fmt.Errorf("issuer %q is not signed by a trusted root: %w", c.Subject.CommonName, err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(c)
		key := string(c.SubjectKeyId)
		next.anchors[key] = append(next.anchors[key], anchor{cert: c, kind: kind, pool: pool})
	}
	v.current.Store(next)
	return nil
}

// Peer is a verified peer. It is immutable.
type Peer struct {
	Identity    identity.Identity
	Certificate *x509.Certificate
	Issuer      *x509.Certificate
	Resumed     bool // by a TLS session ticket

	fingerprint [sha256.Size]byte // of the certificate, as the verifier found it
}

// Fingerprint returns the SHA-256 of the certificate's DER; zero without one.
func (p *Peer) Fingerprint() [sha256.Size]byte {
	if p.fingerprint == ([sha256.Size]byte{}) && p.Certificate != nil {
		return sha256.Sum256(p.Certificate.Raw)
	}
	return p.fingerprint
}

// Verify checks the peer of a TLS connection and that its role is one of roles. Called
// from tls.Config.VerifyConnection it runs on full and resumed handshakes alike, and
// repeats every check on both. Its error is a *Refusal.
func (v *Verifier) Verify(cs tls.ConnectionState, roles ...identity.Role) (Peer, error) {
	if len(cs.PeerCertificates) == 0 {
		return Peer{}, &Refusal{Reason: ReasonNoCertificate, Detail: "the peer presented no certificate"}
	}
	peer, err := v.VerifyCertificate(cs.PeerCertificates[0], x509.ExtKeyUsageClientAuth, roles...)
	peer.Resumed = cs.DidResume
	return peer, err
}

// VerifyCertificate checks a leaf certificate alone: other certificates that its
// bearer sent don't matter, since its issuer is known here or not trusted.
//
// An issuing CA is held to its validity at the time of issuance: a station's authority
// is short, its boards' certificates are long-lived. That a leaf can't be backdated by
// a stolen old key is the registry's to see.
func (v *Verifier) VerifyCertificate(leaf *x509.Certificate, usage x509.ExtKeyUsage, roles ...identity.Role) (Peer, error) {
	chain, err := v.current.Load().chain(leaf, usage)
	if err != nil {
		return Peer{}, err
	}
	refuse := func(reason Reason, format string, args ...any) (Peer, error) {
		return Peer{}, &Refusal{Reason: reason, Identity: chain.identity, Detail: fmt.Sprintf(format, args...)}
	}
	if now := v.now(); now.After(leaf.NotAfter) {
		return refuse(ReasonExpired, "the certificate expired on %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	} else if now.Before(leaf.NotBefore) {
		return refuse(ReasonNotYetValid, "the certificate is valid from %s; one of the two clocks is wrong", leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	if !slices.Contains(roles, chain.identity.Role) {
		return refuse(ReasonRole, "%s certificates are not accepted here", chain.identity.Role)
	}
	return Peer{Identity: chain.identity, Certificate: leaf, Issuer: chain.issuer, fingerprint: chain.fingerprint}, nil
}

func unknownIssuer(leaf *x509.Certificate) error {
	return &Refusal{Reason: ReasonUnknownIssuer, Detail: fmt.Sprintf("no trusted issuing CA signed the certificate of %.80q (issuer %.120q)", leaf.Subject.CommonName, leaf.Issuer)}
}

// issuer returns the trusted CA that claims to have signed leaf, by key identifier,
// and did: the signature is what picks among several of one identifier, and among those
// of one key, which an authority and its renewal are, that it hadn't ended yet.
func (s *snapshot) issuer(leaf *x509.Certificate) *anchor {
	candidates := s.anchors[string(leaf.AuthorityKeyId)]
	var signer *anchor
	for i := range candidates {
		c := &candidates[i]
		if (len(candidates) > 1 || string(leaf.RawIssuer) != string(c.cert.RawSubject)) && leaf.CheckSignatureFrom(c.cert) != nil {
			continue
		}
		if signer == nil || leaf.NotBefore.After(signer.cert.NotAfter) {
			signer = c
		}
	}
	return signer
}
