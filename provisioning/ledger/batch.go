package ledger

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

// MaxCounter is the highest number an ID of a batch can end in.
const MaxCounter = 999_999_999

// Batch is one run of devices whose IDs are a prefix and a counter. The range of IDs is
// fixed and fsynced when the batch is opened, so a repeated command finishes the same
// devices instead of making others.
type Batch struct {
	Number    uint64    `json:"number"`
	Prefix    string    `json:"prefix"`
	First     int       `json:"first"` // counter of the first device
	Count     int       `json:"count"`
	Out       string    `json:"out"` // the folder above the devices' folders
	Model     string    `json:"model,omitempty"`
	OU        []string  `json:"ou,omitempty"`
	Delivered int       `json:"delivered"` // the first so many are complete in Out
	OpenedAt  time.Time `json:"opened_at"`
	ClosedAt  time.Time `json:"closed_at,omitzero"` // zero: unfinished
}

// ID returns the ID of the batch's i-th device, from 0.
func (b Batch) ID(i int) string { return fmt.Sprintf("%s%05d", b.Prefix, b.First+i) }

// Contains reports whether the ID is one of the batch's.
func (b Batch) Contains(id string) bool {
	n, ok := counter(b.Prefix, id)
	return ok && n >= b.First && n < b.First+b.Count && id == b.ID(n-b.First)
}

// String returns the batch's IDs and folder, for messages.
func (b Batch) String() string {
	return fmt.Sprintf("%s to %s in %s", b.ID(0), b.ID(b.Count-1), b.Out)
}

// Closed reports whether the batch is finished.
func (b Batch) Closed() bool { return !b.ClosedAt.IsZero() }

// FindBatch returns the batch of that prefix, count and folder that still is open or,
// if none is, the newest. None at all is ErrNotFound.
func (l *Ledger) FindBatch(prefix string, count int, out string) (Batch, error) {
	var found *Batch
	err := l.view(func(tx *bbolt.Tx) error {
		return batches(tx, func(b Batch) error {
			if b.Prefix == prefix && b.Count == count && b.Out == out && (found == nil || found.Closed()) {
				found = &b
			}
			return nil
		})
	})
	if err == nil && found == nil {
		err = fmt.Errorf("batch of %d %s… in %s is %w", count, prefix, out, ErrNotFound)
	}
	if err != nil {
		return Batch{}, err
	}
	return *found, nil
}

// OpenBatch opens a batch from b's prefix, count, folder, model and OU. Its counter
// begins after the highest that any device or batch of this prefix has.
func (l *Ledger) OpenBatch(now time.Time, b Batch) (Batch, error) {
	err := l.update(func(tx *bbolt.Tx) error {
		highest, err := highestCounter(tx, b.Prefix)
		if err != nil {
			return err
		}
		if b.Count < 1 || b.Count > MaxCounter-highest {
			return fmt.Errorf("a batch of %d devices after %s%05d does not fit the counter: use another prefix", b.Count, b.Prefix, highest)
		}
		bucket := tx.Bucket(batchesBucket)
		if b.Number, err = bucket.NextSequence(); err != nil {
			return err
		}
		b.First, b.Delivered, b.OpenedAt, b.ClosedAt = highest+1, 0, now.UTC(), time.Time{}
		return store(bucket, number(b.Number), b)
	})
	return b, err
}

// AdvanceBatch records that the first so many devices of an open batch need no more
// work, and closes it when these are all.
func (l *Ledger) AdvanceBatch(now time.Time, batchNumber uint64, delivered int) (Batch, error) {
	var b Batch
	err := l.update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(batchesBucket)
		known, err := load(bucket, number(batchNumber), &b)
		if err != nil {
			return err
		}
		if !known || b.Closed() || delivered < b.Delivered || delivered > b.Count {
			return fmt.Errorf("batch %d can't advance to %d devices", batchNumber, delivered)
		}
		if b.Delivered = delivered; delivered == b.Count {
			b.ClosedAt = now.UTC()
		}
		return store(bucket, number(batchNumber), b)
	})
	return b, err
}

// UnfinishedBatches returns the open batches, oldest first.
func (l *Ledger) UnfinishedBatches() ([]Batch, error) {
	var open []Batch
	err := l.view(func(tx *bbolt.Tx) (err error) {
		open, err = openBatches(tx)
		return err
	})
	return open, err
}

func openBatches(tx *bbolt.Tx) ([]Batch, error) {
	var open []Batch
	err := batches(tx, func(b Batch) error {
		if !b.Closed() {
			open = append(open, b)
		}
		return nil
	})
	return open, err
}

func batches(tx *bbolt.Tx, visit func(Batch) error) error {
	return tx.Bucket(batchesBucket).ForEach(func(n, data []byte) error {
		var b Batch
		if err := json.Unmarshal(data, &b); err != nil {
			return fmt.Errorf("batch %x is damaged (%w): restore the ledger from a backup", n, err)
		}
		return visit(b)
	})
}

// highestCounter returns the highest counter in use after a prefix, 0 for none. It
// looks at the batches too: an open one has IDs that no record holds yet.
func highestCounter(tx *bbolt.Tx, prefix string) (int, error) {
	highest := 0
	err := batches(tx, func(b Batch) error {
		if b.Prefix == prefix {
			highest = max(highest, b.First+b.Count-1)
		}
		return nil
	})
	c := tx.Bucket(devicesBucket).Cursor()
	for id, _ := c.Seek([]byte(prefix)); id != nil && strings.HasPrefix(string(id), prefix); id, _ = c.Next() {
		if n, ok := counter(prefix, string(id)); ok {
			highest = max(highest, n)
		}
	}
	return highest, err
}

// counter returns the number that follows prefix in id, if it is one a batch could
// have made.
func counter(prefix, id string) (int, bool) {
	digits, ok := strings.CutPrefix(id, prefix)
	if !ok || digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n <= MaxCounter
}

// ValidPrefix returns nil if IDs can be made of the prefix. It may not end in a digit:
// sim-1 with the counter 00001 would be sim- with the counter 100001.
func ValidPrefix(prefix string) error {
	if prefix == "" {
		return errors.New("the prefix is empty")
	}
	if last := prefix[len(prefix)-1]; slices.Contains([]byte("0123456789"), last) {
		return fmt.Errorf("prefix %q ends in a digit, which would run into the counter that follows: end it in a letter, a hyphen, an underscore or a dot", prefix)
	}
	return nil
}

func decode(n []byte) uint64 { return binary.BigEndian.Uint64(n) }
