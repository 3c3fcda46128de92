package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/authority"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/protocol"
)

// cutTimeout bounds how long a change of trust waits for sockets to close. They are
// told at once; each closes within a second whatever its peer does.
const cutTimeout = 5 * time.Second

// loadTrust reads whom the hub in dir trusts: the roots in ca.crt (the fleet's trust
// bundle), its own issuing CAs, present and former, and the stations' in issuers/.
func loadTrust(dir, trustDomain string) (mtls.Trust, error) {
	trust := mtls.Trust{TrustDomain: trustDomain}
	bundle, err := pemfile.ReadCertificates(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return trust, err
	}
	for _, c := range bundle {
		if kind, err := identity.KindOf(c); err == nil && kind == identity.KindRoot {
			trust.Roots = append(trust.Roots, c)
		}
	}
	own, err := authority.In(dir, nil).List()
	if err != nil {
		return trust, err
	}
	for _, ca := range own {
		if ca.State.Trusted() && !slices.ContainsFunc(trust.Issuers, ca.Certificate.Equal) {
			trust.Issuers = append(trust.Issuers, ca.Certificate)
		}
	}
	files, err := issuerFiles(dir)
	if err != nil {
		return trust, err
	}
	for _, f := range files {
		trust.Issuers = append(trust.Issuers, f.cert)
	}
	return trust, nil
}

// issuerFile is one station's issuing CA in a hub's folder.
type issuerFile struct {
	path string
	cert *x509.Certificate
}

func issuersDir(dir string) string { return filepath.Join(dir, "issuers") }

// issuerFiles reads the stations' issuing CAs, in order of file name: those that can
// be read, and an error about the others. What was removed lies one folder deeper and
// is not read.
func issuerFiles(dir string) (files []issuerFile, bad error) {
	paths, err := filepath.Glob(filepath.Join(issuersDir(dir), "*.crt"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		certs, err := pemfile.ReadCertificates(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the listing
		}
		if err != nil {
			bad = errors.Join(bad, err)
			continue
		}
		files = append(files, issuerFile{path, certs[0]})
	}
	return files, bad
}

// trustChange says what a change of trust did.
type trustChange struct {
	removed   []*x509.Certificate // issuers
	effective time.Time           // zero: nothing changed
	cut       []string            // who was connected by what was removed: role/ID
	closed    int                 // connections
	last      time.Time           // when the last of them was closed
}

// reloadTrust takes up stations authorized, and issuers removed, since. On an error
// the trust in force stays.
func (h *Hub) reloadTrust(ctx context.Context) error {
	h.trusting.Lock()
	defer h.trusting.Unlock()
	trust, err := loadTrust(h.config.Dir, h.config.TrustDomain)
	if err != nil {
		return err
	}
	_, err = h.setTrust(ctx, trust)
	return err
}

// setTrust puts a trust in force. The caller holds h.trusting. Who rests on an issuer
// that is not in it any more, nor its renewal, is cut off; nobody else notices. A trust
// that says what the former said is no change, and keeps what was verified under it.
//
// 1. Tickets of issuers that are new here are dropped: one that was removed and put
// back starts afresh. 2. The new trust is in force: no handshake, full or resumed, and
// no CONNECT by a removed issuer is admitted. 3. Its tickets are dropped. 4. Its
// connections are cut. One whose handshake ended before 2 and is not tracked at 4 yet
// looks at the trust again once it is (package session).
func (h *Hub) setTrust(ctx context.Context, next mtls.Trust) (trustChange, error) {
	former := h.verifier.Trust()
	if sameCertificates(former.Roots, next.Roots) && sameCertificates(former.Issuers, next.Issuers) {
		return trustChange{}, nil
	}
	added := missing(next.Issuers, former.Issuers)
	var issued map[string]int
	if len(added) > 0 {
		issued = h.issued(ctx)
	}
	for _, issuer := range added {
		if issued != nil && issued[fleet.IssuerID(issuer)] == 0 {
			continue // a new station: none of its devices was ever here for a ticket
		}
		if err := h.tickets.DropIssuer(issuer.SubjectKeyId); err != nil {
			return trustChange{}, fmt.Errorf("drop former tickets of issuer %q: %w", issuer.Subject.CommonName, err)
		}
	}
	if err := h.verifier.SetTrust(next); err != nil {
		return trustChange{}, fmt.Errorf("trust in %s: %w", h.config.Dir, err)
	}
	change := trustChange{removed: missing(former.Issuers, next.Issuers), effective: h.now()}
	if len(change.removed) == 0 {
		return change, nil
	}
	for _, issuer := range change.removed {
		if err := h.tickets.DropIssuer(issuer.SubjectKeyId); err != nil { // they are refused all the same while it is not trusted
			h.log.Error("tickets of a removed issuer not dropped", "issuer", issuer.Subject.CommonName, "error", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cutTimeout)
	defer cancel()
	rests := func(p mtls.Peer) bool { return containsIssuer(change.removed, p.Issuer) }
	for _, c := range h.broker.Peers(rests) {
		change.cut = append(change.cut, string(c.Peer.Identity.Role)+"/"+c.Peer.Identity.ID)
	}
	slices.Sort(change.cut)
	change.cut = slices.Compact(change.cut)
	change.closed, change.last = h.broker.DisconnectPeers(ctx, rests, protocol.ReasonUntrusted)
	for _, issuer := range change.removed {
		h.log.Warn("issuer removed", "issuer", issuer.Subject.CommonName, "serial", identity.SerialString(issuer.SerialNumber), "connections_cut", change.closed)
	}
	return change, nil
}

// issued returns how many registered devices have a usable certificate by each CA, by
// fleet.IssuerID; nil if the store can't be read.
func (h *Hub) issued(ctx context.Context) map[string]int {
	issued, err := h.fleet.Issued(ctx)
	if err != nil {
		h.log.Error("devices of issuers not counted", "error", err)
		return nil
	}
	return issued
}

// refreshTrust is reloadTrust before the import of a manifest: a station authorized a
// minute ago needs no restart.
func (h *Hub) refreshTrust() {
	if err := h.reloadTrust(context.Background()); err != nil {
		h.log.Error("trust not reloaded, the former stays in force", "error", err)
	}
}

// missing returns those of issuers that are not among others, themselves or renewed.
func missing(issuers, others []*x509.Certificate) []*x509.Certificate {
	var gone []*x509.Certificate
	for _, c := range issuers {
		if !containsIssuer(others, c) {
			gone = append(gone, c)
		}
	}
	return gone
}

func containsIssuer(issuers []*x509.Certificate, c *x509.Certificate) bool {
	return c != nil && slices.ContainsFunc(issuers, func(i *x509.Certificate) bool { return fleet.SameIssuer(i, c) })
}

func sameCertificates(a, b []*x509.Certificate) bool {
	return slices.EqualFunc(a, b, func(a, b *x509.Certificate) bool { return bytes.Equal(a.Raw, b.Raw) })
}
