package keystore

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/tpm"
)

const (
	draftFolder  = ".enrolment"
	completeFile = ".complete"
	addressFile  = "device.tpm" // the address of the TPM that device.key is in; only with such a key
)

// Draft is a device's next credentials, in a folder inside the credential folder: first
// a key, which is durable before anybody is asked to certify it, so that whoever is
// killed asks again with the same key and gets the same certificate; then the
// certificates. Install puts all of it in place of what was there, in one step: a power
// cut leaves the old credentials or the new ones. One process at a time may draft.
type Draft struct {
	dir string // the credential folder
	key crypto.Signer
}

// NewDraft begins, or takes up what an earlier try began. It makes dir (0700) where it
// is missing.
func NewDraft(dir string) (*Draft, error) {
	if err := os.MkdirAll(filepath.Join(dir, draftFolder), 0o700); err != nil {
		return nil, fmt.Errorf("credential folder: %w", err)
	}
	if err := finishDraft(dir); err != nil {
		return nil, err
	}
	d := &Draft{dir: dir}
	if err := os.MkdirAll(d.path(""), 0o700); err != nil {
		return nil, fmt.Errorf("credential folder: %w", err)
	}
	for _, folder := range []string{filepath.Dir(filepath.Clean(dir)), dir} {
		if err := pemfile.SyncDir(folder); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *Draft) path(name string) string { return filepath.Join(d.dir, draftFolder, name) }

// SoftwareKey returns the draft's key, made now unless an earlier try made it.
func (d *Draft) SoftwareKey() (crypto.Signer, error) {
	key, err := pemfile.ReadKey(d.path(base + ".key"))
	if err == nil {
		d.key = key
		return key, nil
	}
	// None, or one in a TPM, for which nobody asked this time.
	if key, err = issuance.NewKey(); err != nil {
		return nil, err
	}
	if err := os.Remove(d.path(addressFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	d.key = key
	return key, pemfile.WriteKey(d.path(base+".key"), key)
}

// TPMKey returns the draft's key in that TPM, made now unless an earlier try made it.
func (d *Draft) TPMKey(t *tpm.TPM) (*tpm.Key, error) {
	path := d.path(base + ".key")
	if data, err := os.ReadFile(path); err == nil && tpm.IsKeyFile(data) {
		if key, err := t.ReadKey(path, nil); err == nil {
			d.key = key
			return key, pemfile.Write(d.path(addressFile), []byte(t.Address()+"\n"), 0o644)
		} // another TPM's, or this one's before it was cleared: it will sign nothing any more
	}
	key, err := t.CreateKey(nil)
	if err != nil {
		return nil, err
	}
	if err := pemfile.Write(d.path(addressFile), []byte(t.Address()+"\n"), 0o644); err != nil {
		return nil, err
	}
	d.key = key
	return key, key.Write(path)
}

// Install puts key, certificate and trust bundle in place. The chain is the leaf, then
// its issuer; the leaf must have the draft's key.
func (d *Draft) Install(chain, bundle []*x509.Certificate) error {
	pub, ok := d.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || len(chain) == 0 || !pub.Equal(chain[0].PublicKey) {
		return errors.New("install credentials: the certificate is not for the key that was made")
	}
	if err := pemfile.WriteCertificates(d.path(base+".crt"), chain...); err != nil {
		return err
	}
	if err := pemfile.WriteCertificates(d.path("ca.crt"), bundle...); err != nil {
		return err
	}
	// From here on it will be there. An agent that opens the folder may be faster than the
	// sync of the draft's: then the draft is gone, and what was in it is in place.
	if err := pemfile.Write(d.path(completeFile), nil, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := finishDraft(d.dir); err != nil {
		return err
	}
	if _, err := os.Lstat(d.path("")); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("install credentials: %s is still there: %w", d.path(""), err)
	}
	return nil
}

// Discard drops the draft, for a key that won't be certified.
func (d *Draft) Discard() error { return os.RemoveAll(d.path("")) }

// finishDraft completes an Install that was interrupted, or does nothing. Of several
// processes that would, one does, and the others wait until it has.
func finishDraft(dir string) error {
	draft := filepath.Join(dir, draftFolder)
	if _, err := os.Lstat(filepath.Join(draft, completeFile)); err != nil {
		return nil // no draft, one that is not complete, or a folder that Open complains about
	}
	lock, err := lockDraft(draft)
	if lock == nil || err != nil {
		return err
	}
	defer lock.Close()
	moved := func(name string) error {
		err := os.Rename(filepath.Join(draft, name), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // an interrupted try moved it
			return fmt.Errorf("finish installing credentials: %w", err)
		}
		return nil
	}
	// The TPM's address before the key, so that no key is looked for in a TPM that it isn't in.
	if err := moved(addressFile); err != nil {
		return err
	}
	for _, f := range files {
		if err := moved(f.name); err != nil {
			return err
		}
	}
	if err := pemfile.SyncDir(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(draft); err != nil {
		return fmt.Errorf("finish installing credentials: %w", err)
	}
	return pemfile.SyncDir(dir)
}

// lockDraft locks a complete draft for finishing, with flock(2) on the folder itself. It
// returns nil if another process has finished it meanwhile.
func lockDraft(draft string) (*os.File, error) {
	f, err := os.Open(draft)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("finish installing credentials: %w", err)
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("finish installing credentials: %w", err), f.Close())
	}
	locked, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// The folder of that name may be another by now, with somebody's next draft in it.
	now, err := os.Lstat(draft)
	_, mark := os.Lstat(filepath.Join(draft, completeFile))
	if err != nil || mark != nil || !os.SameFile(locked, now) {
		return nil, f.Close()
	}
	return f, nil
}
