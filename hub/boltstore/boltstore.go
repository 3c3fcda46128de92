// Package boltstore keeps the hub's device records, documents and audit log in one
// bbolt file. It is the only package of the hub that knows bbolt, and satisfies
// fleet.Store.
//
// Buckets of format 2:
//
//	meta          what the file is and its format version
//	devices       device ID → record, JSON, without sightings and certificates' DER
//	facts         device ID → what selectors and admission ask about it (facts.go)
//	certificates  device ID, 0, SHA-256 of the DER → DER
//	endorsements  SHA-256 of a TPM's endorsement key → device ID; made with the first (endorsements.go)
//	serials       issuer, serial number → whose it is, whether and why revoked (serials.go)
//	seen          device ID → first and last sighting, two 64-bit Unix nanosecond counts
//	receipts      ID → signed receipt
//	proposals     ID → what waits for a second operator
//	orders        ID → what is being carried out
//	answers       SHA-256 of caller and idempotency key → what was answered; made with the first (documents.go)
//	journal       whether the hub has begun one; made when it has (journal.go)
//	audit         record number (64 bit, big-endian) → hash that links it (32 octets), audit record, JSON
//
// Every Commit is one transaction, synced to disk before it returns: after a kill or
// power cut at any moment it is there as a whole or not at all.
package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
)

// Format is the version of the file's layout that this package writes. Open turns an
// older one into it.
const Format = 2

var (
	bucketMeta         = []byte("meta")
	bucketDevices      = []byte("devices")
	bucketFacts        = []byte("facts")
	bucketCertificates = []byte("certificates")
	bucketSerials      = []byte("serials")
	bucketSeen         = []byte("seen")
	bucketReceipts     = []byte(registry.KindReceipt)
	bucketProposals    = []byte(registry.KindProposal)
	bucketOrders       = []byte(registry.KindOrder)
	bucketAudit        = []byte("audit")

	keyContent = []byte("content")
	keyFormat  = []byte("format")
	content    = []byte("fleethub hub store")
)

// buckets lists every bucket of the present format but meta.
func buckets() [][]byte {
	return [][]byte{bucketDevices, bucketFacts, bucketCertificates, bucketSerials, bucketSeen, bucketReceipts, bucketProposals, bucketOrders, bucketAudit}
}

// Store is an open store file. It is safe for concurrent use; writers queue.
type Store struct {
	db   *bbolt.DB
	path string
}

// Path returns the name of the store's file.
func (s *Store) Path() string { return s.path }

// Close waits for transactions under way and releases the file. Later calls of any
// method but Close return an error.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close store %s: %w", s.path, err)
	}
	return nil
}

// Device returns the record of that ID, its certificates' DER included, or an error
// that matches registry.ErrUnknown.
func (s *Store) Device(ctx context.Context, id string) (registry.Device, error) {
	var d registry.Device
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		value := tx.Bucket(bucketDevices).Get([]byte(id))
		if value == nil {
			return registry.ErrUnknown
		}
		var err error
		if d, err = s.decode(tx, []byte(id), value); err != nil {
			return err
		}
		certificates := tx.Bucket(bucketCertificates)
		for i := range d.Certificates {
			der := certificates.Get(certificateKey(id, d.Certificates[i].Fingerprint))
			d.Certificates[i].DER = bytes.Clone(der)
		}
		return nil
	})
	return d, err
}

// Devices returns at most limit records in order of ID, those after the given ID
// only, without their certificates' DER. An empty after starts at the first.
func (s *Store) Devices(ctx context.Context, after string, limit int) ([]registry.Device, error) {
	var page []registry.Device
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketDevices).Cursor()
		for k, v := seekAfter(c, after); k != nil && len(page) < limit; k, v = c.Next() {
			d, err := s.decode(tx, k, v)
			if err != nil {
				return err
			}
			page = append(page, d)
		}
		return nil
	})
	return page, err
}

// Records returns the records of those IDs, in their order, without their certificates'
// DER, or an error that matches registry.ErrUnknown.
func (s *Store) Records(ctx context.Context, ids []string) ([]registry.Device, error) {
	records := make([]registry.Device, 0, len(ids))
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketDevices)
		for _, id := range ids {
			value := bucket.Get([]byte(id))
			if value == nil {
				return fmt.Errorf("device %s: %w", id, registry.ErrUnknown)
			}
			d, err := s.decode(tx, []byte(id), value)
			if err != nil {
				return err
			}
			records = append(records, d)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return records, nil
}

