// Package ledger is the station's journal of what it issued and of what it may still
// issue, one bbolt file.
//
// Nothing is issued but against an open order, which says which IDs there are to be
// and as what. A device then goes through four states, each fsynced before the call
// that set it returns: reserved (the ID has its serial number and key; nothing is
// signed yet), issued (the certificate is in the ledger and may leave the station),
// delivered (it has been handed over), exported (a manifest that names it has its
// number). A step repeated after a crash finds what the first try stored and goes on
// from there, so an ID never gets a second serial number, unless an order to replace
// its certificate says so.
//
// Certificates are numbered in the order they were issued and a manifest is a run of
// these numbers that begins where the one before ended. So every certificate is in
// exactly one manifest, whatever was killed when.
//
// A Ledger holds the file's lock: one process at a time. It is safe for concurrent use:
// what many callers write at a time is committed together, with one fsync for all.
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

// format is the version of the layout below. Format 1, without orders, is migrated;
// another one is refused.
const format = "2"

// lockWait is how long Open waits for another process to finish with the file.
const lockWait = 3 * time.Second

// The buckets. Numbers in keys are eight bytes, big endian, so that they sort.
var (
	metaBucket         = []byte("meta")         // format, station, count of devices
	devicesBucket      = []byte("devices")      // ID → Record as JSON
	certificatesBucket = []byte("certificates") // sequence → certificate in DER
	keysBucket         = []byte("keys")         // SHA-256 of a public key → ID
	endorsementBucket  = []byte("endorsements") // SHA-256 of a TPM's endorsement key → ID
	issuedBucket       = []byte("issued")       // sequence → ID, in the order of issue
	historyBucket      = []byte("history")      // sequence → Record of a certificate that was replaced
	ordersBucket       = []byte("orders")       // order number → Order as JSON
	openBucket         = []byte("open")         // numbers of the open orders
	namesBucket        = []byte("names")        // an order's name → its number
	runsBucket         = []byte("runs")         // prefix, count, folder, number of a batch
	linesBucket        = []byte("lines")        // order number, first slot → Line as JSON
	slotsBucket        = []byte("slots")        // order number, slot → ID, for listed IDs
	plannedBucket      = []byte("planned")      // listed ID of an open order → its number and slot
	rangesBucket       = []byte("ranges")       // prefix, 0, number and slot of an open order's pattern
	countersBucket     = []byte("counters")     // prefix → highest counter that was ever planned
	tokensBucket       = []byte("tokens")       // SHA-256 of a token → Token as JSON
	keptBucket         = []byte("kept")         // ID → hash of the newest token for it
	claimsBucket       = []byte("claims")       // SHA-256 of a claim certificate → Claim as JSON
	manifestsBucket    = []byte("manifests")    // manifest number → Manifest as JSON
	exportsBucket      = []byte("exports")      // a manifest's last sequence → its number
)

func buckets() [][]byte {
	return [][]byte{
		metaBucket, devicesBucket, certificatesBucket, keysBucket, endorsementBucket, issuedBucket, historyBucket,
		ordersBucket, openBucket, namesBucket, runsBucket, linesBucket, slotsBucket, plannedBucket, rangesBucket, countersBucket,
		tokensBucket, keptBucket, claimsBucket, manifestsBucket, exportsBucket,
	}
}

var (
	formatKey  = []byte("format")
	stationKey = []byte("station")
	countKey   = []byte("devices") // IDs that were ever reserved
)

// Sentinels, in the chain of the errors whose callers branch on them.
var (
	ErrNotFound   = errors.New("not in the ledger")
	ErrNothingNew = errors.New("nothing was issued since the last manifest")
	ErrLocked     = errors.New("in use by another provisioning command")
	ErrCredential = errors.New("not accepted")        // a token or claim that is unknown, over, used or revoked
	ErrRefused    = errors.New("refused")             // what the orders don't allow, or not any more
	ErrConflict   = errors.New("taken")               // by another device, order or certificate
	ErrBusy       = errors.New("is being enrolled")   // by another request at this moment
	ErrBudget     = errors.New("the budget is spent") // the authority's, of devices
)

// kindError is an error of a kind, whose text is the sentence alone.
type kindError struct {
	error
	kind error
}

func (e kindError) Is(target error) bool { return target == e.kind }

func conflict(format string, args ...any) error {
	return kindError{fmt.Errorf(format, args...), ErrConflict}
}

func denied(format string, args ...any) error {
	return kindError{fmt.Errorf(format, args...), ErrRefused}
}

// Ledger is an open journal. Close it to let others in.
type Ledger struct {
	db      *bbolt.DB
	path    string
	station string
	commits commits
	held    held
}

// Create makes an empty ledger for the station of that name. It refuses to overwrite.
func Create(path, station string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("create ledger %s: %w", path, errors.Join(fs.ErrExist, err))
	}
	db, err := bbolt.Open(path, 0o600, options())
	if err != nil {
		return fmt.Errorf("create ledger %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets() {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(metaBucket)
		return errors.Join(meta.Put(formatKey, []byte(format)), meta.Put(stationKey, []byte(station)), meta.Put(countKey, number(0)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("create ledger %s: %w", path, err)
	}
	return nil
}

// Open opens an existing ledger and takes its lock. A missing file is fs.ErrNotExist:
// a new one in its place would issue IDs twice. One of format 1 is migrated first, in
// one transaction.
func Open(path string) (*Ledger, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 {
		return nil, fmt.Errorf("ledger %s is empty: restore it from a backup, a new one would forget what was issued", path)
	}
	db, err := bbolt.Open(path, 0o600, options())
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

// options has a free list that a ledger of a million devices opens and writes quickly with.
func options() *bbolt.Options {
	return &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType}
}

func (l *Ledger) load() error {
	var found string
	err := l.db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if meta == nil {
			return fmt.Errorf("%s is not a station's ledger", l.path)
		}
		found, l.station = string(meta.Get(formatKey)), string(meta.Get(stationKey))
		return nil
	})
	switch {
	case err != nil:
		return err
	case found == format:
		return nil
	case found == "1":
		if err := l.db.Update(migrate); err != nil {
			return fmt.Errorf("ledger %s can't be brought from format 1 to format %s (%w); it is as it was", l.path, format, err)
		}
		return nil
	}
	return fmt.Errorf("ledger %s has format %q, this program knows %q: use the program that wrote it", l.path, found, format)
}

// Close releases the file, after what other goroutines are writing.
func (l *Ledger) Close() error { return l.db.Close() }

// Station returns the name the ledger was created for.
func (l *Ledger) Station() string { return l.station }

func (l *Ledger) view(fn func(tx *bbolt.Tx) error) error { return l.db.View(fn) }

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func decode(n []byte) uint64 {
	if len(n) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(n)
}

// pair is a key of two numbers.
func pair(a, b uint64) []byte { return binary.BigEndian.AppendUint64(number(a), b) }

// load decodes the value of a key into v and reports whether there was one.
func load(b *bbolt.Bucket, key []byte, v any) (bool, error) {
	data := b.Get(key)
	if data == nil {
		return false, nil
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, damaged(key, err)
	}
	return true, nil
}

func damaged(key []byte, err error) error {
	return fmt.Errorf("record %q is damaged (%w): restore the ledger from a backup", key, err)
}

func store(b *bbolt.Bucket, key []byte, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, data)
}
