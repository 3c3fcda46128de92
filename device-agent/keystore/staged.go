package keystore

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// Stage keeps a draft's certificates durably beside its key, and leaves what is in place
// as it is, until Promote. It is for a renewal, whose certificate the hub has yet to take:
// a device that gave its old one away before would be locked out if it doesn't. The
// arguments are those of Install.
func (d *Draft) Stage(chain, bundle []*x509.Certificate) error {
	pub, ok := d.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || len(chain) == 0 || !pub.Equal(chain[0].PublicKey) {
		return errors.New("stage credentials: the certificate is not for the key that was made")
	}
	// The certificate last: with it the draft is whole.
	if err := pemfile.WriteCertificates(d.path("ca.crt"), bundle...); err != nil {
		return err
	}
	return pemfile.WriteCertificates(d.path(base+".crt"), chain...)
}

// OpenStaged loads what Stage has kept in the credential folder dir. Its error is
// fs.ErrNotExist if there is nothing.
func OpenStaged(dir string) (*Keystore, error) {
	d := &Draft{dir: dir}
	for _, f := range files {
		if _, err := os.Stat(d.path(f.name)); err != nil {
			return nil, fmt.Errorf("staged %s: %w", f.what, err)
		}
	}
	cred, address, err := load(d.path(""))
	if err != nil {
		return nil, fmt.Errorf("staged credentials: %w", err)
	}
	if cred.Identity.Role != identity.RoleDevice {
		return nil, fmt.Errorf("staged credentials: the certificate is a %s's, not a device's", cred.Identity.Role)
	}
	return &Keystore{dir: dir, cred: cred, tpm: address}, nil
}

// Promote puts what is staged in dir in place of the credentials there, in one step, as
// Install does. It does nothing if nothing is staged.
func Promote(dir string) error {
	if _, err := OpenStaged(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	d := &Draft{dir: dir}
	if err := pemfile.Write(d.path(completeFile), nil, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return finishDraft(dir)
}

// DiscardStaged drops what is staged in dir, the key with it.
func DiscardStaged(dir string) error { return (&Draft{dir: dir}).Discard() }