// Certificate returns the DER of a device's certificate by its fingerprint, as
// identity.Fingerprint writes it, or an error that matches registry.ErrUnknown.
func (s *Store) Certificate(ctx context.Context, id, fingerprint string) ([]byte, error) {
	var der []byte
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		if der = bytes.Clone(tx.Bucket(bucketCertificates).Get(certificateKey(id, fingerprint))); der == nil {
			return registry.ErrUnknown
		}
		return nil
	})
	return der, err
}

// seekAfter puts a cursor on the first key after an ID, or on the first of all.
func seekAfter(c *bbolt.Cursor, after string) (key, value []byte) {
	if after == "" {
		return c.First()
	}
	key, value = c.Seek([]byte(after))
	if bytes.Equal(key, []byte(after)) {
		return c.Next()
	}
	return key, value
}

// Commit makes a change durable as a whole, or leaves the store as it was and
// returns an error. A certificate whose serial number another device holds is a
// *registry.ConflictError.
func (s *Store) Commit(ctx context.Context, change registry.Change) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("write store %s: %w", s.path, err)
	}
	encoded, err := encodeDevices(change.Devices)
	if err != nil {
		return fmt.Errorf("write store %s: %w", s.path, err)
	}
	defer encoded.records.Wait() // its error is putDevices's
	return s.guard("write", func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			s.db.AllocSize = growth(tx.Size()) // a writer's alone, as its turn is
			audit := s.beginAudit(tx, change.Audit)
			defer audit.encoding.Wait() // its error is append's
			if err := s.putDevices(tx, encoded); err != nil {
				return err
			}
			for _, seen := range change.Sightings {
				if err := putSighting(tx, seen); err != nil {
					return err
				}
			}
			for _, d := range change.Documents {
				if err := putDocument(tx, d); err != nil {
					return err
				}
			}
			return audit.append(tx)
		})
	})
}

// putSighting widens the span between a known device's first and last sighting.
func putSighting(tx *bbolt.Tx, seen registry.Sighting) error {
	id := []byte(seen.ID)
	if tx.Bucket(bucketDevices).Get(id) == nil {
		return nil
	}
	bucket := tx.Bucket(bucketSeen)
	first, last := seen.At, seen.At
	if f, l, ok := sighting(bucket.Get(id)); ok {
		if f.Before(first) {
			first = f
		}
		if l.After(last) {
			last = l
		}
	}
	span := binary.BigEndian.AppendUint64(nil, uint64(first.UnixNano()))
	return bucket.Put(id, binary.BigEndian.AppendUint64(span, uint64(last.UnixNano())))
}

func sighting(span []byte) (first, last time.Time, ok bool) {
	if len(span) != 16 {
		return time.Time{}, time.Time{}, false
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(span))).UTC(), time.Unix(0, int64(binary.BigEndian.Uint64(span[8:]))).UTC(), true
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// decode reads one record and adds its sightings. A record that isn't what its key
// says is damage, never a device.
func (s *Store) decode(tx *bbolt.Tx, key, value []byte) (registry.Device, error) {
	var d registry.Device
	if err := json.Unmarshal(value, &d); err != nil {
		return registry.Device{}, s.damaged(fmt.Errorf("record of device %q: %w", key, err))
	}
	if d.ID != string(key) || !d.State.Valid() {
		return registry.Device{}, s.damaged(fmt.Errorf("record of device %q says %q in state %q", key, d.ID, d.State))
	}
	d.FirstSeen, d.LastSeen, _ = sighting(tx.Bucket(bucketSeen).Get(key))
	return d, nil
}

func (s *Store) view(ctx context.Context, read func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("read store %s: %w", s.path, err)
	}
	return s.guard("read", func() error { return s.db.View(read) })
}

// guard runs fn and turns what bbolt does with a damaged file, panics and memory
// faults on its mapping, into an error.
func (s *Store) guard(doing string, fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // per goroutine
	defer func() {
		if p := recover(); p != nil {
			err = s.damaged(fmt.Errorf("%v", p))
		}
	}()
	err = fn()
	if _, conflict := errors.AsType[*registry.ConflictError](err); conflict || err == nil ||
		errors.Is(err, registry.ErrUnknown) || errors.Is(err, registry.ErrTampered) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrFormat) {
		return err
	}
	return fmt.Errorf("%s store %s: %w", doing, s.path, err)
}
