package server

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/command"
)

// A backup is a tar file: what it is, the journal, the store, the certificates of
// issuers, and at its end the sum of each, without which it is not whole. No key is in
// it, so that who may read backups can't be the hub; the folder that it is restored
// into has those.

// storeFile is the registry in a hub's folder.
const storeFile = "hub.db"

const (
	backupAbout   = "backup.json"
	backupSums    = "SHA256SUMS"
	backupFormat  = 1
	maxBackupFile = 1 << 40 // octets of one file in a backup
)

// smallPatterns are the files of a hub's folder that a backup has beside the stores, as
// path.Match takes them. A restore adds those that the folder lacks: it may know newer
// ones. Without the policy, the default rules would be in force, and what it denies
// allowed; without the foreign lists, revocations of devices that aren't registered yet
// would be forgotten.
func smallPatterns() []string {
	return []string{PolicyFile, issuersDir("") + "/*.crt", statusDir + "/foreign/*"}
}

// smallFiles returns the names of those that are in a folder, in order.
func smallFiles(dir string) (names []string, err error) {
	for _, pattern := range smallPatterns() {
		files, err := fs.Glob(os.DirFS(dir), pattern)
		if err != nil {
			return nil, err
		}
		for _, name := range files {
			if isSmallFile(name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// isSmallFile reports whether a name in a backup is one of theirs. One that begins with a
// dot is half-written.
func isSmallFile(name string) bool {
	return !strings.HasPrefix(path.Base(name), ".") && slices.ContainsFunc(smallPatterns(), func(pattern string) bool {
		ok, err := path.Match(pattern, name)
		return ok && err == nil
	})
}

// BackupAbout says what a backup is of.
type BackupAbout struct {
	Format      int       `json:"format"`
	TrustDomain string    `json:"trust_domain"`
	Time        time.Time `json:"time"`
	Commit      string    `json:"commit"`
}

// Backup writes a backup of the running hub. Everything that was acknowledged before it
// began is in it: the journal comes first, then the store, so a revocation can be in it
// whose sessions still are, which a start then ends, but never the other way round.
func (h *Hub) Backup(ctx context.Context, w io.Writer) error {
	if err := h.journal.Sync(ctx); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	b := &backupWriter{tar: tar.NewWriter(w), now: h.now()}
	about, err := json.Marshal(BackupAbout{Format: backupFormat, TrustDomain: h.config.TrustDomain, Time: h.now().UTC(), Commit: command.Commit()})
	if err != nil {
		return err
	}
	if err := b.add(backupAbout, int64(len(about)), bytes.NewReader(about)); err != nil {
		return err
	}
	err = h.journal.Backup(ctx, 0, func(name string, size int64, content io.Reader) error {
		return b.add(path.Join(journalDir, name), size, content)
	})
	if err != nil {
		return err
	}
	err = h.store.Snapshot(ctx, func(size int64, writeTo func(io.Writer) error) error {
		return b.write(storeFile, size, writeTo)
	})
	if err != nil {
		return err
	}
	files, err := smallFiles(h.config.Dir)
	if err != nil {
		return err
	}
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join(h.config.Dir, name))
		if err != nil {
			return fmt.Errorf("back up: %w", err)
		}
		if err := b.add(name, int64(len(data)), bytes.NewReader(data)); err != nil {
			return err
		}
	}
	return b.close()
}

// backupWriter writes the files of a backup and keeps their sums.
type backupWriter struct {
	tar  *tar.Writer
	now  time.Time
	sums bytes.Buffer
}

func (b *backupWriter) add(name string, size int64, content io.Reader) error {
	return b.write(name, size, func(w io.Writer) error {
		_, err := io.Copy(w, content)
		return err
	})
}

func (b *backupWriter) write(name string, size int64, writeTo func(io.Writer) error) error {
	if err := b.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: b.now, Format: tar.FormatPAX}); err != nil {
		return fmt.Errorf("back up %s: %w", name, err)
	}
	sum := sha256.New()
	if err := writeTo(io.MultiWriter(b.tar, sum)); err != nil {
		return fmt.Errorf("back up %s: %w", name, err)
	}
	fmt.Fprintf(&b.sums, "%x  %s\n", sum.Sum(nil), name)
	return nil
}

func (b *backupWriter) close() error {
	sums := b.sums.Bytes()
	if err := b.tar.WriteHeader(&tar.Header{Name: backupSums, Mode: 0o600, Size: int64(len(sums)), ModTime: b.now, Format: tar.FormatPAX}); err != nil {
		return err
	}
	if _, err := b.tar.Write(sums); err != nil {
		return err
	}
	return b.tar.Close()
}
