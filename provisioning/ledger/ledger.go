// Package ledger is the station's journal of what it issued, one bbolt file.
//
// A device goes through three states, each fsynced before the call that set it
// returns: reserved (the ID has its serial number and key; nothing is signed yet),
// issued (the certificate is in the ledger and may leave the station), exported (a
// manifest that names it has its number). A step repeated after a crash finds what the
// first try stored and goes on from there, so an ID never gets a second serial number.
//
// Certificates are numbered in the order they were issued and a manifest is a run of
// these numbers that begins where the one before ended. So every certificate is in
// exactly one manifest, whatever was killed when.
//
// A Ledger holds the file's lock: one process at a time. It is safe for concurrent use.
package ledger

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// format is the version of the layout below. A ledger of another one is refused.
const format = "1"

// lockWait is how long Open waits for another process to finish with the file.
const lockWait = 3 * time.Second

// The buckets. Numbers in keys are eight bytes, big endian, so that they sort.
var (
	metaBucket         = []byte("meta")         // format, station
	devicesBucket      = []byte("devices")      // ID → Record as JSON
	certificatesBucket = []byte("certificates") // ID → certificate in DER
	keysBucket         = []byte("keys")         // SHA-256 of a public key → ID
	issuedBucket       = []byte("issued")       // sequence → ID, in the order of issue
	batchesBucket      = []byte("batches")      // batch number → Batch as JSON
	manifestsBucket    = []byte("manifests")    // manifest number → Manifest as JSON
	exportsBucket      = []byte("exports")      // a manifest's last sequence → its number
)

var (
	formatKey  = []byte("format")
	stationKey = []byte("station")
)

// Sentinels, in the chain of the errors whose callers branch on them.
var (
	ErrNotFound   = errors.New("not in the ledger")
	ErrNothingNew = errors.New("nothing was issued since the last manifest")
	ErrLocked     = errors.New("in use by another provisioning command")
)

// Ledger is an open journal. Close it to let others in.
type Ledger struct {
	db      *bbolt.DB
	path    string
	station string
}

// Create makes an empty ledger for the station of that name. It refuses to overwrite.
func Create(path, station string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("create ledger %s: %w", path, errors.Join(fs.ErrExist, err))
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait})
	if err != nil {
		return fmt.Errorf("create ledger %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{metaBucket, devicesBucket, certificatesBucket, keysBucket, issuedBucket, batchesBucket, manifestsBucket, exportsBucket} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(metaBucket)
		return errors.Join(meta.Put(formatKey, []byte(format)), meta.Put(stationKey, []byte(station)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("create ledger %s: %w", path, err)
	}
	return nil
}

// Open opens an existing ledger and takes its lock. A missing file is fs.ErrNotExist:
// a new one in its place would issue IDs twice.
func Open(path string) (*Ledger, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 {
		return nil, fmt.Errorf("ledger %s is empty: restore it from a backup, a new one would forget what was issued", path)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("ledger %s is %w: wait until that one has finished", path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("ledger %s can't be opened (%w): restore it from a backup", path, err)
	}
	l := &Ledger{db: db, path: path}
	if err := l.load(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return l, nil
}

func (l *Ledger) load() error {
	return l.db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if meta == nil {
			return fmt.Errorf("%s is not a station's ledger", l.path)
		}
		if f := string(meta.Get(formatKey)); f != format {
			return fmt.Errorf("ledger %s has format %q, this program knows %q: use the program that wrote it", l.path, f, format)
		}
		l.station = string(meta.Get(stationKey))
		return nil
	})
}

// Close releases the file.
func (l *Ledger) Close() error { return l.db.Close() }

// Station returns the name the ledger was created for.
func (l *Ledger) Station() string { return l.station }

// update runs one transaction. When it returns nil, what fn wrote survives a power cut;
// when it returns an error, nothing of it is there.
func (l *Ledger) update(fn func(tx *bbolt.Tx) error) error {
	var refused error
	err := l.db.Update(func(tx *bbolt.Tx) error {
		refused = fn(tx)
		return refused
	})
	if err != nil && refused == nil {
		return fmt.Errorf("write ledger %s: %w", l.path, err)
	}
	return err
}

func (l *Ledger) view(fn func(tx *bbolt.Tx) error) error { return l.db.View(fn) }

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// load decodes the value of a key into v and reports whether there was one.
func load(b *bbolt.Bucket, key []byte, v any) (bool, error) {
	data := b.Get(key)
	if data == nil {
		return false, nil
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, fmt.Errorf("record %q is damaged (%w): restore the ledger from a backup", key, err)
	}
	return true, nil
}

func store(b *bbolt.Bucket, key []byte, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, data)
}
