package boltstore

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
)

// buckets1 lists the buckets of format 1 but meta. Its records held their certificates'
// DER, a suspension's reason was the operator's words, and its audit log was not linked.
func buckets1() [][]byte { return [][]byte{bucketDevices, bucketSerials, bucketSeen, bucketAudit} }

// migrationChunk is how many records one transaction of a migration writes.
const migrationChunk = 1000

// migrate rewrites a store of format 1 in the present one, beside it, and puts it in its
// place when it is complete on disk. A kill at any moment leaves the old file in its
// place, or the new one, whole. The old file stays as NAME.format1. s is closed in any
// case.
func (s *Store) migrate() (*Store, error) {
	err := s.guard("migrate", s.rewrite)
	if err := errors.Join(err, s.db.Close()); err != nil { // its lock is held until here
		return nil, err
	}
	return Open(s.path)
}

func (s *Store) rewrite() error {
	temp, err := os.CreateTemp(filepath.Dir(s.path), partialPrefix(s.path)+"*")
	if err != nil {
		return err
	}
	temp.Close()
	defer os.Remove(temp.Name())
	db, err := bbolt.Open(temp.Name(), 0o600, &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType, NoSync: true})
	if err != nil {
		return err
	}
	next := &Store{db: db, path: temp.Name()}
	err = layOut(db)
	if err == nil {
		err = s.copyDevices(next)
	}
	if err == nil {
		err = s.copySightings(next)
	}
	if err == nil {
		err = s.copyOthers(next)
	}
	if err == nil {
		err = s.copyAudit(next)
	}
	if err == nil {
		err = db.Sync()
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := keep(s.path, s.path+".format1"); err != nil {
		return fmt.Errorf("keep the store of the old format: %w", err)
	}
	if err := os.Rename(temp.Name(), s.path); err != nil {
		return err
	}
	return pemfile.SyncDir(filepath.Dir(s.path))
}

// keep gives a file a second name, or copies it where the file system has no links. A
// file of that name is left by a migration that was killed, and replaced.
func keep(path, as string) error {
	if err := os.Remove(as); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if os.Link(path, as) == nil {
		return nil
	}
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(as, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Sync(), to.Close())
}

// inChunks calls take for every key and value of a bucket of s, and each time so many
// were taken, flush.
func (s *Store) inChunks(bucket []byte, take func(k, v []byte) error, flush func() error) error {
	n := 0
	err := s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(k, v []byte) error {
			if err := take(k, v); err != nil {
				return err
			}
			if n++; n%migrationChunk == 0 {
				return flush()
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	return flush()
}

func (s *Store) copyDevices(next *Store) error {
	var devices []registry.Device
	return s.inChunks(bucketDevices, func(k, v []byte) error {
		var d registry.Device
		if err := json.Unmarshal(v, &d); err != nil {
			return s.damaged(fmt.Errorf("record of device %q: %w", k, err))
		}
		if d.ID != string(k) || !d.State.Valid() {
			return s.damaged(fmt.Errorf("record of device %q says %q in state %q", k, d.ID, d.State))
		}
		devices = append(devices, fromFormat1(d))
		return nil
	}, func() error {
		encoded, err := encodeDevices(devices)
		if err != nil {
			return err
		}
		devices = devices[:0]
		defer encoded.records.Wait() // its error is putDevices's
		return next.db.Update(func(tx *bbolt.Tx) error { return next.putDevices(tx, encoded) })
	})
}

// fromFormat1 gives a record what its format didn't have.
func fromFormat1(d registry.Device) registry.Device {
	if d.State == registry.StateSuspended {
		d.Reason, d.Note = registry.ReasonHold, d.Reason
	}
	for i := range d.Certificates {
		if !d.Certificates[i].Revoked.IsZero() {
			d.Certificates[i].Reason = d.Reason
		}
	}
	d.Batch = registry.BatchOf(d.Labels, d.Station, d.Manifest)
	d.History = []registry.Transition{{To: d.State, Cause: registry.Cause{Reason: d.Reason, Note: d.Note, At: d.Updated}}}
	return d
}

func (s *Store) copySightings(next *Store) error {
	type span struct{ id, value []byte }
	var spans []span
	return s.inChunks(bucketSeen, func(k, v []byte) error {
		spans = append(spans, span{bytes.Clone(k), bytes.Clone(v)})
		return nil
	}, func() error {
		defer func() { spans = spans[:0] }()
		return next.db.Update(func(tx *bbolt.Tx) error {
			for _, s := range spans {
				if err := tx.Bucket(bucketSeen).Put(s.id, s.value); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// copyOthers takes over the buckets that have the same form in both formats, such as the
// knowledge that there is a journal: without it, a hub would begin a new one.
func (s *Store) copyOthers(next *Store) error {
	known := append(buckets(), bucketMeta)
	return s.db.View(func(from *bbolt.Tx) error {
		return next.db.Update(func(to *bbolt.Tx) error {
			return from.ForEach(func(name []byte, bucket *bbolt.Bucket) error {
				if slices.ContainsFunc(known, func(k []byte) bool { return bytes.Equal(k, name) }) {
					return nil
				}
				copied, err := to.CreateBucket(name)
				if err != nil {
					return err
				}
				return bucket.ForEach(copied.Put)
			})
		})
	})
}

// copyAudit links the records as they are found, under their numbers, and ends with one
// that says so: what was changed before was not sealed.
func (s *Store) copyAudit(next *Store) error {
	var head registry.AuditHead
	type entry struct{ key, value []byte }
	var entries []entry
	flush := func() error {
		defer func() { entries = entries[:0] }()
		return next.db.Update(func(tx *bbolt.Tx) error {
			bucket := tx.Bucket(bucketAudit)
			bucket.FillPercent = 0.95
			for _, e := range entries {
				if err := bucket.Put(e.key, e.value); err != nil {
					return err
				}
			}
			return bucket.SetSequence(head.Number)
		})
	}
	err := s.inChunks(bucketAudit, func(k, v []byte) error {
		if len(k) != 8 || binary.BigEndian.Uint64(k) != head.Number+1 {
			return s.damaged(fmt.Errorf("audit record %d is followed by %x", head.Number, k))
		}
		head = registry.AuditHead{Number: head.Number + 1, Hash: head.Hash.Link(head.Number+1, v)}
		entries = append(entries, entry{bytes.Clone(k), append(bytes.Clone(head.Hash[:]), v...)})
		return nil
	}, flush)
	if err != nil {
		return err
	}
	record := registry.AuditRecord{
		Time: time.Now().UTC(), Actor: "hub", Action: "store.migrate", Subject: "store", Outcome: registry.OutcomeDone,
		Detail: fmt.Sprintf("format 1 to %d; the %d records before are linked as they were found", Format, head.Number),
	}
	return next.db.Update(func(tx *bbolt.Tx) error { return next.beginAudit(tx, []registry.AuditRecord{record}).append(tx) })
}
