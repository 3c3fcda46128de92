// Package authority is the two folders that hold a CA's key: the hub's own, ca/, with the
// issuing CA, those before it and the one that is to come, and the root's, which lies in a
// safe or on a stick (see Root).
//
// A hub's folder ca/ has
//
//	operational.key/.crt   the issuing CA: it signs what the hub signs
//	former-KEYID.key/.crt  one before it: trusted, and its revocation list goes on, until it is removed
//	next.key/.csr          one that is asked for: the request goes to the root
//	next.crt               the root's answer: from here on the change is made, whatever crashes
//	removed/               those that are trusted no more
//	issued.jsonl           what those keys signed by command
//	send-issuer            see Folder.SendsIssuer
//
// KEYID is the subject key identifier in hex. Nothing here keeps a key in memory: that is
// Keys' to do.
package authority

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
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// Keys opens the key whose file is at path, wherever it is kept: a cakey.Opener or
// cakey.Cache. A missing file is fs.ErrNotExist.
type Keys interface {
	Open(path string) (crypto.Signer, error)
}

// Folder is the folder of a hub's issuing CAs. It is a name: methods read the files anew,
// and are safe for concurrent use. Of those that change it, one process at a time does, and
// the others are refused with ErrBusy.
type Folder struct {
	Dir  string
	Keys Keys
}

// In returns the folder of the hub in dir.
func In(dir string, keys Keys) Folder { return Folder{Dir: filepath.Join(dir, "ca"), Keys: keys} }

const (
	issuingName  = "operational"
	nextName     = "next"
	formerPrefix = "former-"
	removedDir   = "removed"
	senderFile   = "send-issuer"
)

// State is what a CA of a folder is to the hub.
type State string

// The states.
const (
	Issuing State = "issuing" // signs
	Former  State = "former"  // signed before, and is trusted for that
	Next    State = "next"    // about to take over: trusted, a command was interrupted
	Kept    State = "kept"    // somebody put it there: its status is published and it is not trusted
)

// Trusted reports whether who has a certificate by a CA in that state is let in.
func (s State) Trusted() bool { return s != Kept }

// CA is one CA of a folder.
type CA struct {
	State       State
	Certificate *x509.Certificate
	KeyFile     string // where its key is, if it is there
}

// KeyID is what files of a CA are named by.
func KeyID(ca *x509.Certificate) string { return fmt.Sprintf("%x", ca.SubjectKeyId) }

func (f Folder) path(name string) string { return filepath.Join(f.Dir, name) }

// ErrNoCA is in the chain while a hub has no issuing CA yet: the root is to sign its
// request.
var ErrNoCA = errors.New("the hub has no issuing CA yet")

// List returns the CAs of the folder, the issuing one first and the others by name of
// their file. A folder without an issuing CA is ErrNoCA, or fs.ErrNotExist if none was asked for.
func (f Folder) List() ([]CA, error) {
	files, err := filepath.Glob(f.path("*.crt"))
	if err != nil {
		return nil, err
	}
	var all []CA
	for _, file := range files {
		certs, err := pemfile.ReadCertificates(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it took another's place since the listing
		}
		if err != nil {
			return nil, err
		}
		ca := CA{State: Kept, Certificate: certs[0], KeyFile: strings.TrimSuffix(file, ".crt") + ".key"}
		if kind, err := identity.KindOf(ca.Certificate); err != nil || kind != identity.KindOperational {
			continue // somebody's copy of the root's, say
		}
		switch base := strings.TrimSuffix(filepath.Base(file), ".crt"); {
		case base == issuingName:
			ca.State = Issuing
		case base == nextName:
			ca.State = Next
		case strings.HasPrefix(base, formerPrefix):
			ca.State = Former
		}
		all = append(all, ca)
	}
	i := slices.IndexFunc(all, func(c CA) bool { return c.State == Issuing })
	if i < 0 {
		return nil, f.noCA()
	}
	issuing := all[i]
	return append([]CA{issuing}, slices.Delete(all, i, i+1)...), nil
}

// noCA says what to do about a folder without an issuing CA.
func (f Folder) noCA() error {
	if _, err := os.Stat(f.path(nextName + ".csr")); err == nil {
		return fmt.Errorf("%w: have the root sign %s (`hub root sign`) and install the answer with `hub ca install`", ErrNoCA, f.path(nextName+".csr"))
	}
	_, err := pemfile.ReadCertificates(f.path(issuingName + ".crt"))
	return err
}

// Certificate returns the issuing CA's certificate.
func (f Folder) Certificate() (*x509.Certificate, error) {
	all, err := f.List()
	if err != nil {
		return nil, err
	}
	return all[0].Certificate, nil
}

// Issuer returns the CA that signs what the hub signs now. If its key is kept elsewhere,
// that is fs.ErrNotExist.
func (f Folder) Issuer() (*issuance.Issuer, error) {
	all, err := f.List()
	if err != nil {
		return nil, err
	}
	key, err := f.Keys.Open(f.path(issuingName + ".key"))
	if err != nil {
		return nil, err
	}
	// While one CA takes over from another, the key is there before the certificate.
	for _, ca := range all {
		if ca.State == Next && sameKey(ca.Certificate.PublicKey, key.Public()) {
			return issuance.NewIssuer(ca.Certificate, key, nil)
		}
	}
	issuer, err := issuance.NewIssuer(all[0].Certificate, key, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Dir, err)
	}
	return issuer, nil
}

// Key returns a CA's key, nil if it is not in the folder.
func (f Folder) Key(ca CA) (crypto.Signer, error) {
	key, err := f.Keys.Open(ca.KeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !sameKey(ca.Certificate.PublicKey, key.Public()) {
		return nil, fmt.Errorf("%s does not belong to the certificate beside it", ca.KeyFile)
	}
	return key, nil
}

// SendsIssuer reports whether the hub has to send its issuing CA's certificate beside its
// own in each handshake, though it is in the trust bundle. It has to once the CA was
// replaced: who got the bundle before has the former CA in it and the root, and not this
// one. The file that says so is written by Install, and removed by an operator who knows
// that everybody has the new bundle.
func (f Folder) SendsIssuer() bool {
	_, err := os.Lstat(f.path(senderFile))
	return !errors.Is(err, fs.ErrNotExist) // in doubt what always works
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// Load reads a CA's certificate and opens its key, <folder>/<name>.crt and .key. A missing
// one matches fs.ErrNotExist: it may have been moved to a safe.
func Load(keys Keys, folder, name string) (*issuance.Issuer, error) {
	key, err := keys.Open(filepath.Join(folder, name+".key"))
	if err != nil {
		return nil, err
	}
	certs, err := pemfile.ReadCertificates(filepath.Join(folder, name+".crt"))
	if err != nil {
		return nil, err
	}
	issuer, err := issuance.NewIssuer(certs[0], key, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", folder, err)
	}
	return issuer, nil
}

// contains reports whether certs has that very certificate.
func contains(certs []*x509.Certificate, c *x509.Certificate) bool {
	return slices.ContainsFunc(certs, func(x *x509.Certificate) bool { return bytes.Equal(x.Raw, c.Raw) })
}
