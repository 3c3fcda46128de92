package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fleethub/fleethub/certs/pemfile"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// lockTimeout is how long Open waits for another process to let go of the file.
const lockTimeout = 2 * time.Second

// mapping is how much of the file is mapped from the start, as addresses and not as
// memory: one that outgrows its mapping is mapped anew, and whoever writes then copies what
// it has under its hands, over and over while a first manifest makes an empty file large.
// Where addresses are few it is what bbolt thinks best.
const mapping = (1 << 30) * (strconv.IntSize / 64)

// leastGrowth and mostGrowth bound by how much more than it needs the file is made longer.
const (
	leastGrowth = 64 << 10
	mostGrowth  = 16 << 20
)

// growth is by how much more than it needs a file of that size is made longer, so that
// neither a small one is mostly empty nor a large one grows, and is synced for it, often.
func growth(size int64) int { return int(min(max(leastGrowth, size/8), mostGrowth)) }

// What Open and the methods of Store may say is wrong with a file.
var (
	ErrLocked  = errors.New("the store is in use")
	ErrFormat  = errors.New("unknown store format")
	ErrDamaged = errors.New("the store is damaged")
)

// Open opens the store in the file at path and creates it, durably and as a whole,
// if there is none. One of an older format is rewritten in the present one; the old
// file stays beside it under a name that says so. It refuses, changing nothing, a file
// that another process has open (ErrLocked, after two seconds), that isn't a hub store
// or has a newer format (ErrFormat), or that is damaged (ErrDamaged). Pages are checked
// for structure; bbolt keeps no checksum of their content.
func Open(path string) (*Store, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := create(path); err != nil {
			return nil, fmt.Errorf("create store %s: %w", path, err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s, err := open(path)
	if err != nil {
		return nil, err
	}
	format, err := s.check()
	if err == nil {
		removePartials(path)
		if format < Format {
			return s.migrate()
		}
		return s, nil
	}
	s.db.Close()
	return nil, err
}

func open(path string) (*Store, error) {
	s := &Store{path: path}
	var file *os.File // bbolt forgets it when it panics
	options := &bbolt.Options{
		Timeout:         lockTimeout,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: mapping,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			var err error
			file, err = os.OpenFile(name, flag&^os.O_CREATE, mode)
			if err != nil {
				return nil, err
			}
			// bbolt would initialise an empty file, and an emptied store would
			// then have forgotten every revocation.
			if info, err := file.Stat(); err != nil || info.Size() == 0 {
				file.Close()
				return nil, errors.Join(err, errEmpty)
			}
			return file, nil
		},
	}
	opened := false
	err := s.guard("open", func() (err error) {
		s.db, err = bbolt.Open(path, 0o600, options)
		opened = err == nil
		return err
	})
	if opened {
		s.db.AllocSize = leastGrowth // Commit, which writes much, knows better
		return s, nil
	}
	if file != nil {
		file.Close() // if bbolt panicked, its mapping and lock stay until the process ends
	}
	_, system := errors.AsType[syscall.Errno](err)
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("%w: another hub is running on %s; stop it first, or use the one that runs (`hub device list --dir %s`)", ErrLocked, path, filepath.Dir(path))
	case system, errors.Is(err, ErrDamaged):
		return nil, err
	default: // invalid, version mismatch, checksum, too small: whatever bbolt finds in the bytes
		return nil, s.damaged(errors.Unwrap(err))
	}
}

var errEmpty = errors.New("the file is empty")

// check refuses a file that this version can't serve, and touches every page so
// that a torn one shows now and not under a revocation. It returns the file's format.
func (s *Store) check() (format int, err error) {
	err = s.view(context.Background(), func(tx *bbolt.Tx) error {
		info, err := os.Stat(s.path)
		if err != nil {
			return err
		}
		if info.Size() < tx.Size() {
			return s.damaged(fmt.Errorf("it has %d bytes of %d", info.Size(), tx.Size()))
		}
		meta := tx.Bucket(bucketMeta)
		if meta == nil || string(meta.Get(keyContent)) != string(content) {
			return fmt.Errorf("%w: %s is a bbolt file but not a hub's store; name the right folder with --dir", ErrFormat, s.path)
		}
		format, err = strconv.Atoi(string(meta.Get(keyFormat)))
		switch {
		case err != nil || format < 1:
			return s.damaged(fmt.Errorf("its format version is %q", meta.Get(keyFormat)))
		case format > Format:
			return fmt.Errorf("%w: %s has format %d and this hub reads %d; run the newer hub that wrote it, or restore an older backup", ErrFormat, s.path, format, Format)
		}
		names := buckets()
		if format == 1 {
			names = buckets1()
		}
		if tx.Bucket(bucketEndorsements) != nil { // not in every file
			names = append(names, bucketEndorsements)
		}
		for _, name := range names {
			bucket := tx.Bucket(name)
			if bucket == nil {
				return s.damaged(fmt.Errorf("bucket %s is missing", name))
			}
			if err := bucket.ForEach(func(_, v []byte) error {
				if v == nil {
					return s.damaged(fmt.Errorf("bucket %s holds a bucket", name))
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	return format, err
}

// damaged returns the sentence for a file that can't be read. An empty store is no
// remedy: it would have forgotten every revocation.
func (s *Store) damaged(cause error) error {
	return fmt.Errorf("%w: %s: %w; restore it from a backup (a new, empty store would not know which devices are revoked)", ErrDamaged, s.path, cause)
}

// partialPrefix begins the name under which a store is made before it is at path.
func partialPrefix(path string) string { return "." + filepath.Base(path) + ".partial-" }

// removePartials removes what killed creations left. Whoever else is creating this
// store now has lost, since its lock is ours, and expects it.
func removePartials(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return // tidiness only
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), partialPrefix(path)) {
			os.Remove(filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
}

// create makes an empty store under another name and links it to path when it is
// complete on disk. It loses to whoever was faster, which is no error.
func create(path string) error {
	dir := filepath.Dir(path)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return fmt.Errorf("folder %s doesn't exist; make it with `hub init --dir`", dir)
	}
	temp, err := os.CreateTemp(dir, partialPrefix(path)+"*")
	if err != nil {
		return err
	}
	temp.Close()
	defer os.Remove(temp.Name())
	db, err := bbolt.Open(temp.Name(), 0o600, &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return err
	}
	if err := errors.Join(layOut(db), db.Close()); err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
		// A file system without hard links.
		if err := os.Rename(temp.Name(), path); err != nil {
			return err
		}
	}
	return pemfile.SyncDir(dir)
}

// layOut makes an empty file a store of the present format.
func layOut(db *bbolt.DB) error {
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range append(buckets(), bucketMeta) {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		return errors.Join(meta.Put(keyContent, content), meta.Put(keyFormat, []byte(strconv.Itoa(Format))))
	})
}
