package fleet

import (
	"bytes"
	"context"
	"crypto/x509"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/ticket"
)

// namedCertificates is how many certificates are kept for devices that reconnect, less than
// a kB each.
const namedCertificates = 16 << 10

// resumable keeps certificates that tickets named lately.
type resumable struct {
	named *lru.Cache[registry.Fingerprint, named]
}

// named is a certificate in DER and its authority key identifier, a part of that: parsed, it
// would be five times as large.
type named struct{ der, issuer []byte }

func (r *resumable) init() (err error) {
	r.named, err = lru.New[registry.Fingerprint, named](namedCertificates)
	return err
}

// Resumable returns the certificate, in DER, of a device that may connect with it now,
// and its issuer; neither may be changed. A revoked, suspended or superseded one is not
// found, nor one of an issuer that the hub no longer trusts, nor one whose name fits
// others too. It implements ticket.Certificates. The first look-up of a certificate reads
// its record from the store, which is memory-mapped; later ones find it here.
func (f *Fleet) Resumable(name []byte) (leaf []byte, issuer *x509.Certificate, ok bool) {
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
	n, ok := f.ticket.named.Get(fingerprint)
	if !ok {
		if n, ok = f.readCertificate(owner, fingerprint); !ok {
			return nil, nil, false
		}
		f.ticket.named.Add(fingerprint, n)
	}
	for _, c := range f.config.Issuers() {
		if bytes.Equal(c.SubjectKeyId, n.issuer) {
			return n.der, c, true
		}
	}
	return nil, nil, false
}

// readCertificate returns one certificate of a device from the store, false if it isn't
// there or can't be read: the ticket is then worth nothing.
func (f *Fleet) readCertificate(id string, fingerprint registry.Fingerprint) (named, bool) {
	der, err := f.config.Store.Certificate(context.Background(), id, fingerprint.String())
	if err != nil {
		return named{}, false
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return named{}, false
	}
	return named{leaf.Raw, leaf.AuthorityKeyId}, true
}
