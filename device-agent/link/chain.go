package link

import (
	"crypto/tls"
	"crypto/x509"

	"github.com/fleethub/fleethub/certs/mtls"
)

// ChainMemory remembers whether the hub has said that of the device's chain it
// needs the leaf alone. Only Run's goroutine calls it.
type ChainMemory interface {
	// LeafSuffices reports whether it was said of this certificate.
	LeafSuffices(leaf *x509.Certificate) bool
	// Learn keeps that it was.
	Learn(leaf *x509.Certificate)
	// Forget drops what was learnt.
	Forget()
}

// ChainMode is how much of its certificate chain a device presents.
type ChainMode string

// The chain modes.
const (
	ChainFull ChainMode = "full" // the leaf and its issuer
	ChainLeaf ChainMode = "leaf" // the leaf alone
)

// chainChoice decides what to present. The whole chain always works; the leaf
// alone is presented once the hub has said that it will do, until a handshake
// with it is refused. It is owned by Run.
type chainChoice struct {
	memory ChainMemory
	cred   mtls.Credentials

	// doubt: the leaf alone was refused, and no attempt with the whole chain
	// has ended yet.
	doubt bool
	// deaf: the hub refused the leaf alone and took the chain, against its own
	// word. Asked again, it would say the same, and each full handshake would
	// cost a refused attempt first.
	deaf bool
}

// mode returns what to present of cred in the attempt that begins.
func (c *chainChoice) mode(cred mtls.Credentials) ChainMode {
	if c.cred.Leaf == nil || !c.cred.Leaf.Equal(cred.Leaf) {
		c.doubt, c.deaf = false, false
	}
	c.cred = cred
	if c.whole() && !c.memory.LeafSuffices(cred.Leaf) {
		return ChainFull
	}
	return ChainLeaf
}

// whole reports whether there is more than a leaf to present.
func (c *chainChoice) whole() bool { return len(c.cred.Certificate.Certificate) > 1 }

// ended takes note of how an attempt ended in which mode was presented;
// failure is nil if the hub took it.
func (c *chainChoice) ended(mode ChainMode, failure *Failure) {
	switch {
	case failure == nil:
		c.deaf = c.deaf || c.doubt && mode == ChainFull
		c.doubt = false
	case failure.Kind == KindLeaf:
		c.memory.Forget()
		c.doubt = true
	case failure.Kind == KindRefused:
		c.doubt = false // so the leaf alone wasn't the reason
	}
}

// unknown reports whether the hub should be asked if the leaf will do.
func (c *chainChoice) unknown() bool {
	return c.whole() && !c.deaf && !c.memory.LeafSuffices(c.cred.Leaf)
}

// learn keeps that the hub has said so.
func (c *chainChoice) learn() { c.memory.Learn(c.cred.Leaf) }

// presented returns what of cert the hub gets to see.
func presented(cert tls.Certificate, mode ChainMode) *tls.Certificate {
	if mode == ChainLeaf && len(cert.Certificate) > 1 {
		cert.Certificate = cert.Certificate[:1]
	}
	return &cert
}

// volatileMemory is the ChainMemory for who gives none: it lasts as long as the
// link.
type volatileMemory struct{ leaf *x509.Certificate }

func (m *volatileMemory) LeafSuffices(leaf *x509.Certificate) bool {
	return m.leaf != nil && m.leaf.Equal(leaf)
}
func (m *volatileMemory) Learn(leaf *x509.Certificate) { m.leaf = leaf }
func (m *volatileMemory) Forget()                      { m.leaf = nil }
