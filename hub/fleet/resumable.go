package fleet

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/ticket"
)

// parsedCertificates is how many parsed certificates are kept for devices that
// reconnect, some 4 kB each.
const parsedCertificates = 16 << 10

// resumable finds the certificate that a session ticket names.
type resumable struct {
	owners sync.Map // ticket.Fingerprint → device ID
	parsed *lru.Cache[ticket.Fingerprint, *x509.Certificate]
}

func (r *resumable) init() (err error) {
	r.parsed, err = lru.New[ticket.Fingerprint, *x509.Certificate](parsedCertificates)
	return err
}

// publish notes whose certificates these are. Whether one may be used is asked of the
// index at each ticket, not here.
func (r *resumable) publish(d *registry.Device) {
	for _, c := range d.Certificates {
		f, ok := ticketFingerprint(c.Fingerprint)
		if !ok {
			continue
		}
		if owner, taken := r.owners.LoadOrStore(f, d.ID); taken && owner != d.ID {
			r.owners.Store(f, "") // two devices alike in it: neither has compact tickets
		}
	}
}

func ticketFingerprint(hexadecimal string) (f ticket.Fingerprint, ok bool) {
	sum, err := hex.DecodeString(hexadecimal)
	if err != nil || len(sum) < len(f) {
		return f, false
	}
	return ticket.Fingerprint(sum), true
}

// Resumable returns the certificate of a device that may connect with it now, and its
// issuer: a revoked, suspended or superseded one is not found, nor one of an issuer
// that the hub no longer trusts. It implements ticket.Certificates. The first look-up
// of a certificate reads its record from the store, which is memory-mapped; later ones
// find it parsed.
func (f *Fleet) Resumable(fingerprint ticket.Fingerprint) (leaf, issuer *x509.Certificate, ok bool) {
	owner, ok := f.ticket.owners.Load(fingerprint)
	if !ok {
		return nil, nil, false
	}
	id := owner.(string)
	status, ok := f.Status(id)
	if !ok || !status.State.MayConnect() {
		return nil, nil, false
	}
	leaf, ok = f.ticket.parsed.Get(fingerprint)
	if !ok {
		if leaf = f.readCertificate(id, fingerprint); leaf == nil {
			return nil, nil, false
		}
		f.ticket.parsed.Add(fingerprint, leaf)
	}
	if !status.Admits(identity.Fingerprint(leaf)) {
		return nil, nil, false
	}
	if f.config.Issuers == nil {
		return nil, nil, false
	}
	for _, c := range f.config.Issuers() {
		if string(c.SubjectKeyId) == string(leaf.AuthorityKeyId) {
			return leaf, c, true
		}
	}
	return nil, nil, false
}

// readCertificate returns one certificate of a device from the store, nil if it isn't
// there or can't be read: the ticket is then worth nothing.
func (f *Fleet) readCertificate(id string, fingerprint ticket.Fingerprint) *x509.Certificate {
	d, err := f.config.Store.Device(context.Background(), id)
	if err != nil {
		return nil
	}
	for _, c := range d.Certificates {
		if have, ok := ticketFingerprint(c.Fingerprint); !ok || have != fingerprint {
			continue
		}
		leaf, err := x509.ParseCertificate(c.DER)
		if err != nil {
			return nil
		}
		return leaf
	}
	return nil
}
