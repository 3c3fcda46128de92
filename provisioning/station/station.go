// Package station is the factory station: it gives devices their keys and
// certificates, and tells the hub which ones in signed manifests.
//
// A station is a folder with its key, the request for its authority, the authority
// itself (an issuing CA certificate, signed by the fleet's root) and the ledger. The
// station needs no network. What it does is a sequence of durable steps, each safe to
// repeat: see DESIGN.md one folder up for what survives a power cut where.
package station

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// The files of a station's folder.
const (
	keyFile       = "station.key"
	csrFile       = "station.csr"
	authorityFile = "authority.crt" // issuing CA certificate, then root certificate
	ledgerFile    = "ledger.db"
)

// Sentinels: the kinds of error that callers branch on, with errors.Is.
var (
	ErrNotFound = errors.New("not found") // no station, file, folder or manifest of that name
	ErrInvalid  = errors.New("invalid")   // an ID, name, count or the like that can't be used
	ErrDenied   = errors.New("denied")    // no authority, one outside its validity or budget, one that is not ours; no order
)

// kindError is an error of one of these kinds, whose text is the sentence alone.
type kindError struct {
	error
	kind error
}

func (e kindError) Unwrap() []error { return []error{e.error, e.kind} }

func errorf(kind error, format string, args ...any) error {
	return kindError{fmt.Errorf(format, args...), kind}
}

// Station is an open station folder. It holds the ledger's lock until Close, so there
// is one at a time. It is safe for concurrent use, but that one folder of a device can't
// be worked at by two.
type Station struct {
	dir       string
	name      string
	key       crypto.Signer
	ledger    *ledger.Ledger
	authority atomic.Pointer[authority] // nil until Accept
	now       func() time.Time
	serving   sync.Mutex // held while the server's key is made
}

// Created says what Init made.
type Created struct {
	Station string `json:"station"`
	Key     string `json:"key"`
	Request string `json:"request"`    // the CSR for `hub station authorize`
	KeyHash string `json:"key_sha256"` // identity.KeyFingerprint, to be compared at the root
}

// KeyMaker makes a station's key and returns it with the contents of its file.
type KeyMaker func() (key crypto.Signer, file []byte, err error)

// PlainKey makes a key in a file.
func PlainKey() (crypto.Signer, []byte, error) {
	key, err := issuance.NewKey()
	if err != nil {
		return nil, nil, err
	}
	file, err := pemfile.EncodeKey(key)
	return key, file, err
}

// Init is InitWith of a PlainKey.
func Init(dir, name string) (Created, error) { return InitWith(dir, name, PlainKey) }

// InitWith makes a station in dir: its key, the request for its authority, and an empty
// ledger, all or nothing. It refuses to overwrite. Repeated after a kill it either
// starts afresh or returns what the killed run had made.
func InitWith(dir, name string, newKey KeyMaker) (Created, error) {
	if err := identity.ValidID(name); err != nil {
		return Created{}, errorf(ErrInvalid, "the station can't have that name: %w", err)
	}
	created := Created{Station: name, Key: filepath.Join(dir, keyFile), Request: filepath.Join(dir, csrFile)}
	finished, err := pemfile.Finish(dir)
	if err != nil {
		return Created{}, err
	}
	for _, file := range []string{keyFile, csrFile, ledgerFile} {
		if _, err := os.Lstat(filepath.Join(dir, file)); err == nil {
			if finished && ledgerName(dir) == name {
				return created.withKey()
			}
			return Created{}, fmt.Errorf("%s holds a station already (%s), which is never overwritten: choose another folder", dir, file)
		}
	}
	stage, err := pemfile.NewStage(dir)
	if err != nil {
		return Created{}, err
	}
	defer stage.Abort()
	key, file, err := newKey()
	if err != nil {
		return Created{}, err
	}
	csr, err := issuance.NewCSR(key, name)
	if err != nil {
		return Created{}, err
	}
	if err := pemfile.Write(stage.Path(keyFile), file, 0o600); err != nil {
		return Created{}, err
	}
	if err := pemfile.WriteCSR(stage.Path(csrFile), csr); err != nil {
		return Created{}, err
	}
	if err := ledger.Create(stage.Path(ledgerFile), name); err != nil {
		return Created{}, err
	}
	if err := stage.Commit(); err != nil {
		return Created{}, err
	}
	if err := pemfile.SyncDir(filepath.Dir(filepath.Clean(dir))); err != nil {
		return Created{}, err
	}
	return created.withKey()
}

// withKey adds the fingerprint of the key that the request names.
func (c Created) withKey() (Created, error) {
	der, err := pemfile.ReadCSR(c.Request)
	if err != nil {
		return Created{}, err
	}
	csr, err := issuance.ParseCSR(der)
	if err != nil {
		return Created{}, fmt.Errorf("%s: %w", c.Request, err)
	}
	c.KeyHash = identity.KeyFingerprint(csr.RawSubjectPublicKeyInfo)
	return c, nil
}

func ledgerName(dir string) string {
	l, err := ledger.Open(filepath.Join(dir, ledgerFile))
	if err != nil {
		return ""
	}
	defer l.Close()
	return l.Station()
}

// Open is OpenWith of keys in plain files and in this machine's TPM.
func Open(dir string, now func() time.Time) (*Station, error) {
	return OpenWith(dir, cakey.Opener{}, now)
}

// OpenWith opens the station in dir, whose key is where its file says. A nil now is
// time.Now.
func OpenWith(dir string, keys cakey.Opener, now func() time.Time) (*Station, error) {
	if now == nil {
		now = time.Now
	}
	if _, err := pemfile.Finish(dir); err != nil {
		return nil, err
	}
	key, err := keys.Open(filepath.Join(dir, keyFile))
	if _, lost := os.Lstat(filepath.Join(dir, keyFile)); errors.Is(lost, fs.ErrNotExist) {
		return nil, errorf(ErrNotFound, "%s holds no station: make one with `provisioning init --dir %s --name NAME`", dir, dir)
	}
	if err != nil {
		return nil, err
	}
	journal, err := ledger.Open(filepath.Join(dir, ledgerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing from %s: restore it from a backup, a new one would forget what was issued", ledgerFile, dir)
	}
	if err != nil {
		return nil, err
	}
	s := &Station{dir: dir, name: journal.Station(), key: key, ledger: journal, now: now}
	if err := s.loadAuthority(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close lets other commands use the station.
func (s *Station) Close() error { return s.ledger.Close() }

// Name returns the station's name.
func (s *Station) Name() string { return s.name }

// Ledger returns the station's journal, to read. It is closed with the station.
func (s *Station) Ledger() *ledger.Ledger { return s.ledger }

// SetPassphrase encrypts the key of the station in dir with a passphrase or, if that is
// empty, takes it into a plain file again. The file is replaced at once, or stays as it
// is. What a plain file held may stay on the disk's free blocks.
func SetPassphrase(dir string, keys cakey.Opener, passphrase []byte) error {
	path := filepath.Join(dir, keyFile)
	kind, err := cakey.KindOf(path)
	if errors.Is(err, fs.ErrNotExist) {
		return errorf(ErrNotFound, "%s holds no station", dir)
	}
	if err != nil {
		return err
	}
	if kind == cakey.TPM || kind == cakey.HSM {
		return errorf(ErrInvalid, "the key of the station in %s is in a %s, which never lets it out: it needs no passphrase", dir, kind)
	}
	return keys.SetPassphrase(path, passphrase)
}

func hashKey(pub crypto.PublicKey) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("encode public key: %w", err)
	}
	return ledger.HashKey(spki), nil
}
