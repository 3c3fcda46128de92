package mtls

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// Credentials are what a client brings: its certificate with the key, and the trust
// bundle it holds the hub against. They are immutable.
type Credentials struct {
	Certificate tls.Certificate // chain: leaf, then issuer; Leaf is set
	Leaf        *x509.Certificate
	Roots       []*x509.Certificate
	Identity    identity.Identity
}

// LoadCredentials reads <dir>/<base>.key, <base>.crt (the leaf, then its issuer) and
// ca.crt. Base is "device", "service" or "operator".
func LoadCredentials(dir, base string) (Credentials, error) {
	var none Credentials
	cert, err := loadPair(filepath.Join(dir, base+".crt"), filepath.Join(dir, base+".key"))
	if err != nil {
		return none, err
	}
	roots, err := pemfile.ReadCertificates(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return none, err
	}
	id, err := identity.FromCertificate(cert.Leaf)
	if err != nil {
		return none, fmt.Errorf("%s: %w", filepath.Join(dir, base+".crt"), err)
	}
	return Credentials{Certificate: *cert, Leaf: cert.Leaf, Roots: roots, Identity: id}, nil
}

func loadPair(certFile, keyFile string) (*tls.Certificate, error) {
	chain, err := pemfile.ReadCertificates(certFile)
	if err != nil {
		return nil, err
	}
	key, err := pemfile.ReadKey(keyFile)
	if err != nil {
		return nil, err
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(chain[0].PublicKey) {
		return nil, fmt.Errorf("the key in %s does not belong to the certificate in %s", keyFile, certFile)
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}

// Reloader serves a certificate and key from files and reads them again on demand. It
// is safe for concurrent use.
type Reloader struct {
	certFile, keyFile string
	current           atomic.Pointer[tls.Certificate]
}

// NewReloader reads the files once and fails if they are no matching pair.
func NewReloader(certFile, keyFile string) (*Reloader, error) {
	r := &Reloader{certFile: certFile, keyFile: keyFile}
	return r, r.Reload()
}

// Reload reads the files again. On an error the pair in use stays.
func (r *Reloader) Reload() error {
	cert, err := loadPair(r.certFile, r.keyFile)
	if err != nil {
		return err
	}
	r.current.Store(cert)
	return nil
}

// Certificate returns the pair in use, in the form that ServerOptions asks for.
func (r *Reloader) Certificate() (*tls.Certificate, error) {
	if c := r.current.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("no server certificate is loaded")
}
