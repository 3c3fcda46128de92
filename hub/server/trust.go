package server

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// loadTrust reads whom the hub in dir trusts: the roots in ca.crt (the fleet's trust
// bundle), its own issuing CA, and the stations' in issuers/.
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
	operational, err := pemfile.ReadCertificates(filepath.Join(dir, "ca", "operational.crt"))
	if err != nil {
		return trust, err
	}
	trust.Issuers = append(trust.Issuers, operational[0])
	files, err := filepath.Glob(filepath.Join(dir, "issuers", "*.crt"))
	if err != nil {
		return trust, err
	}
	for _, file := range files {
		certs, err := pemfile.ReadCertificates(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the listing
		}
		if err != nil {
			return trust, err
		}
		trust.Issuers = append(trust.Issuers, certs[0])
	}
	return trust, nil
}

// reloadTrust takes up stations authorized, and issuers removed, since. On an error
// the trust in force stays.
func (h *Hub) reloadTrust() error {
	trust, err := loadTrust(h.config.Dir, h.config.TrustDomain)
	if err != nil {
		return err
	}
	if err := h.verifier.SetTrust(trust); err != nil {
		return fmt.Errorf("trust in %s: %w", h.config.Dir, err)
	}
	return nil
}

// refreshTrust is reloadTrust before the import of a manifest: a station authorized a
// minute ago needs no restart.
func (h *Hub) refreshTrust() {
	if err := h.reloadTrust(); err != nil {
		h.log.Error("trust not reloaded, the former stays in force", "error", err)
	}
}
