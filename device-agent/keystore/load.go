package keystore

import (
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/tpm"
)

// load reads the folder's credentials, whether the key is in its file or in a TPM.
func load(dir string) (cred mtls.Credentials, address string, err error) {
	keyFile, certFile := filepath.Join(dir, base+".key"), filepath.Join(dir, base+".crt")
	data, err := os.ReadFile(keyFile)
	if err != nil {
		return cred, "", err
	}
	if !tpm.IsKeyFile(data) {
		cred, err = mtls.LoadCredentials(dir, base)
		return cred, "", err
	}
	key, address, err := loadTPMKey(dir, keyFile)
	if err != nil {
		return cred, "", err
	}
	chain, err := pemfile.ReadCertificates(certFile)
	if err != nil {
		return cred, "", err
	}
	roots, err := pemfile.ReadCertificates(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return cred, "", err
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(chain[0].PublicKey) {
		return cred, "", fmt.Errorf("the key in %s does not belong to the certificate in %s", keyFile, certFile)
	}
	id, err := identity.FromCertificate(chain[0])
	if err != nil {
		return cred, "", fmt.Errorf("%s: %w", certFile, err)
	}
	cert := tls.Certificate{PrivateKey: key, Leaf: chain[0], SupportedSignatureAlgorithms: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return mtls.Credentials{Certificate: cert, Leaf: chain[0], Roots: roots, Identity: id}, address, nil
}

// loadTPMKey loads the key into the TPM that it was made in: the one of the address
// beside it, else the machine's.
func loadTPMKey(dir, keyFile string) (*tpm.Key, string, error) {
	address := ""
	switch text, err := os.ReadFile(filepath.Join(dir, addressFile)); {
	case err == nil:
		address = strings.TrimSpace(string(text))
	case !errors.Is(err, fs.ErrNotExist):
		return nil, "", err
	}
	if address == "" {
		var ok bool
		if address, ok = tpm.Detect(); !ok {
			return nil, "", fmt.Errorf("%s is in a TPM, and this machine shows none: is its driver loaded, or is this another machine's folder?", keyFile)
		}
	}
	t, err := tpm.Open(address)
	if err != nil {
		return nil, "", err
	}
	key, err := t.ReadKey(keyFile, nil)
	return key, address, err
}
