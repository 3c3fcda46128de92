// Package boltstore keeps the hub's device records and audit log in one bbolt file.
// It is the only package of the hub that knows bbolt, and satisfies fleet.Store.
//
// Buckets:
//
//	meta     what the file is and its format version
//	devices  device ID → record, JSON, without sightings
//	serials  issuer/serial → owner of that certificate and whether it is revoked
//	seen     device ID → first and last sighting, two 64-bit Unix nanosecond counts
//	audit    record number (64 bit, big-endian) → audit record, JSON
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

// Format is the version of the file's layout that this package reads and writes.
const Format = 1

var (
	bucketMeta    = []byte("meta")
	bucketDevices = []byte("devices")
	bucketSerials = []byte("serials")
	bucketSeen    = []byte("seen")
	bucketAudit   = []byte("audit")

	keyContent = []byte("content")
	keyFormat  = []byte("format")
	content    = []byte("fleethub hub store")
)

// Store is an open store file. It is safe for concurrent use; writers queue.
type Store struct {
	db   *bbolt.DB
	path string
}

// ownership is the value in bucket serials.
type ownership struct {
	Device  string    `json:"device"`
	Revoked time.Time `json:"revoked,omitzero"`
	Reason  string    `json:"reason,omitempty"`
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

// Device returns the record of that ID, or an error that matches
// registry.ErrUnknown.
func (s *Store) Device(ctx context.Context, id string) (registry.Device, error) {
	var d registry.Device
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		value := tx.Bucket(bucketDevices).Get([]byte(id))
		if value == nil {
			return registry.ErrUnknown
		}
		var err error
		d, err = s.decode(tx, []byte(id), value)
		return err
	})
	return d, err
}

// Devices returns at most limit records in order of ID, those after the given ID
// only. An empty after starts at the first.
func (s *Store) Devices(ctx context.Context, after string, limit int) ([]registry.Device, error) {
	var page []registry.Device
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketDevices).Cursor()
		k, v := c.Seek([]byte(after))
		if after != "" && bytes.Equal(k, []byte(after)) {
			k, v = c.Next()
		}
		for ; k != nil && len(page) < limit; k, v = c.Next() {
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

// Audit returns at most limit audit records in order, those after that number only.
func (s *Store) Audit(ctx context.Context, after uint64, limit int) ([]registry.AuditRecord, error) {
	var page []registry.AuditRecord
	if after == ^uint64(0) {
		return nil, nil
	}
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketAudit).Cursor()
		for k, v := c.Seek(number(after + 1)); k != nil && len(page) < limit; k, v = c.Next() {
			var r registry.AuditRecord
			if err := json.Unmarshal(v, &r); err != nil {
				return s.damaged(fmt.Errorf("audit record %x: %w", k, err))
			}
			page = append(page, r)
		}
		return nil
	})
	return page, err
}

// Commit makes a change durable as a whole, or leaves the store as it was and
// returns an error. A certificate whose serial number another device holds is a
// *registry.ConflictError.
func (s *Store) Commit(ctx context.Context, change registry.Change) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("write store %s: %w", s.path, err)
	}
	return s.guard("write", func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			for _, d := range change.Devices {
				if err := putDevice(tx, d); err != nil {
					return err
				}
			}
			for _, seen := range change.Sightings {
				if err := putSighting(tx, seen); err != nil {
					return err
				}
			}
			for _, r := range change.Audit {
				if err := appendAudit(tx, r); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func putDevice(tx *bbolt.Tx, d registry.Device) error {
	if d.ID == "" || !d.State.Valid() {
		return fmt.Errorf("device record %q has the state %q", d.ID, d.State)
	}
	serials := tx.Bucket(bucketSerials)
	for _, c := range d.Certificates {
		key := []byte(c.Key())
		if value := serials.Get(key); value != nil {
			var held ownership
			if err := json.Unmarshal(value, &held); err != nil {
				return fmt.Errorf("owner of serial number %s: %w", c.Key(), err)
			}
			if held.Device != d.ID {
				return &registry.ConflictError{ID: d.ID, Owner: held.Device, Serial: c.Serial}
			}
		}
		owner := ownership{Device: d.ID, Revoked: c.Revoked}
		if !c.Revoked.IsZero() {
			owner.Reason = d.Reason
		}
		if err := putJSON(serials, key, owner); err != nil {
			return err
		}
	}
	d.FirstSeen, d.LastSeen = time.Time{}, time.Time{} // bucket seen owns them
	return putJSON(tx.Bucket(bucketDevices), []byte(d.ID), d)
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

func appendAudit(tx *bbolt.Tx, r registry.AuditRecord) error {
	bucket := tx.Bucket(bucketAudit)
	bucket.FillPercent = 0.95 // keys only grow
	n, err := bucket.NextSequence()
	if err != nil {
		return err
	}
	r.Number = n
	return putJSON(bucket, number(n), r)
}

func putJSON(bucket *bbolt.Bucket, key []byte, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", key, err)
	}
	return bucket.Put(key, data)
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
		errors.Is(err, registry.ErrUnknown) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrFormat) {
		return err
	}
	return fmt.Errorf("%s store %s: %w", doing, s.path, err)
}
