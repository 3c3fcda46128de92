package authority

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// A new issuing CA, be it the first or the next:
//
//  1. Request makes the key, then the request for the root.
//  2. The root signs it, wherever it is.
//  3. Install checks the answer and writes next.crt: before that nothing has changed, after
//     it Finish does the rest, now or after a crash.
//  4. Finish: the CA goes into the trust bundle; the CA that was gets names of its own; the
//     key, and then the certificate, of the new one take its place; next.crt goes last.

// ErrMismatch is in the chain if a certificate is not one that the folder waits for.
var ErrMismatch = errors.New("not the issuing CA that this hub asked for")

// ErrBusy is in the chain while another process changes the folder.
var ErrBusy = errors.New("another command is changing the hub's issuing CA")

// lock keeps other processes from changing the folder until unlock is called, or this one
// ends.
func (f Folder) lock() (unlock func(), err error) {
	dir, err := os.Open(f.Dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		dir.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w in %s: wait until it is done", ErrBusy, f.Dir)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Dir, err)
	}
	return func() { dir.Close() }, nil
}

// Install makes the root's answer the hub's issuing CA. The certificate must be by a root
// of the trust bundle, for that trust domain, good at that time, and for the key of the
// request; else nothing changes and the error says why. Installing what is installed
// changes nothing and is no error.
func (f Folder) Install(cert *x509.Certificate, trustDomain string, now time.Time) error {
	unlock, err := f.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := f.finish(); err != nil {
		return err
	}
	bundle, err := pemfile.ReadCertificates(f.bundleFile())
	if err != nil {
		return err
	}
	if err := CheckIssuer(cert, identity.KindOperational, bundle, trustDomain, now); err != nil {
		return err
	}
	current, err := f.Certificate()
	first := err != nil
	if err != nil && !errors.Is(err, ErrNoCA) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !first && current.Equal(cert) {
		return nil
	}
	key, err := f.Keys.Open(f.path(nextName + ".key"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: there is no request in %s; `hub ca rotate` makes one", ErrMismatch, f.Dir)
	}
	if err != nil {
		return err
	}
	if !sameKey(cert.PublicKey, key.Public()) {
		return fmt.Errorf("%w: the certificate of %q is for another key than %s", ErrMismatch, cert.Subject.CommonName, f.path(nextName+".key"))
	}
	if err := pemfile.WriteCertificates(f.path(nextName+".crt"), cert); err != nil {
		return err
	}
	_, err = f.finish()
	return err
}

// Finish completes an Install that was interrupted, and reports whether there was one. It
// opens no key. One that another process is doing is left to it.
func (f Folder) Finish() (bool, error) {
	if _, err := os.Lstat(f.path(nextName + ".crt")); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	unlock, err := f.lock()
	if errors.Is(err, ErrBusy) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unlock()
	return f.finish()
}

func (f Folder) finish() (bool, error) {
	next, err := pemfile.ReadCertificates(f.path(nextName + ".crt"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	current, err := pemfile.ReadCertificates(f.path(issuingName + ".crt"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err != nil || !current[0].Equal(next[0]) {
		if err := f.answers(next[0]); err != nil {
			return false, err
		}
		if err := f.intoBundle(next[0]); err != nil {
			return false, err
		}
	}
	if err == nil && !current[0].Equal(next[0]) {
		if err := f.sendIssuer(); err != nil {
			return false, err
		}
		if err := f.keepFormer(current[0]); err != nil {
			return false, err
		}
	}
	if err := os.Rename(f.path(nextName+".key"), f.path(issuingName+".key")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := pemfile.SyncDir(f.Dir); err != nil {
		return false, err
	}
	if err := pemfile.WriteCertificates(f.path(issuingName+".crt"), next[0]); err != nil {
		return false, err
	}
	for _, name := range []string{nextName + ".csr", nextName + ".crt"} { // the mark last
		if err := os.Remove(f.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if err := pemfile.SyncDir(f.Dir); err != nil {
			return false, err
		}
	}
	return true, nil
}

// answers returns nil if next.crt is for the key of the request beside it: somebody may have
// put another there by hand.
func (f Folder) answers(cert *x509.Certificate) error {
	request, err := ReadCSR(f.path(nextName + ".csr"))
	if err != nil || !bytes.Equal(request.RawSubjectPublicKeyInfo, cert.RawSubjectPublicKeyInfo) {
		return fmt.Errorf("%w: %s doesn't answer the request beside it; move it away, and install what the root signed with `hub ca install`", ErrMismatch, f.path(nextName+".crt"))
	}
	return nil
}

func (f Folder) bundleFile() string { return filepath.Join(filepath.Dir(f.Dir), "ca.crt") }

// intoBundle puts a CA that a root of the trust bundle signed into it: behind the roots,
// before the CAs that were, whose certificates are still about.
func (f Folder) intoBundle(cert *x509.Certificate) error {
	bundle, err := pemfile.ReadCertificates(f.bundleFile())
	if err != nil {
		return err
	}
	if contains(bundle, cert) {
		return nil
	}
	if !byRootOf(bundle, cert) {
		return fmt.Errorf("%w: no root of %s signed the certificate of %q", ErrMismatch, f.bundleFile(), cert.Subject.CommonName)
	}
	at := slices.IndexFunc(bundle, func(c *x509.Certificate) bool { return !isRoot(c) })
	if at < 0 {
		at = len(bundle)
	}
	return pemfile.WriteCertificates(f.bundleFile(), slices.Insert(bundle, at, cert)...)
}

// sendIssuer writes the file that SendsIssuer looks for.
func (f Folder) sendIssuer() error {
	return pemfile.Write(f.path(senderFile), []byte(`The hub sends the certificate of its issuing CA in each full handshake (500 octets), because the CA was
replaced: devices that were made before have a trust bundle (ca.crt) without the new one. Once all have
the new bundle, remove this file and send SIGHUP.
`), 0o644)
}

// keepFormer gives the CA that was the issuing one names of its own, beside those it has.
// Its key is still in its place as long as the next one is not.
func (f Folder) keepFormer(cert *x509.Certificate) error {
	base := f.path(formerPrefix + KeyID(cert))
	if _, err := os.Stat(f.path(nextName + ".key")); err == nil {
		err := os.Link(f.path(issuingName+".key"), base+".key")
		if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) { // ErrNotExist: it is in a safe
			err = copyKey(f.path(issuingName+".key"), base+".key") // a file system without links
		}
		if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return pemfile.WriteCertificates(base+".crt", cert)
}

func copyKey(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	defer clear(data)
	return pemfile.Write(to, data, 0o600)
}

// Remove takes a former CA out of the trust bundle and moves its files to removed/, from
// where they can be brought back. It returns where they are: nothing if the CA is not a
// former one of this folder.
func (f Folder) Remove(cert *x509.Certificate) (moved []string, err error) {
	unlock, err := f.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := f.List()
	if err != nil {
		return nil, err
	}
	for _, ca := range all {
		if ca.State != Former || !bytes.Equal(ca.Certificate.RawSubjectPublicKeyInfo, cert.RawSubjectPublicKeyInfo) {
			continue
		}
		// First, what is handed on: repeated after a crash, the rest is done.
		bundle, err := pemfile.ReadCertificates(f.bundleFile())
		if err != nil {
			return moved, err
		}
		if contains(bundle, ca.Certificate) {
			bundle = slices.DeleteFunc(bundle, func(c *x509.Certificate) bool { return c.Equal(ca.Certificate) })
			if err := pemfile.WriteCertificates(f.bundleFile(), bundle...); err != nil {
				return moved, err
			}
		}
		if err := os.MkdirAll(f.path(removedDir), 0o700); err != nil {
			return moved, err
		}
		certFile := ca.KeyFile[:len(ca.KeyFile)-len(".key")] + ".crt"
		for _, file := range []string{certFile, ca.KeyFile} { // the trust before the key
			to := filepath.Join(f.path(removedDir), filepath.Base(file))
			if err := os.Rename(file, to); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return moved, err
			}
			moved = append(moved, to)
		}
		if err := errors.Join(pemfile.SyncDir(f.path(removedDir)), pemfile.SyncDir(f.Dir)); err != nil {
			return moved, err
		}
	}
	return moved, nil
}

// CheckIssuer returns nil if the certificate is of an issuing CA of that kind, by a root
// of the bundle, bound to the trust domain, and good at that time.
func CheckIssuer(cert *x509.Certificate, kind identity.IssuerKind, bundle []*x509.Certificate, trustDomain string, now time.Time) error {
	got, err := identity.KindOf(cert)
	if err != nil {
		return err
	}
	if got != kind {
		return fmt.Errorf("the certificate of %q is of the kind %s, %s is required", cert.Subject.CommonName, got, kind)
	}
	if err := identity.ValidID(cert.Subject.CommonName); err != nil {
		return fmt.Errorf("the name of the certificate: %w", err)
	}
	if !byRootOf(bundle, cert) {
		return fmt.Errorf("the certificate of %q is by no root of this hub's trust bundle ca.crt: it is another fleet's", cert.Subject.CommonName)
	}
	if len(cert.PermittedURIDomains) != 1 || cert.PermittedURIDomains[0] != trustDomain {
		return fmt.Errorf("the certificate of %q is for the trust domain %q, this hub's is %s", cert.Subject.CommonName, cert.PermittedURIDomains, trustDomain)
	}
	if now.After(cert.NotAfter) || now.Before(cert.NotBefore) {
		return fmt.Errorf("the certificate of %q is good from %s to %s: set the clock, or have the root sign anew",
			cert.Subject.CommonName, cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

func isRoot(c *x509.Certificate) bool {
	kind, err := identity.KindOf(c)
	return err == nil && kind == identity.KindRoot
}

// byRootOf reports whether a root of the bundle signed the certificate.
func byRootOf(bundle []*x509.Certificate, cert *x509.Certificate) bool {
	return slices.ContainsFunc(bundle, func(c *x509.Certificate) bool { return isRoot(c) && cert.CheckSignatureFrom(c) == nil })
}
