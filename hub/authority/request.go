package authority

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// Request is the request of a CA that is to come.
type Request struct {
	File    string // PKCS #10, PEM
	KeyFile string
	CSR     *x509.CertificateRequest
	Former  bool // it was made before, and still waits for an answer
}

// Request makes a key, and the request for it under that name. make returns the key with
// the contents of its file, which will be at path. A request that waits for an answer is
// returned as it is, whatever its name.
func (f Folder) Request(name string, make func(path string) (key crypto.Signer, file []byte, err error)) (Request, error) {
	r := Request{File: f.path(nextName + ".csr"), KeyFile: f.path(nextName + ".key")}
	if err := identity.ValidID(name); err != nil {
		return r, err
	}
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return r, err
	}
	unlock, err := f.lock()
	if err != nil {
		return r, err
	}
	defer unlock()
	pending, err := f.Pending()
	if err == nil {
		return pending, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	// A key without a request is of a run that was killed: nobody has heard of it.
	key, file, err := make(r.KeyFile)
	if err != nil {
		return r, err
	}
	if err := f.requireFresh(key); err != nil {
		return r, err
	}
	csr, err := issuance.NewCSR(key, name)
	if err != nil {
		return r, err
	}
	if err := pemfile.Write(r.KeyFile, file, 0o600); err != nil {
		return r, err
	}
	if err := pemfile.WriteCSR(r.File, csr); err != nil {
		return r, err
	}
	r.CSR, err = issuance.ParseCSR(csr)
	return r, err
}

// requireFresh refuses the key of a CA that is here, which a token can give again: CAs are
// told apart by their keys.
func (f Folder) requireFresh(key crypto.Signer) error {
	all, err := f.List()
	if errors.Is(err, ErrNoCA) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, ca := range all {
		if sameKey(ca.Certificate.PublicKey, key.Public()) {
			return fmt.Errorf("that key is the one of the issuing CA %q: a successor has a key of its own", ca.Certificate.Subject.CommonName)
		}
	}
	return nil
}

// Pending returns the request that waits for the root's answer, fs.ErrNotExist if there is
// none.
func (f Folder) Pending() (Request, error) {
	r := Request{File: f.path(nextName + ".csr"), KeyFile: f.path(nextName + ".key"), Former: true}
	der, err := pemfile.ReadCSR(r.File)
	if err != nil {
		return r, err
	}
	if _, err := os.Stat(r.KeyFile); err != nil {
		// Not wrapped: that there is no key is not that there is no request.
		return r, fmt.Errorf("%s has lost its key: remove the request and ask anew: %v", r.File, err)
	}
	r.CSR, err = issuance.ParseCSR(der)
	if err != nil {
		return r, fmt.Errorf("%s: %w", r.File, err)
	}
	return r, nil
}
