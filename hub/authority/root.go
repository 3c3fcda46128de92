package authority

import (
	"bytes"
	"crypto"
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
)

const rootName = "root"

// maxHanded is how many operational CAs go along with a station's authority: package
// station takes as many.
const maxHanded = 4

// Root is the folder of the fleet's root: root.key, root.crt and the journal of what the
// key signed. It needs no hub: requests and certificates come and go as files.
type Root struct {
	Dir    string
	issuer *issuance.Issuer
}

// MakeRoot makes a root in a folder that has none, all or nothing. make returns its key
// with the contents of the key's file, which will be at path. It must not be a hub's folder.
func MakeRoot(dir, trustDomain string, valid time.Duration, make func(path string) (crypto.Signer, []byte, error)) (*x509.Certificate, error) {
	if err := identity.ValidTrustDomain(trustDomain); err != nil {
		return nil, err
	}
	stage, err := pemfile.NewStage(dir)
	if err != nil {
		return nil, err
	}
	defer stage.Abort()
	key, file, err := make(filepath.Join(dir, rootName+".key"))
	if err != nil {
		return nil, err
	}
	cert, err := issuance.NewRoot(trustDomain, key, valid, nil)
	if err != nil {
		return nil, err
	}
	if err := WriteRoot(stage.Path(""), cert, file); err != nil {
		return nil, err
	}
	return cert, stage.Commit()
}

// WriteRoot writes a root's certificate and the contents of its key's file into a folder.
func WriteRoot(dir string, cert *x509.Certificate, keyFile []byte) error {
	if err := pemfile.Write(filepath.Join(dir, rootName+".key"), keyFile, 0o600); err != nil {
		return err
	}
	return pemfile.WriteCertificates(filepath.Join(dir, rootName+".crt"), cert)
}

// RootKeyFile returns the path of the root's key in a folder.
func RootKeyFile(dir string) string { return filepath.Join(dir, rootName+".key") }

// RootCertificate returns the root's certificate in a folder.
func RootCertificate(dir string) (*x509.Certificate, error) {
	if _, err := pemfile.Finish(dir); err != nil {
		return nil, err
	}
	certs, err := pemfile.ReadCertificates(filepath.Join(dir, rootName+".crt"))
	if err != nil {
		return nil, err
	}
	return certs[0], RequireRoot(certs[0])
}

// RequireRoot returns nil if the certificate is a root's, signed by itself.
func RequireRoot(cert *x509.Certificate) error {
	kind, err := identity.KindOf(cert)
	if err != nil {
		return err
	}
	if kind != identity.KindRoot {
		return fmt.Errorf("the certificate of %q is of the kind %s, a root is required", cert.Subject.CommonName, kind)
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return fmt.Errorf("the root certificate of %q is not signed by itself: %w", cert.Subject.CommonName, err)
	}
	return nil
}

// OpenRoot opens the root in a folder. A missing key is fs.ErrNotExist.
func OpenRoot(dir string, keys Keys) (*Root, error) {
	if _, err := pemfile.Finish(dir); err != nil {
		return nil, err
	}
	issuer, err := Load(keys, dir, rootName)
	if err != nil {
		return nil, err
	}
	if err := RequireRoot(issuer.Certificate()); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &Root{Dir: dir, issuer: issuer}, nil
}

// Certificate returns the root's certificate.
func (r *Root) Certificate() *x509.Certificate { return r.issuer.Certificate() }

// TrustDomain returns the fleet's, which is the root's name.
func (r *Root) TrustDomain() string { return r.Certificate().Subject.CommonName }

// Authority is what an issuing CA is to be.
type Authority struct {
	Kind       identity.IssuerKind // factory or operational
	Name       string              // "": as the request says
	Valid      time.Duration       // 0: as its profile says
	MaxDevices int                 // of a station; 0: as issuance.CARequest says
}

// Sign signs an issuing CA for the key of a request, and has it on record before it
// returns. Of the request the key is believed, and its name unless another is given. A name
// that the journal has with another key is refused.
func (r *Root) Sign(csr *x509.CertificateRequest, a Authority) (*x509.Certificate, error) {
	if a.Name == "" {
		a.Name = csr.Subject.CommonName
	}
	if err := identity.ValidID(a.Name); err != nil {
		return nil, fmt.Errorf("the name (common name): %w", err)
	}
	signed, err := r.own()
	if err != nil {
		return nil, err
	}
	for _, s := range signed {
		if kind, err := identity.KindOf(s.Certificate); err == nil && kind == a.Kind && s.Certificate.Subject.CommonName == a.Name && !bytes.Equal(s.Certificate.RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo) {
			return nil, fmt.Errorf("this root has signed %q for another key on %s: have the new one made with another --name", a.Name, s.Certificate.NotBefore.Format(time.DateOnly))
		}
	}
	cert, err := r.issuer.IssueCA(issuance.CARequest{
		Kind: a.Kind, Name: a.Name, TrustDomain: r.TrustDomain(), PublicKey: csr.PublicKey, Valid: a.Valid, MaxDevices: a.MaxDevices,
	})
	if err != nil {
		return nil, err
	}
	return cert, Record(r.Dir, cert)
}

