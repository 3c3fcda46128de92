package mtls

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"

	"github.com/fleethub/fleethub/certs/identity"
)

// chain is what verifying a leaf against one trust has found, once and for all: the
// parts of the verdict that time does not change.
type chain struct {
	identity    identity.Identity
	issuer      *x509.Certificate
	fingerprint [sha256.Size]byte // of the leaf's DER
}

// maxChains bounds a chainCache. Each entry takes some 300 bytes.
const maxChains = 1 << 16

// chainCache remembers the chains of leaves that were found good, by the SHA-256 of
// their DER, so that a board that reconnects costs one signature check and not two. It
// belongs to one snapshot of the trust and goes with it. Whether a certificate has
// expired or been revoked is looked at every time and not cached. The zero value is
// empty.
type chainCache struct {
	mu     sync.RWMutex // guards chains
	chains map[chainKey]chain
}

type chainKey struct {
	fingerprint [sha256.Size]byte
	usage       x509.ExtKeyUsage
}

func (c *chainCache) get(k chainKey) (chain, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	found, ok := c.chains[k]
	return found, ok
}

// put remembers a chain. A full cache forgets an arbitrary one: those of boards that
// come back often return at once.
func (c *chainCache) put(k chainKey, found chain) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.chains == nil {
		c.chains = make(map[chainKey]chain)
	}
	if len(c.chains) >= maxChains {
		for old := range c.chains {
			delete(c.chains, old)
			break
		}
	}
	c.chains[k] = found
}

// chain verifies a leaf against the trust, or remembers that it was verified. Its
// error is a *Refusal.
func (s *snapshot) chain(leaf *x509.Certificate, usage x509.ExtKeyUsage) (chain, error) {
	key := chainKey{sha256.Sum256(leaf.Raw), usage}
	if found, ok := s.chains.get(key); ok {
		return found, nil
	}
	found, err := s.verify(leaf, usage)
	if err == nil {
		found.fingerprint = key.fingerprint
		s.chains.put(key, found)
	}
	return found, err
}

func (s *snapshot) verify(leaf *x509.Certificate, usage x509.ExtKeyUsage) (chain, error) {
	// A stranger's certificate is refused for its issuer before its form.
	issuer := s.issuer(leaf)
	if issuer == nil {
		return chain{}, unknownIssuer(leaf)
	}
	id, err := identity.FromCertificate(leaf)
	if err != nil {
		return chain{}, &Refusal{Reason: ReasonIdentity, Detail: err.Error()}
	}
	refuse := func(reason Reason, format string, args ...any) (chain, error) {
		return chain{}, &Refusal{Reason: reason, Identity: id, Detail: fmt.Sprintf(format, args...)}
	}
	at := leaf.NotBefore
	if at.Before(issuer.cert.NotBefore) { // a renewed authority vouches for what the same key signed before
		at = issuer.cert.NotBefore
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: issuer.pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.IncompatibleUsage {
		return refuse(ReasonUsage, "the certificate is not for this use (extended key usage)")
	}
	if err != nil {
		return refuse(ReasonChain, "%v", err)
	}
	if id.TrustDomain != s.trust.TrustDomain {
		return refuse(ReasonTrustDomain, "%s is of another trust domain than %s", id, s.trust.TrustDomain)
	}
	if !issuer.kind.MayIssue(id.Role) {
		return refuse(ReasonRole, "%s is signed by %q, a %s, which may not sign that role", id, issuer.cert.Subject.CommonName, issuer.kind)
	}
	return chain{identity: id, issuer: issuer.cert}, nil
}
