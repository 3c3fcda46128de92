// Package keystore holds what makes a machine this device: its private key,
// its certificate with the issuer's, and the trust bundle by which it knows
// its hub. They are three files in one folder, device.key, device.crt and
// ca.crt, as `provisioning issue` and `device-agent enroll` write them. With a key in a
// TPM device.key is that key's TSS2 PEM file, and device.tpm may name the TPM.
package keystore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

// base is the name of the device's files in a credential folder.
const base = "device"

// files are what a credential folder holds, and what each is for.
var files = []struct{ name, what string }{
	{base + ".key", "private key"},
	{base + ".crt", "certificate"},
	{"ca.crt", "trust bundle"},
}

// openTries is how often Open reads a folder that another process is installing in.
const openTries = 4

// Keystore is the credentials of one device. It is immutable and safe for
// concurrent use.
type Keystore struct {
	dir  string
	cred mtls.Credentials
	tpm  string
}

// Open loads and checks the credential folder dir. Its error names the file
// and the remedy, and is fs.ErrNotExist if the folder or one of them is absent. A
// certificate outside its validity is no error, since this machine's clock may be the
// one that is wrong: see [Keystore.CheckValidity]. What [Draft.Install] was interrupted
// in, it finishes.
func Open(dir string) (*Keystore, error) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("credential folder: %w; `provisioning issue --id ID --out %s` makes it", err, dir)
	case err != nil:
		return nil, fmt.Errorf("credential folder: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("%s is a file; --dir takes the folder with device.key, device.crt and ca.crt", dir)
	}
	if err := finishDraft(dir); err != nil {
		return nil, err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("device %s: %w; copy the three files that `provisioning issue` wrote", f.what, err)
		}
	}
	cred, address, err := load(dir)
	for try := 1; err != nil && try < openTries; try++ { // perhaps between two steps of an Install
		if err := finishDraft(dir); err != nil {
			return nil, err
		}
		cred, address, err = load(dir)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("device credentials: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("device credentials: %w; restore the three files that `provisioning issue` wrote together", err)
	}
	if cred.Identity.Role != identity.RoleDevice {
		return nil, fmt.Errorf("%s is the certificate of a %s (%s), not of a device", filepath.Join(dir, base+".crt"), cred.Identity.Role, cred.Identity.ID)
	}
	return &Keystore{dir: dir, cred: cred, tpm: address}, nil
}

// TPM returns the address of the TPM that the private key is in, "" if it is in a file.
func (k *Keystore) TPM() string { return k.tpm }

// Dir returns the folder that was opened.
func (k *Keystore) Dir() string { return k.dir }

// Credentials returns key, chain and trust bundle, for a TLS connection.
func (k *Keystore) Credentials() mtls.Credentials { return k.cred }

// Identity returns who the certificate says this device is.
func (k *Keystore) Identity() identity.Identity { return k.cred.Identity }

// Fingerprint returns the SHA-256 of the certificate, in lower-case hex.
func (k *Keystore) Fingerprint() string { return identity.Fingerprint(k.cred.Leaf) }

// Issuer returns the common name of the CA that signed the certificate.
func (k *Keystore) Issuer() string { return k.cred.Leaf.Issuer.CommonName }

// Validity returns the first and last moment of the certificate.
func (k *Keystore) Validity() (notBefore, notAfter time.Time) {
	return k.cred.Leaf.NotBefore, k.cred.Leaf.NotAfter
}

// CheckValidity returns an error saying what to do if the certificate isn't
// valid at now, which is this machine's clock and may be wrong.
func (k *Keystore) CheckValidity(now time.Time) error {
	notBefore, notAfter := k.Validity()
	path := filepath.Join(k.dir, base+".crt")
	switch {
	case now.After(notAfter):
		return fmt.Errorf("%s expired at %s and it is %s by this machine's clock; set the clock if it is wrong, else provision the device anew", path, stamp(notAfter), stamp(now))
	case now.Before(notBefore):
		return fmt.Errorf("%s is valid from %s and it is %s by this machine's clock; set the clock", path, stamp(notBefore), stamp(now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