// own returns what of the journal is by this root, damaged as it may be.
func (r *Root) own() ([]Issued, error) {
	all, _, err := Journal(r.Dir)
	return slices.DeleteFunc(all, func(i Issued) bool { return i.Certificate.CheckSignatureFrom(r.Certificate()) != nil }), err
}

// Signed returns what the root in that folder has signed, oldest first. A line that can't
// be read, or is not by this root, is an error beside the others: the record is damaged.
func Signed(dir string, root *x509.Certificate) ([]Issued, error) {
	all, unreadable, err := Journal(dir)
	if err != nil {
		return nil, err
	}
	if unreadable > 0 {
		return all, fmt.Errorf("%s is damaged: lines that can't be read: %d (one, at its end, may be left by a command that was killed: remove it then)", filepath.Join(dir, JournalFile), unreadable)
	}
	for _, i := range all {
		if err := i.Certificate.CheckSignatureFrom(root); err != nil {
			return all, fmt.Errorf("%s is damaged: it lists %q (serial %s), which this root has not signed", filepath.Join(dir, JournalFile), i.Certificate.Subject.CommonName, identity.SerialString(i.Certificate.SerialNumber))
		}
	}
	return all, nil
}

// Bundle returns the trust bundle as far as the root knows it: its own certificate, and
// the operational CAs on record that are good at that time, the newest first. The root
// doesn't know which ones a hub has removed: those are left out by name. A name that no
// such CA has is an error, lest a misspelt one is handed on.
func (r *Root) Bundle(now time.Time, without ...string) ([]*x509.Certificate, error) {
	signed, err := r.own()
	if err != nil {
		return nil, err
	}
	signed = slices.DeleteFunc(signed, func(s Issued) bool {
		kind, err := identity.KindOf(s.Certificate)
		return err != nil || kind != identity.KindOperational || !now.Before(s.Certificate.NotAfter)
	})
	for _, name := range without {
		all := len(signed)
		signed = slices.DeleteFunc(signed, func(s Issued) bool { return s.Certificate.Subject.CommonName == name })
		if len(signed) == all {
			return nil, fmt.Errorf("the root's record has no issuing CA %.80q of a hub that is still good, to be left out: see `hub root list`", name)
		}
	}
	bundle := []*x509.Certificate{r.Certificate()}
	for _, s := range slices.Backward(signed) {
		if len(bundle) > maxHanded {
			break
		}
		if !slices.ContainsFunc(bundle, func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubjectPublicKeyInfo, s.Certificate.RawSubjectPublicKeyInfo)
		}) {
			bundle = append(bundle, s.Certificate)
		}
	}
	return bundle, nil
}

// ReadCSR reads a request from a file. A missing one is fs.ErrNotExist.
func ReadCSR(file string) (*x509.CertificateRequest, error) {
	der, err := pemfile.ReadCSR(file)
	if err != nil {
		return nil, err
	}
	csr, err := issuance.ParseCSR(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return csr, nil
}

// ErrKnownStation is in the chain if a station of that name has another key.
var ErrKnownStation = errors.New("a station of that name with another key is authorized already")

// Admit makes the hub in dir know a station's authority, which the caller has checked. The
// hub takes it up with the next manifest, or SIGHUP.
func Admit(dir string, cert *x509.Certificate) error {
	if err := Admissible(dir, cert.Subject.CommonName, cert.RawSubjectPublicKeyInfo); err != nil {
		return err
	}
	return pemfile.WriteCertificates(stationFile(dir, cert.Subject.CommonName), cert)
}

// Admissible returns nil if the hub in dir knows no station of that name, or one with that
// key (SubjectPublicKeyInfo, DER).
func Admissible(dir, name string, spki []byte) error {
	known, err := pemfile.ReadCertificates(stationFile(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !bytes.Equal(known[0].RawSubjectPublicKeyInfo, spki) {
		return fmt.Errorf("%w: station %s in %s: have the new one init with another --name", ErrKnownStation, name, stationFile(dir, name))
	}
	return nil
}

func stationFile(dir, name string) string { return filepath.Join(dir, "issuers", name+".crt") }
