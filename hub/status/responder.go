package status

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/revocation"
)

// renewResponder gives an authority an OCSP signer that is good for a third of its
// lifetime yet. Its key is made for each certificate and written before that is: a
// certificate on disk always has its key beside it.
func (p *Publisher) renewResponder(next *authority, a Authority) error {
	now := p.config.Now()
	if next.responder == nil {
		key, cert, err := p.readResponder(next.id, a.Certificate)
		switch {
		case err == nil:
			if next.responder, err = revocation.NewResponder(cert, key); err != nil {
				return err
			}
			next.until = cert.NotAfter
		case !errors.Is(err, fs.ErrNotExist):
			p.config.Log.Warn("the OCSP signer on disk is replaced", "issuer", a.Certificate.Subject.CommonName, "error", err)
		}
	}
	if next.responder != nil && next.until.Sub(now) > responderRenewal {
		return nil
	}
	if a.Key == nil && next.responder == nil {
		return nil
	}
	if a.Key == nil {
		return fmt.Errorf("an OCSP signer of %q needs to be certified and the CA's key is not at the hub", a.Certificate.Subject.CommonName)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert, err := p.config.Responder(a, key.Public())
	if err != nil {
		return fmt.Errorf("certify an OCSP signer of %q: %w", a.Certificate.Subject.CommonName, err)
	}
	responder, err := revocation.NewResponder(cert, key)
	if err != nil {
		return err
	}
	keyFile, certFile := p.responderFiles(next.id)
	if err := errors.Join(pemfile.WriteKey(keyFile, key), pemfile.WriteCertificates(certFile, cert)); err != nil {
		return fmt.Errorf("keep the OCSP signer of %q: %w", a.Certificate.Subject.CommonName, err)
	}
	next.responder, next.until = responder, cert.NotAfter
	p.config.Log.Info("OCSP signer certified", "issuer", a.Certificate.Subject.CommonName, "until", cert.NotAfter)
	return nil
}

// responderRenewal is how long before its end an OCSP signer is replaced.
const responderRenewal = 10 * 24 * time.Hour

func (p *Publisher) responderFiles(id string) (key, cert string) {
	return filepath.Join(p.config.Dir, id+"-ocsp.key"), filepath.Join(p.config.Dir, id+"-ocsp.crt")
}

// readResponder reads an OCSP signer. A key whose certificate was not written yet (a
// kill came between) doesn't fit, and is replaced.
func (p *Publisher) readResponder(id string, issuer *x509.Certificate) (crypto.Signer, *x509.Certificate, error) {
	keyFile, certFile := p.responderFiles(id)
	key, err := pemfile.ReadKey(keyFile)
	if err != nil {
		return nil, nil, err
	}
	certs, err := pemfile.ReadCertificates(certFile)
	if err != nil {
		return nil, nil, err
	}
	if err := certs[0].CheckSignatureFrom(issuer); err != nil {
		return nil, nil, fmt.Errorf("%s is not by the issuing CA: %w", certFile, err)
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(certs[0].PublicKey) {
		return nil, nil, fmt.Errorf("%s is not the key of %s", keyFile, certFile)
	}
	return key, certs[0], nil
}
