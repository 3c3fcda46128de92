package authority

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// JournalFile is the name of the record of what a folder's keys signed by command.
const JournalFile = "issued.jsonl"

// maxJournal bounds what is read of a journal, in octets: a million certificates.
const maxJournal = 1 << 30

// Line is one certificate in the journal.
type Line struct {
	Time        time.Time `json:"time"`
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer,omitempty"` // key identifier of the CA, in hex; older lines have none
	Serial      string    `json:"serial"`
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
	Certificate []byte    `json:"certificate"`
}

// Record appends a certificate to the journal in that folder, durably, before anyone gets
// it: what a CA key signed by command is on record, even if the command is killed.
func Record(dir string, cert *x509.Certificate) error {
	line, err := json.Marshal(Line{
		Time: time.Now().UTC(), Subject: cert.Subject.String(), Issuer: fmt.Sprintf("%x", cert.AuthorityKeyId), Serial: identity.SerialString(cert.SerialNumber),
		Fingerprint: identity.Fingerprint(cert), NotAfter: cert.NotAfter, Certificate: cert.Raw,
	})
	if err != nil {
		return err
	}
	path := filepath.Join(dir, JournalFile)
	if err := appendLine(path, line); err != nil {
		return fmt.Errorf("record the certificate in %s: %w", path, err)
	}
	return pemfile.SyncDir(dir)
}

// openJournal opens a journal, which must be a file: on a stick that others write to, a link
// would lead elsewhere, and a FIFO would be waited for.
func openJournal(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link, a file is required: find out who put it there", path)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file (mode %s): find out who put it there", path, info.Mode())
	}
	if err != nil {
		f.Close() // nothing was written
		return nil, err
	}
	return f, nil
}

// HasJournal reports whether there is a journal in that folder, whatever it is.
func HasJournal(dir string) (bool, error) {
	_, err := os.Lstat(filepath.Join(dir, JournalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// appendLine appends a line, on a line of its own whatever a killed run left before it.
func appendLine(path string, line []byte) (err error) {
	f, err := openJournal(path, os.O_RDWR|os.O_CREATE|os.O_APPEND)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, info.Size()-1); err != nil {
			return err
		}
		if last[0] != '\n' {
			line = append([]byte("\n"), line...)
		}
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	return f.Sync()
}

// Issued is a certificate of a journal.
type Issued struct {
	Time        time.Time
	Certificate *x509.Certificate
}

// Journal returns what is on record in that folder, oldest first; nothing if there is no
// journal. Lines that can't be read, which a killed command leaves one of at most, are
// counted.
func Journal(dir string) (all []Issued, unreadable int, err error) {
	f, err := openJournal(filepath.Join(dir, JournalFile), os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxJournal))
	if err != nil {
		return nil, 0, err
	}
	for text := range bytes.Lines(data) {
		text = bytes.TrimSpace(text)
		if len(text) == 0 {
			continue
		}
		var line Line
		if json.Unmarshal(text, &line) != nil {
			unreadable++
			continue
		}
		cert, err := x509.ParseCertificate(line.Certificate)
		if err != nil {
			unreadable++
			continue
		}
		all = append(all, Issued{Time: line.Time, Certificate: cert})
	}
	return all, unreadable, nil
}

// Dependents returns who has a certificate by that CA on record that is good at that time,
// and none by another CA since: services, operators and stations, by role and ID.
func (f Folder) Dependents(ca *x509.Certificate, now time.Time) ([]identity.Identity, error) {
	issued, _, err := Journal(f.Dir)
	if err != nil {
		return nil, err
	}
	type holder struct {
		identity  identity.Identity
		dependent bool
	}
	holders := make(map[string]holder)
	for _, i := range issued {
		id, err := identity.FromCertificate(i.Certificate)
		if err != nil || id.Role == identity.RoleHub || !now.Before(i.Certificate.NotAfter) {
			continue // an issuing CA, or the hub's own, which it renews itself, or nobody's by now
		}
		holders[id.String()] = holder{id, bytes.Equal(i.Certificate.AuthorityKeyId, ca.SubjectKeyId)}
	}
	var all []identity.Identity
	for _, h := range holders {
		if h.dependent {
			all = append(all, h.identity)
		}
	}
	slices.SortFunc(all, func(a, b identity.Identity) int { return strings.Compare(a.String(), b.String()) })
	return all, nil
}
