package fleet

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/ticket"
)

// parsedCertificates is how many parsed certificates are kept for devices that
// reconnect, some 4 kB each.
const parsedCertificates = 16 << 10

// resumable finds the certificate that a session ticket names.
type resumable struct {
	mu     sync.RWMutex // guards owners
	owners map[shortName][]string
	parsed *lru.Cache[string, *x509.Certificate] // by fingerprint, as the registry writes it
}

// shortName is how the owners of certificates are found: the IDs of the devices with one
// whose fingerprint begins so, nearly always one device.
type shortName [ticket.ShortName]byte

func (r *resumable) init() (err error) {
	r.owners = make(map[shortName][]string)
	r.parsed, err = lru.New[string, *x509.Certificate](parsedCertificates)
	return err
}

// publish notes whose certificates these are. Whether one may be used is asked of the
// index at each ticket, not here.
func (r *resumable) publish(d *registry.Device) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range d.Certificates {
		sum, err := hex.DecodeString(c.Fingerprint)
		if err != nil || len(sum) < ticket.LongName {
			continue // it has no compact tickets
		}
		name := shortName(sum)
		if !slices.Contains(r.owners[name], d.ID) {
			r.owners[name] = append(r.owners[name], d.ID)
		}
	}
}

func (r *resumable) ownersOf(name []byte) []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.owners[shortName(name)] // changed by append only
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
	prefix := hex.EncodeToString(name)
	var owner, fingerprint string
	for _, id := range f.ticket.ownersOf(name) {
		status, _ := f.Status(id)
		for _, has := range status.Fingerprints {
			if !strings.HasPrefix(has, prefix) {
				continue
			}
			if owner != "" || !status.Admits(has) {
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
func (f *Fleet) readCertificate(id, fingerprint string) *x509.Certificate {
	d, err := f.config.Store.Device(context.Background(), id)
	if err != nil {
		return nil
	}
	for _, c := range d.Certificates {
		if c.Fingerprint != fingerprint {
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
