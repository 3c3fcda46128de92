package fleet

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"slices"

	"github.com/fleethub/fleethub/hub/registry"
)

// SameIssuer reports whether two certificates are of one issuing CA: the same name and
// key, as an authority and its renewal have. What one has signed, the other vouches for.
func SameIssuer(a, b *x509.Certificate) bool {
	return a == b || bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo) && bytes.Equal(a.RawSubject, b.RawSubject)
}

// TrustsIssuer reports whether that CA, or its renewal, is one of Config.Issuers now.
// It does no I/O. A fleet that was told of no issuers trusts what the handshake did.
func (f *Fleet) TrustsIssuer(ca *x509.Certificate) bool {
	if f.config.Issuers == nil {
		return true
	}
	return slices.ContainsFunc(f.config.Issuers(), func(c *x509.Certificate) bool { return SameIssuer(c, ca) })
}

// trustedIssuers returns the IDs of the issuing CAs trusted now, nil if the fleet was
// told of none.
func (f *Fleet) trustedIssuers() map[string]bool {
	if f.config.Issuers == nil {
		return nil
	}
	trusted := make(map[string]bool)
	for _, c := range f.config.Issuers() {
		trusted[IssuerID(c)] = true
	}
	return trusted
}

// Issued returns how many devices have a usable certificate by each issuing CA, by
// IssuerID. It reads facts, not records: a million in a fraction of a second.
func (f *Fleet) Issued(ctx context.Context) (map[string]int, error) {
	issued := make(map[string]int)
	err := f.config.Store.Facts(ctx, "", func(facts *registry.Facts) bool {
		for _, issuer := range facts.Attributes.Issuers {
			issued[issuer]++
		}
		return true
	})
	return issued, err
}

// IssuedTo calls visit for every device with a usable certificate by that issuing CA, by
// IssuerID, in order of ID. It reads facts, in a read transaction: visit must be quick.
func (f *Fleet) IssuedTo(ctx context.Context, issuer string, visit func(id string, state registry.State)) error {
	return f.config.Store.Facts(ctx, "", func(facts *registry.Facts) bool {
		if slices.Contains(facts.Attributes.Issuers, issuer) {
			visit(facts.ID, f.inForce(facts.ID, facts.State))
		}
		return true
	})
}

// Certificate returns whose a certificate is and whether it is revoked, by IssuerID and
// serial number (identity.SerialString), or an error that matches registry.ErrUnknown.
func (f *Fleet) Certificate(ctx context.Context, issuer, serial string) (registry.Ownership, error) {
	return f.config.Store.Owner(ctx, issuer, serial)
}

// Certificates calls visit for every registered certificate of an issuing CA, by
// IssuerID, until it returns false. It holds a read transaction: visit must be quick.
func (f *Fleet) Certificates(ctx context.Context, issuer string, visit func(registry.Ownership) bool) error {
	return f.config.Store.Owners(ctx, issuer, visit)
}

// IssuerID is how the certificates of a record name that issuing CA.
func IssuerID(ca *x509.Certificate) string { return hex.EncodeToString(ca.SubjectKeyId) }

// IssuersNamed returns the IDs of the issuing CAs of that name trusted now: usually one,
// none if there is no such.
func (f *Fleet) IssuersNamed(name string) []string {
	var ids []string
	if f.config.Issuers == nil {
		return nil
	}
	for _, c := range f.config.Issuers() {
		if id := IssuerID(c); c.Subject.CommonName == name && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}
