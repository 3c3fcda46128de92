package revocation

import (
	"crypto/x509"
	"maps"
)

// key identifies a certificate as RFC 5280 does, by issuer and serial number. The
// authority key identifier stands for the issuer: two issuers of one name differ in it.
type key struct {
	authority string
	serial    string
}

func keyOf(cert *x509.Certificate) key {
	return key{authority: string(cert.AuthorityKeyId), serial: string(cert.SerialNumber.Bytes())}
}

// Set is an immutable set of revoked certificates. The zero value and nil are empty
// sets. Any number of goroutines may use one; a change makes a new Set, to be put
// behind an atomic.Pointer.
type Set struct {
	revoked map[key]Reason
}

// Len returns how many certificates are revoked.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return len(s.revoked)
}

// Lookup reports whether cert is revoked, and why.
func (s *Set) Lookup(cert *x509.Certificate) (Reason, bool) {
	if s == nil {
		return 0, false
	}
	r, ok := s.revoked[keyOf(cert)]
	return r, ok
}

// With returns a set that has the certificates too. The receiver is unchanged. A
// certificate already in the set keeps its first reason: a revocation is final.
func (s *Set) With(reason Reason, certs ...*x509.Certificate) *Set {
	next := &Set{revoked: make(map[key]Reason, s.Len()+len(certs))}
	if s != nil {
		maps.Copy(next.revoked, s.revoked)
	}
	for _, c := range certs {
		if _, known := next.revoked[keyOf(c)]; !known {
			next.revoked[keyOf(c)] = reason
		}
	}
	return next
}
