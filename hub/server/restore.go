package server

import (
	"archive/tar"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/boltstore"
	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/journal"
)

// Restored is what a restore did.
type Restored struct {
	BackupAbout
	Kept []string `json:"kept,omitempty"` // where what was there before is now
}

// Restore puts a backup into a hub's folder, which no hub uses meanwhile. Everything is
// unpacked beside and checked before anything changes; what was there is kept under
// another name if replace is set, and else is an error. It is safe to repeat after a
// crash at any point.
func Restore(dir string, backup io.Reader, replace bool, now time.Time) (Restored, error) {
	config, err := LoadConfig(dir, os.Environ())
	if err != nil {
		return Restored{}, command.WithCode(command.BadConfig, err)
	}
	var present []string
	for _, name := range []string{storeFile, journalDir} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			present = append(present, name)
		}
	}
	if len(present) > 0 && !replace {
		return Restored{}, fmt.Errorf("%s has %s already: name an empty hub's folder, or say --replace to put them aside", dir, strings.Join(present, " and "))
	}
	if err := notRunning(dir); err != nil {
		return Restored{}, err
	}
	stage, err := os.MkdirTemp(dir, ".restore-")
	if err != nil {
		return Restored{}, err
	}
	defer os.RemoveAll(stage)
	about, err := unpack(stage, backup)
	if err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	if about.TrustDomain != config.TrustDomain {
		return Restored{}, fmt.Errorf("restore: the backup is of the fleet %s and %s is of %s", about.TrustDomain, dir, config.TrustDomain)
	}
	if _, err := CheckStores(stage); err != nil {
		return Restored{}, fmt.Errorf("restore: the backup is damaged: %w", err)
	}
	if err := issuersFit(stage, dir); err != nil {
		return Restored{}, err
	}
	// The stores last: until they are in place, the hub doesn't start.
	if err := addMissing(stage, dir); err != nil {
		return Restored{}, err
	}
	r := Restored{BackupAbout: about}
	aside := ".before-" + now.UTC().Format("20060102T150405.000000000Z")
	for _, name := range []string{journalDir, storeFile} {
		to := filepath.Join(dir, name)
		if _, err := os.Lstat(to); err == nil {
			if err := os.Rename(to, to+aside); err != nil {
				return r, err
			}
			r.Kept = append(r.Kept, to+aside)
		}
		if err := os.Rename(filepath.Join(stage, name), to); err != nil {
			return r, err
		}
	}
	return r, pemfile.SyncDir(dir)
}

// notRunning is an error if a hub has the folder's store open. What else is wrong with
// the store is no matter: it is about to be put aside.
func notRunning(dir string) error {
	if err := boltstore.Check(filepath.Join(dir, storeFile)); errors.Is(err, boltstore.ErrLocked) {
		return fmt.Errorf("a hub is running in %s: stop it first, then restore", dir)
	}
	return nil
}

// issuersFit refuses a backup whose issuers the folder's root didn't sign: a hub that was
// made anew has another root, and its devices would be strangers.
func issuersFit(from, dir string) error {
	roots, err := pemfile.ReadCertificates(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return command.WithCode(command.BadConfig, err)
	}
	files, err := filepath.Glob(filepath.Join(issuersDir(from), "*.crt"))
	if err != nil {
		return err
	}
	for _, file := range files {
		issuers, err := pemfile.ReadCertificates(file)
		if err != nil {
			return fmt.Errorf("restore: the backup is damaged: %w", err)
		}
		if !slices.ContainsFunc(roots, func(root *x509.Certificate) bool { return issuers[0].CheckSignatureFrom(root) == nil }) {
			return fmt.Errorf("restore: %s is a hub of another root than the backup's: copy ca/, ca.crt, hub.yaml, issuers/, operator/, policy.yaml and tls/ from the folder that was backed up", dir)
		}
	}
	return nil
}

