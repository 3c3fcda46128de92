package station

import (
	"bytes"
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
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// authority is the station's right to issue: its issuing CA and the root above it.
type authority struct {
	issuer      *issuance.Issuer
	root        *x509.Certificate
	hubs        []*x509.Certificate // the hub's issuing CAs, for the devices' trust bundle
	trustDomain string
	maxDevices  int // IDs that the station may ever make
}

// bundle is what a device holds its hub against. With the hub's issuing CA in it, the
// hub need not send that in each full handshake.
func (a *authority) bundle() []*x509.Certificate {
	return append([]*x509.Certificate{a.root}, a.hubs...)
}

// Acceptance says which authority the station has.
type Acceptance struct {
	Station         string    `json:"station"`
	TrustDomain     string    `json:"trust_domain"`
	Change          Change    `json:"change"`
	Serial          string    `json:"serial"`
	NotBefore       time.Time `json:"not_before"`
	NotAfter        time.Time `json:"not_after"`
	MaxDevices      int       `json:"max_devices"`
	RootFingerprint string    `json:"root_fingerprint"`
}

// maxAuthority is how many certificates an authority has at most: issuing CA, root, and
// the hub's issuing CAs of a time when one takes over from another.
const maxAuthority = 6

// Change is what Accept did to the station's authority.
type Change string

// The changes.
const (
	Accepted  Change = "accepted"  // the first one
	Renewed   Change = "renewed"   // in place of an older one
	Unchanged Change = "unchanged" // it was there already
)

// Accept installs the authority that `hub station authorize` wrote to file: the
// station's issuing CA certificate, then the root's, then the hub's issuing CAs. The first root is trusted as it
// comes (compare its fingerprint with what `hub init` printed) and kept: a renewal must
// be under the same one. Accepting the same file again changes nothing.
func (s *Station) Accept(file string) (Acceptance, error) {
	certs, err := pemfile.ReadCertificates(file)
	if errors.Is(err, fs.ErrNotExist) {
		return Acceptance{}, errorf(ErrNotFound, "there is no file %s: give the one that `hub station authorize --out` wrote", file)
	}
	if err != nil {
		return Acceptance{}, err
	}
	a, err := s.verifyAuthority(certs)
	if err == nil {
		err = a.checkClock(s.now())
	}
	if err != nil {
		return Acceptance{}, fmt.Errorf("%s is not accepted: %w", file, err)
	}
	ca := a.issuer.Certificate()
	result := Acceptance{
		Station: s.name, TrustDomain: a.trustDomain, Change: Accepted,
		Serial: identity.SerialString(ca.SerialNumber), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		MaxDevices: a.maxDevices, RootFingerprint: identity.Fingerprint(a.root),
	}
	if old := s.authority.Load(); old != nil {
		if result.Change, err = old.succeed(a); err != nil {
			return Acceptance{}, fmt.Errorf("%s is not accepted: %w", file, err)
		}
		if result.Change == Unchanged {
			return result, nil
		}
	}
	if err := pemfile.WriteCertificates(filepath.Join(s.dir, authorityFile), append([]*x509.Certificate{ca}, a.bundle()...)...); err != nil {
		return Acceptance{}, err
	}
	s.authority.Store(a)
	return result, nil
}

// verifyAuthority checks everything about an authority but the time.
func (s *Station) verifyAuthority(certs []*x509.Certificate) (*authority, error) {
	if len(certs) < 2 || len(certs) > maxAuthority {
		return nil, fmt.Errorf("it holds %d of the three certificates expected (the station's issuing CA, the root, the hub's issuing CA): use the file that `hub station authorize --out` wrote", len(certs))
	}
	ca, root, hubs := certs[0], certs[1], certs[2:]
	if err := requireKind(ca, identity.KindFactory, "first"); err != nil {
		return nil, err
	}
	if err := requireKind(root, identity.KindRoot, "second"); err != nil {
		return nil, err
	}
	own, err := hashKey(s.key.Public())
	if err != nil {
		return nil, err
	}
	if ledger.HashKey(ca.RawSubjectPublicKeyInfo) != own {
		return nil, errorf(ErrDenied, "it is for another key (of station %q), not for this station's: have %s authorized", ca.Subject.CommonName, filepath.Join(s.dir, csrFile))
	}
	if ca.Subject.CommonName != s.name {
		return nil, errorf(ErrDenied, "it is for a station named %q, this one is %q: have %s authorized", ca.Subject.CommonName, s.name, filepath.Join(s.dir, csrFile))
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		return nil, errorf(ErrDenied, "the root certificate %q is not signed by itself", root.Subject.CommonName)
	}
	if err := ca.CheckSignatureFrom(root); err != nil {
		return nil, errorf(ErrDenied, "the issuing CA certificate is not signed by the root %q beside it", root.Subject.CommonName)
	}
	for _, hub := range hubs {
		if err := requireKind(hub, identity.KindOperational, "third or later"); err != nil {
			return nil, err
		}
		if err := hub.CheckSignatureFrom(root); err != nil {
			return nil, errorf(ErrDenied, "the hub's issuing CA certificate %q is not signed by the root %q beside it", hub.Subject.CommonName, root.Subject.CommonName)
		}
	}
	if len(ca.PermittedURIDomains) != 1 || identity.ValidTrustDomain(ca.PermittedURIDomains[0]) != nil {
		return nil, errorf(ErrDenied, "the issuing CA certificate must be constrained to one trust domain, it is to %q", ca.PermittedURIDomains)
	}
	issuer, err := issuance.NewIssuer(ca, s.key, s.now)
	if err != nil {
		return nil, err
	}
	budget, err := issuance.DeviceBudget(ca)
	if err != nil {
		return nil, errorf(ErrDenied, "%w", err)
	}
	return &authority{issuer: issuer, root: root, hubs: hubs, trustDomain: ca.PermittedURIDomains[0], maxDevices: budget}, nil
}

func requireKind(cert *x509.Certificate, want identity.IssuerKind, place string) error {
	kind, err := identity.KindOf(cert)
	if err != nil {
		return errorf(ErrDenied, "its %s certificate must be of a CA of the kind %q: %w", place, want, err)
	}
	if kind != want {
		return errorf(ErrDenied, "its %s certificate must be of a CA of the kind %q, that of %q is of the kind %q", place, want, cert.Subject.CommonName, kind)
	}
	return nil
}

// succeed decides whether next may take a's place.
func (a *authority) succeed(next *authority) (Change, error) {
	old, ca := a.issuer.Certificate(), next.issuer.Certificate()
	switch {
	case next.trustDomain != a.trustDomain:
		return "", errorf(ErrDenied, "it is for trust domain %s, the station belongs to %s: make a new station for another fleet", next.trustDomain, a.trustDomain)
	case !bytes.Equal(next.root.RawSubjectPublicKeyInfo, a.root.RawSubjectPublicKeyInfo):
		return "", errorf(ErrDenied, "its root %s is not the one the station trusts, %s: make a new station for another root", identity.Fingerprint(next.root), identity.Fingerprint(a.root))
	case bytes.Equal(ca.Raw, old.Raw) && slices.EqualFunc(next.bundle(), a.bundle(), (*x509.Certificate).Equal):
		return Unchanged, nil
	case ca.NotBefore.Before(old.NotBefore):
		return "", errorf(ErrDenied, "it is older (of %s) than the authority the station has (of %s)", stamp(ca.NotBefore), stamp(old.NotBefore))
	}
	return Renewed, nil
}

// checkClock refuses to use an authority outside its validity.
func (a *authority) checkClock(now time.Time) error {
	for _, cert := range []*x509.Certificate{a.issuer.Certificate(), a.root} {
		name := cert.Subject.CommonName
		if now.Before(cert.NotBefore) {
			return errorf(ErrDenied, "the authority of %s begins on %s, but this machine's clock says %s: set the clock", name, stamp(cert.NotBefore), stamp(now))
		}
		if now.After(cert.NotAfter) {
			return errorf(ErrDenied, "the authority of %s ended on %s and this machine's clock says %s: if the clock is right, run `hub station authorize` for the station's CSR again and `provisioning accept` what it writes", name, stamp(cert.NotAfter), stamp(now))
		}
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }

// loadAuthority reads what Accept wrote, if anything.
func (s *Station) loadAuthority() error {
	path := filepath.Join(s.dir, authorityFile)
	certs, err := pemfile.ReadCertificates(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	a, err := s.verifyAuthority(certs)
	if err != nil {
		return fmt.Errorf("%s can't be used: %w", path, err)
	}
	s.authority.Store(a)
	return nil
}

// valid returns the authority if the station has one that may be used now.
func (s *Station) valid() (*authority, error) {
	a := s.authority.Load()
	if a == nil {
		return nil, errorf(ErrDenied, "station %s has no authority yet: run `hub station authorize --csr %s --out FILE` at the hub, then `provisioning accept --dir %s FILE` here", s.name, filepath.Join(s.dir, csrFile), s.dir)
	}
	if err := a.checkClock(s.now()); err != nil {
		return nil, err
	}
	return a, nil
}
