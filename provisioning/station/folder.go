package station

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// The files of a device's credential folder.
const (
	deviceKeyFile  = "device.key"
	deviceCertFile = "device.crt" // leaf, then issuer
	deviceRootFile = "ca.crt"     // the trust bundle: the root and the hub's issuing CAs
)

// folder is what a device's credential folder holds already. Its zero value is an
// empty or missing folder.
type folder struct {
	key     crypto.Signer
	keyHash string
	leaf    *x509.Certificate
	roots   []*x509.Certificate
}

func readFolder(dir string) (f folder, err error) {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return folder{}, nil
	}
	if err != nil {
		return folder{}, err
	}
	if !info.IsDir() {
		return folder{}, fmt.Errorf("%s is a file, a folder for the device's files is needed", dir)
	}
	if f.key, err = pemfile.ReadKey(filepath.Join(dir, deviceKeyFile)); err == nil {
		if err = issuance.CheckKey(f.key.Public()); err != nil {
			return folder{}, fmt.Errorf("%s: %w", filepath.Join(dir, deviceKeyFile), err)
		}
		f.keyHash, err = hashKey(f.key.Public())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return folder{}, err
	}
	chain, err := pemfile.ReadCertificates(filepath.Join(dir, deviceCertFile))
	if err == nil {
		f.leaf = chain[0]
	} else if !errors.Is(err, fs.ErrNotExist) {
		return folder{}, err
	}
	f.roots, err = pemfile.ReadCertificates(filepath.Join(dir, deviceRootFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return folder{}, err
	}
	return f, nil
}

// check refuses a folder that holds the files of another device or another fleet.
// issued is the certificate the ledger has for the ID, nil if none.
func (f folder) check(dir, id string, issued *x509.Certificate, bundle []*x509.Certificate) error {
	if f.leaf != nil {
		path := filepath.Join(dir, deviceCertFile)
		holder, err := identity.FromCertificate(f.leaf)
		if err != nil {
			return fmt.Errorf("%s is not a device's certificate (%w): choose an empty folder", path, err)
		}
		if holder.ID != id || holder.Role != identity.RoleDevice {
			return fmt.Errorf("%s is the certificate of %s: choose another folder for %s", path, holder, id)
		}
		if issued == nil || !bytes.Equal(f.leaf.Raw, issued.Raw) {
			return fmt.Errorf("%s is a certificate for %s that this station did not issue: choose an empty folder", path, id)
		}
	}
	for _, r := range f.roots {
		if !slices.ContainsFunc(bundle, func(c *x509.Certificate) bool {
			return bytes.Equal(r.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo)
		}) {
			return fmt.Errorf("%s is of another fleet: choose an empty folder for %s", filepath.Join(dir, deviceRootFile), id)
		}
	}
	return nil
}
