package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
)

// maxScanned bounds how many audit records one query looks at.
const maxScanned = 100_000

// auditAppend is records on their way into the log. Whoever has begun it waits for encoding.
type auditAppend struct {
	head     registry.AuditHead // before them
	values   [][]byte           // with room for the hash before each; there when encoding has ended
	encoding errgroup.Group
}

// beginAudit numbers records and begins to encode them, on all processors: only the links
// need the record before.
func (s *Store) beginAudit(tx *bbolt.Tx, records []registry.AuditRecord) *auditAppend {
	a := &auditAppend{values: make([][]byte, len(records))}
	if len(records) == 0 {
		return a
	}
	// A log that was tampered with must not keep a thief from being cut off: it goes on
	// after the last number that was ever given, and verifying it shows the break.
	a.head, _ = s.auditHead(tx)
	a.head.Number = max(a.head.Number, tx.Bucket(bucketAudit).Sequence())
	a.encoding.Go(func() error {
		return inChunks(len(records), func(i int) error {
			r := records[i]
			r.Number = a.head.Number + 1 + uint64(i)
			data, err := json.Marshal(&r)
			if err != nil {
				return fmt.Errorf("encode audit record %d: %w", r.Number, err)
			}
			a.values[i] = append(make([]byte, len(a.head.Hash), len(a.head.Hash)+len(data)), data...)
			return nil
		})
	})
	return a
}

// append links each record to the one before, and writes them.
func (a *auditAppend) append(tx *bbolt.Tx) error {
	if err := a.encoding.Wait(); err != nil || len(a.values) == 0 {
		return err
	}
	bucket := tx.Bucket(bucketAudit)
	bucket.FillPercent = 0.95 // keys only grow
	head := a.head
	for _, value := range a.values {
		n := head.Number + 1
		head = registry.AuditHead{Number: n, Hash: head.Hash.Link(n, value[len(head.Hash):])}
		copy(value, head.Hash[:])
		if err := bucket.Put(number(n), value); err != nil {
			return err
		}
	}
	return bucket.SetSequence(head.Number)
}

// auditHead returns the end of the log. The sequence of the bucket says the last
// number, too: a log cut off at its end shows.
func (s *Store) auditHead(tx *bbolt.Tx) (registry.AuditHead, error) {
	bucket := tx.Bucket(bucketAudit)
	var head registry.AuditHead
	if k, v := bucket.Cursor().Last(); k != nil {
		line, err := s.auditLine(k, v)
		if err != nil {
			return head, err
		}
		head = registry.AuditHead{Number: line.Number, Hash: line.Hash}
	}
	if sequence := bucket.Sequence(); sequence != head.Number {
		return head, s.damaged(fmt.Errorf("%w: its last record is number %d, and %d were written", registry.ErrTampered, head.Number, sequence))
	}
	return head, nil
}

func (s *Store) auditLine(key, value []byte) (line registry.AuditLine, err error) {
	if len(key) != 8 || len(value) <= len(line.Hash) {
		return line, s.damaged(fmt.Errorf("%w: audit record %x is malformed", registry.ErrTampered, key))
	}
	line.Number = binary.BigEndian.Uint64(key)
	line.Hash = registry.AuditHash(value)
	line.Record = value[len(line.Hash):]
	return line, nil
}

// AuditHead returns the end of the audit log.
func (s *Store) AuditHead(ctx context.Context) (head registry.AuditHead, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		head, err = s.auditHead(tx)
		return err
	})
	return head, err
}

// AuditLines calls visit with each line of the audit log after that number, in order, as
// stored, until it returns false. The line is good until visit returns. It holds one
// read transaction, so visit must be quick.
func (s *Store) AuditLines(ctx context.Context, after uint64, visit func(registry.AuditLine) bool) error {
	if after == ^uint64(0) {
		return nil
	}
	return s.view(ctx, func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketAudit).Cursor()
		n := 0
		for k, v := c.Seek(number(after + 1)); k != nil; k, v = c.Next() {
			if n++; n%4096 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			line, err := s.auditLine(k, v)
			if err != nil {
				return err
			}
			if !visit(line) {
				return nil
			}
		}
		return nil
	})
}

// Audit returns the audit records that a query picks, oldest first, of the next 100,000
// at most.
func (s *Store) Audit(ctx context.Context, q registry.AuditQuery) (registry.AuditPage, error) {
	page := registry.AuditPage{Records: []registry.AuditRecord{}}
	scanned := 0
	var bad error
	device := []byte(q.Device)
	err := s.AuditLines(ctx, q.After, func(line registry.AuditLine) bool {
		if len(page.Records) >= q.Limit || scanned == maxScanned {
			page.Next = line.Number - 1
			return false
		}
		scanned++
		if !bytes.Contains(line.Record, device) {
			return true
		}
		var r registry.AuditRecord
		if err := json.Unmarshal(line.Record, &r); err != nil {
			bad = s.damaged(fmt.Errorf("audit record %d: %w", line.Number, err))
			return false
		}
		if q.Matches(r) {
			page.Records = append(page.Records, r)
		}
		return true
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return registry.AuditPage{}, err
	}
	return page, nil
}
