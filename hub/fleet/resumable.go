package fleet

import (
	"bytes"
	"context"
	"crypto/x509"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/ticket"
)

// parsedCertificates is how many parsed certificates are kept for devices that
// reconnect, some 4 kB each.
const parsedCertificates = 16 << 10

// resumable keeps certificates that tickets named lately.
type resumable struct {
	parsed *lru.Cache[registry.Fingerprint, *x509.Certificate]
}

func (r *resumable) init() (err error) {
	r.parsed, err = lru.New[registry.Fingerprint, *x509.Certificate](parsedCertificates)
	return err
}

// Resumable returns the certificate of a device that may connect with it now, and its
// issuer: a revoked, suspended or superseded one is not found, nor one of an issuer
// that the hub no longer trusts, nor one whose name fits others too. It implements
// ticket.Certificates. The first look-up of a certificate reads its record from the
// store, which is memory-mapped; later ones find it parsed.
func (f *Fleet) Resumable(name []byte) (leaf, issuer *x509.Certificate, ok bool) {
	if len(name) < ticket.ShortName || f.config.Issuers == nil {
		return nil, nil, false
	}
	var owner string
	var fingerprint registry.Fingerprint
	for _, r := range f.index.names[name[0]].find(name) {
		id, device := f.index.entry(r)
		for _, has := range device.usable {
			if !bytes.HasPrefix(has[:], name) || owner == id && fingerprint == has {
				continue
			}
			if owner != "" || !device.state.MayConnect() {
				return nil, nil, false
			}
			owner, fingerprint = id, has
		}
	}
	if owner == "" {
		return nil, nil, false
	}
	leaf, ok = f.ticket.parsed.Get(fingerprint)
	if !ok {
		if leaf = f.readCertificate(owner, fingerprint); leaf == nil {
			return nil, nil, false
		}
		f.ticket.parsed.Add(fingerprint, leaf)
	}
	for _, c := range f.config.Issuers() {
		if bytes.Equal(c.SubjectKeyId, leaf.AuthorityKeyId) {
			return leaf, c, true
		}
	}
	return nil, nil, false
}

// readCertificate returns one certificate of a device from the store, nil if it isn't
// there or can't be read: the ticket is then worth nothing.
func (f *Fleet) readCertificate(id string, fingerprint registry.Fingerprint) *x509.Certificate {
	der, err := f.config.Store.Certificate(context.Background(), id, fingerprint.String())
	if err != nil {
		return nil
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return leaf
}
