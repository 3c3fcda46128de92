package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// oldBatch is a batch as format 1 stored it, before it was an order.
type oldBatch struct {
	Number    uint64    `json:"number"`
	Prefix    string    `json:"prefix"`
	First     int       `json:"first"`
	Count     int       `json:"count"`
	Out       string    `json:"out"`
	Model     string    `json:"model"`
	OU        []string  `json:"ou"`
	Delivered int       `json:"delivered"`
	OpenedAt  time.Time `json:"opened_at"`
	ClosedAt  time.Time `json:"closed_at"`
}

// oldWidth is how many digits format 1's counters had at least.
const oldWidth = 5

// migrate brings a ledger of format 1 to format 2: batches become orders of the same
// number, and certificates are found by sequence instead of by ID.
func migrate(tx *bbolt.Tx) error {
	for _, name := range buckets() {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	if err := migrateCertificates(tx); err != nil {
		return err
	}
	counts, err := migrateDevices(tx)
	if err != nil {
		return err
	}
	if err := migrateBatches(tx, counts); err != nil {
		return err
	}
	return tx.Bucket(metaBucket).Put(formatKey, []byte(format))
}

func migrateCertificates(tx *bbolt.Tx) error {
	old := tx.Bucket(certificatesBucket)
	var sequences, certs [][]byte
	err := tx.Bucket(issuedBucket).ForEach(func(seq, id []byte) error {
		der := old.Get(id)
		if der == nil {
			return fmt.Errorf("the certificate of %q is missing", id)
		}
		sequences = append(sequences, append([]byte(nil), seq...))
		certs = append(certs, append([]byte(nil), der...))
		return nil
	})
	if err != nil {
		return err
	}
	if err := tx.DeleteBucket(certificatesBucket); err != nil {
		return err
	}
	bucket, err := tx.CreateBucket(certificatesBucket)
	if err != nil {
		return err
	}
	for i, seq := range sequences {
		if err := appended(bucket).Put(seq, certs[i]); err != nil {
			return err
		}
	}
	return nil
}

// tally is how many of a batch's devices were reserved and issued.
type tally struct{ reserved, issued int }

// migrateDevices names the orders in the records, and counts.
func migrateDevices(tx *bbolt.Tx) (map[uint64]tally, error) {
	devices := tx.Bucket(devicesBucket)
	counts := make(map[uint64]tally)
	var records []Record
	err := devices.ForEach(func(id, data []byte) error {
		old := struct {
			Record
			Batch uint64 `json:"batch"`
		}{}
		if err := json.Unmarshal(data, &old); err != nil {
			return damaged(id, err)
		}
		old.Order, old.Protection = old.Batch, Software
		c := counts[old.Batch]
		c.reserved++
		if old.State != Reserved {
			c.issued++
		}
		counts[old.Batch] = c
		records = append(records, old.Record)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		if err := errors.Join(store(devices, []byte(r.ID), r), count(tx, r.ID)); err != nil {
			return nil, err
		}
	}
	return counts, tx.Bucket(metaBucket).Put(countKey, number(uint64(len(records))))
}

func migrateBatches(tx *bbolt.Tx, counts map[uint64]tally) error {
	name := []byte("batches")
	old := tx.Bucket(name)
	if old == nil {
		return nil
	}
	orders := tx.Bucket(ordersBucket)
	err := old.ForEach(func(n, data []byte) error {
		var b oldBatch
		if err := json.Unmarshal(data, &b); err != nil {
			return damaged(n, err)
		}
		line := Line{
			Count: b.Count, Pattern: Pattern{Prefix: b.Prefix, Width: oldWidth}, First: b.First,
			Attributes: Attributes{Model: b.Model, OU: b.OU},
		}
		first, last := line.ends()
		o := Order{
			Number: b.Number, Kind: Run, First: first, Last: last, Count: b.Count, Prefix: b.Prefix, Out: b.Out,
			Reserved: counts[b.Number].reserved, Issued: counts[b.Number].issued, Delivered: b.Delivered,
			OpenedAt: b.OpenedAt, ClosedAt: b.ClosedAt,
		}
		err := errors.Join(
			count(tx, last),
			store(tx.Bucket(linesBucket), pair(o.Number, 0), line),
			tx.Bucket(runsBucket).Put(append(runKey(o.Prefix, o.Count, o.Out), number(o.Number)...), nil),
			storeOrder(tx, o),
		)
		if err == nil && !o.Closed() {
			value := append(pair(uint64(b.First), uint64(b.Count)), number(oldWidth)...)
			err = errors.Join(
				tx.Bucket(rangesBucket).Put(rangeKey(b.Prefix, o.Number, 0), value),
				tx.Bucket(openBucket).Put(number(o.Number), []byte{}),
			)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := orders.SetSequence(old.Sequence()); err != nil {
		return err
	}
	return tx.DeleteBucket(name)
}
