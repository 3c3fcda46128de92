package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/authority"
)

// freshInterval is how often the age of the server certificate and of the ticket key
// is looked at.
const freshInterval = time.Hour

// keepFresh renews the server certificate and the ticket key in time, until ctx ends. A
// hub that ran for a year must not lock its fleet out by an expired certificate.
func (h *Hub) keepFresh(ctx context.Context) {
	tick := time.NewTicker(freshInterval)
	defer tick.Stop()
	for {
		if err := h.renewCertificate(h.now()); err != nil {
			h.log.Error("server certificate not renewed", "error", err)
		}
		if err := h.tickets.RotateIfDue(); err != nil {
			h.log.Error("ticket key not rotated, the former stays in use", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// renewCertificate replaces the server certificate, for the same names and key, once
// less than a third of its lifetime is left, or another issuing CA has taken the place of
// its own. A certificate by a CA that is none of the hub's is left to whoever brought it.
func (h *Hub) renewCertificate(now time.Time) error {
	current, err := h.certificate.Certificate()
	if err != nil {
		return err
	}
	leaf := current.Leaf
	all, err := h.cas.List()
	if err != nil {
		return err
	}
	by := slices.IndexFunc(all, func(ca authority.CA) bool { return leaf.CheckSignatureFrom(ca.Certificate) == nil })
	due := leaf.NotAfter.Sub(now) <= leaf.NotAfter.Sub(leaf.NotBefore)/3
	if !due && by <= 0 { // all[0] is the present one
		return nil
	}
	if by < 0 {
		return fmt.Errorf("it expires on %s and is by another CA: replace tls/server.crt, then send SIGHUP", leaf.NotAfter.Format(time.RFC3339))
	}
	ca, err := h.issuer()
	if errors.Is(err, fs.ErrNotExist) && !due {
		return nil // it is good, and will be renewed while the key is here
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it expires on %s and the issuing key is not in %s: replace tls/server.crt by hand, then send SIGHUP",
			leaf.NotAfter.Format(time.RFC3339), h.cas.Dir)
	}
	if err != nil {
		return err
	}
	id, err := identity.FromCertificate(leaf)
	if err != nil {
		return err
	}
	next, err := ca.Issue(issuance.Request{Profile: issuance.ServerProfile(), Identity: id, PublicKey: leaf.PublicKey, DNSNames: leaf.DNSNames, IPAddresses: leaf.IPAddresses})
	if err != nil {
		return err
	}
	if err := pemfile.WriteCertificates(h.serverFile(".crt"), next, ca.Certificate()); err != nil {
		return err
	}
	if err := h.certificate.Reload(); err != nil {
		return err
	}
	h.decideChain()
	h.log.Info("server certificate renewed", "until", next.NotAfter, "serial", identity.SerialString(next.SerialNumber), "issuer", ca.Certificate().Subject.CommonName)
	return nil
}

func (h *Hub) serverFile(suffix string) string {
	return filepath.Join(h.config.Dir, "tls", "server"+suffix)
}

// presented returns what the hub presents in a handshake: its leaf alone if the fleet's
// trust bundle has the issuer, which spares each full handshake some 500 bytes, else
// leaf and issuer. A hub whose issuing CA was replaced thus serves boards with the old
// bundle, until somebody says that there are none (authority.Folder.SendsIssuer).
func (h *Hub) presented() (*tls.Certificate, error) {
	own, err := h.certificate.Certificate()
	if err != nil || !h.leafOnly.Load() {
		return own, err
	}
	leaf := *own
	leaf.Certificate = own.Certificate[:1]
	return &leaf, nil
}

// decideChain looks whether the trust bundle has the server certificate's issuer. It is
// called whenever one of the two was read.
func (h *Hub) decideChain() {
	own, err := h.certificate.Certificate()
	if err != nil {
		return
	}
	bundle, err := pemfile.ReadCertificates(filepath.Join(h.config.Dir, "ca.crt"))
	if err != nil {
		return // Reload said so; what was decided stays
	}
	known := slices.ContainsFunc(bundle, func(c *x509.Certificate) bool { return own.Leaf.CheckSignatureFrom(c) == nil })
	h.leafOnly.Store(known && !h.cas.SendsIssuer())
}

// checkCertificate refuses a certificate past its end in words at start-up rather than
// to every device by an alert.
func (h *Hub) checkCertificate(now time.Time) error {
	c, err := h.certificate.Certificate()
	if err != nil {
		return err
	}
	return expired(c, now, h.serverFile(".crt"))
}

func expired(c *tls.Certificate, now time.Time, file string) error {
	if now.After(c.Leaf.NotAfter) {
		return fmt.Errorf("the server certificate %s expired on %s: no device would connect; put the issuing key back into ca/ or replace it", file, c.Leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}
