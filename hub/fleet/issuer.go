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

// Walk calls visit with every record, in order of ID. It reads the whole store, a page
// at a time.
func (f *Fleet) Walk(ctx context.Context, visit func(registry.Device)) error {
	for after := ""; ; {
		page, err := f.config.Store.Devices(ctx, after, loadPage)
		if err != nil {
			return err
		}
		for _, d := range page {
			visit(d)
		}
		if len(page) < loadPage {
			return nil
		}
		after = page[len(page)-1].ID
	}
}

// IssuerID is how the certificates of a record name that issuing CA.
func IssuerID(ca *x509.Certificate) string { return hex.EncodeToString(ca.SubjectKeyId) }