// addMissing puts a backup's small files into the folder, those that it lacks.
func addMissing(from, to string) error {
	names, err := smallFiles(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		target := filepath.Join(to, name)
		if _, err := os.Lstat(target); err == nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			return err
		}
		if err := pemfile.Write(target, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// unpack writes a backup's files below dir and holds them against their sums.
func unpack(dir string, backup io.Reader) (about BackupAbout, err error) {
	if err := os.Mkdir(filepath.Join(dir, journalDir), 0o700); err != nil {
		return about, err
	}
	sums := make(map[string]string)
	files := tar.NewReader(backup)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return about, errors.New("the backup is cut off: it doesn't end with its sums")
		}
		if err != nil {
			return about, fmt.Errorf("not a backup, or a damaged one: %w", err)
		}
		if header.Typeflag != tar.TypeReg || header.Size > maxBackupFile {
			return about, fmt.Errorf("not a backup: it has a %q that is no plain file", header.Name)
		}
		sum := sha256.New()
		content := io.TeeReader(files, sum)
		switch folder, name := path.Split(header.Name); {
		case header.Name == backupSums:
			return about, checkSums(sums, files)
		case header.Name == backupAbout:
			err = readAbout(&about, content)
		case header.Name == storeFile, isSmallFile(header.Name):
			err = writeFile(filepath.Join(dir, header.Name), content)
		case folder == journalDir+"/":
			err = journal.PutFile(filepath.Join(dir, journalDir), name, header.Size, content)
		default:
			err = fmt.Errorf("it has a file %q, which no backup has", header.Name)
		}
		if err != nil {
			return about, err
		}
		sums[header.Name] = sumOf(sum)
	}
}

func readAbout(about *BackupAbout, content io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(content, 64<<10))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, about); err != nil {
		return fmt.Errorf("read what the backup says of itself: %w", err)
	}
	if about.Format != backupFormat {
		return fmt.Errorf("the backup has format %d and this hub reads %d: restore it with the hub that made it", about.Format, backupFormat)
	}
	return nil
}

func writeFile(name string, content io.Reader) (err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	return f.Sync()
}

func sumOf(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// checkSums holds what was read against the backup's last file.
func checkSums(got map[string]string, sums io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(sums, 16<<20))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		if got[name] != sum {
			return fmt.Errorf("%s in the backup is missing or damaged: its sum is not the one noted", name)
		}
		delete(got, name)
	}
	for name := range got {
		return fmt.Errorf("%s in the backup has no sum: it was added later", name)
	}
	return nil
}

// StoresReport is what CheckStores found.
type StoresReport struct {
	Files    int    `json:"journal_files"`
	Records  uint64 `json:"journal_records"`
	Torn     int64  `json:"journal_torn_bytes"` // of a write that was interrupted, which the next start cuts off
	Sessions int    `json:"sessions"`
	Queued   int    `json:"queued"`   // messages, in all queues
	Retained int    `json:"retained"` // messages
	Missing  int    `json:"missing"`  // messages that are named and not there
}

// CheckStores looks through the stores in a folder that no hub uses, and changes
// nothing. An error says what is damaged and where.
func CheckStores(dir string) (r StoresReport, err error) {
	switch err := boltstore.Check(filepath.Join(dir, storeFile)); {
	case errors.Is(err, boltstore.ErrLocked):
		return r, fmt.Errorf("a hub is running in %s, and its stores can be looked through only at rest: stop it first, or check a copy (`hub backup`, then `hub restore` into another folder)", dir)
	case errors.Is(err, fs.ErrNotExist):
		return r, fmt.Errorf("%s has no store yet, because no hub has run there: there is nothing to check", dir)
	case err != nil:
		return r, err
	}
	state := new(ingest.State)
	report, err := journal.Check(filepath.Join(dir, journalDir), func(_ journal.Position, record []byte) error { return state.Apply(record) })
	if err != nil {
		return r, err
	}
	r.Files, r.Records, r.Torn = report.Segments, report.Records, report.Torn
	r.Missing = state.Prune()
	r.Sessions, r.Retained = len(state.Sessions), len(state.Retained)
	for _, s := range state.Sessions {
		r.Queued += len(s.Queue)
	}
	return r, nil
}
