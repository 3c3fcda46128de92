package station

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// maxExport is how many devices one manifest names at most: well below manifest.MaxSize.
const maxExport = 20_000

// Exported says what manifest was written. A zero Number is none: there was nothing new.
type Exported struct {
	Number    uint64    `json:"number"`
	Devices   int       `json:"devices"`
	File      string    `json:"file,omitempty"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	Repeated  bool      `json:"repeated"`  // it has the contents and number of an earlier run's
	Remaining int       `json:"remaining"` // devices that no manifest names yet
}

// Export writes the next manifest to out, a file that doesn't exist yet or a folder, in
// which it is named STATION-NUMBER.jws. Number and contents are in the ledger before
// the file is: if the program is killed in between, the next Export writes the same
// manifest, and what was issued since waits for the one after it.
func (s *Station) Export(out string) (Exported, error) {
	a, err := s.valid()
	if err != nil {
		return Exported{}, err
	}
	m, repeated, err := s.ledger.NextManifest(maxExport)
	if errors.Is(err, ledger.ErrNothingNew) {
		return Exported{}, nil
	}
	if err != nil {
		return Exported{}, err
	}
	path, err := s.exportPath(a, out, m.Number)
	if err != nil {
		return Exported{}, err
	}
	if !repeated {
		if m, err = s.ledger.CommitManifest(s.now(), m); err != nil {
			return Exported{}, err
		}
	}
	return s.write(a, m, path, repeated)
}

// Reexport writes an earlier manifest once more, for one that was lost on its way.
// It is signed afresh, so that it also is good under a renewed authority.
func (s *Station) Reexport(number uint64, out string) (Exported, error) {
	a, err := s.valid()
	if err != nil {
		return Exported{}, err
	}
	m, err := s.ledger.Manifest(number)
	if errors.Is(err, ledger.ErrNotFound) {
		return Exported{}, errorf(ErrNotFound, "station %s has written no manifest %d", s.name, number)
	}
	if err != nil {
		return Exported{}, err
	}
	path, err := s.exportPath(a, out, number)
	if err != nil {
		return Exported{}, err
	}
	return s.write(a, m, path, true)
}

// signed returns the manifest as it goes to a hub.
func (s *Station) signed(a *authority, m ledger.Manifest) ([]byte, error) {
	list := manifest.Manifest{TrustDomain: a.trustDomain, Station: s.name, Number: m.Number, CreatedAt: m.CreatedAt}
	err := s.ledger.Entries(m, func(r ledger.Record, der []byte) error {
		protection, err := listedProtection(r, der)
		list.Devices = append(list.Devices, manifest.Entry{Certificate: der, Model: r.Model, Labels: r.Labels, Protection: protection, EK: r.EK, Supersedes: r.Supersedes})
		return err
	})
	if err != nil {
		return nil, err
	}
	return manifest.Sign(list, []*x509.Certificate{a.issuer.Certificate()}, s.key)
}

// listedProtection returns what the manifest says of a device's key. Where the ledger has it in
// a TPM the certificate must say so, too, for a hub to believe it; those of programs
// before there was a policy for it don't.
func listedProtection(r ledger.Record, der []byte) (string, error) {
	if r.Protection != ledger.TPM {
		return string(r.Protection), nil
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "", fmt.Errorf("the ledger's certificate of %s is damaged (%w): restore the ledger from a backup", r.ID, err)
	}
	return string(identity.ProtectionOf(cert)), nil
}

func (s *Station) write(a *authority, m ledger.Manifest, path string, repeated bool) (Exported, error) {
	signed, err := s.signed(a, m)
	if err != nil {
		return Exported{}, err
	}
	if err := pemfile.Write(path, signed, 0o644); err != nil {
		return Exported{}, err
	}
	if err := s.ledger.DeliverManifest(s.now(), m.Number); err != nil {
		return Exported{}, err
	}
	remaining, err := s.ledger.Unexported()
	return Exported{Number: m.Number, Devices: m.Len(), File: path, CreatedAt: m.CreatedAt, Repeated: repeated, Remaining: remaining}, err
}

// exportPath returns the file for a manifest. A file that is there already is replaced
// only if it holds the same manifest; another one may not have reached the hub yet.
func (s *Station) exportPath(a *authority, out string, number uint64) (string, error) {
	path := out
	if info, err := os.Stat(out); err == nil && info.IsDir() {
		path = filepath.Join(out, fmt.Sprintf("%s-%06d.jws", s.name, number))
	} else if info, err := os.Stat(filepath.Dir(out)); err != nil || !info.IsDir() {
		return "", errorf(ErrNotFound, "there is no folder %s: make it, or choose another --out", filepath.Dir(out))
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return path, nil
	}
	if err == nil && !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file: choose another --out", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, manifest.MaxSize))
	if err != nil {
		return "", err
	}
	m, _, err := manifest.Open(data, []*x509.Certificate{a.root}, s.now())
	if err != nil || m.Station != s.name || m.Number != number {
		return "", fmt.Errorf("%s exists and is not manifest %d of station %s, so it is not overwritten: choose another --out", path, number, s.name)
	}
	return path, nil
}
