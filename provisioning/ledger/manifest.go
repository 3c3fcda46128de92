package ledger

import (
	"encoding/json"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// Manifest is the run of certificates that one signed list names.
type Manifest struct {
	Number      uint64    `json:"number"` // from 1, without gaps
	First       uint64    `json:"first"`  // sequence of the first certificate
	Last        uint64    `json:"last"`   // and of the last one, inclusive
	CreatedAt   time.Time `json:"created_at"`
	DeliveredAt time.Time `json:"delivered_at,omitzero"` // zero: it may not have reached its file, or the hub
	SyncedAt    time.Time `json:"synced_at,omitzero"`    // when a hub said that it has it; zero: none did
}

// Len returns how many certificates the manifest names.
func (m Manifest) Len() int { return int(m.Last - m.First + 1) }

// NextManifest returns the manifest to write now and whether it is committed: the last
// one if it may not have reached its file, else a proposal of at most limit
// certificates for CommitManifest. If there is nothing to put in, ErrNothingNew.
func (l *Ledger) NextManifest(limit int) (m Manifest, committed bool, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		last, known, err := lastManifest(tx)
		if err != nil {
			return err
		}
		if known && last.DeliveredAt.IsZero() {
			m, committed = last, true
			return nil
		}
		m = Manifest{Number: last.Number + 1, First: last.Last + 1, Last: min(tx.Bucket(issuedBucket).Sequence(), last.Last+uint64(limit))}
		if m.First > m.Last {
			return ErrNothingNew
		}
		return nil
	})
	return m, committed, err
}

// CommitManifest fixes what the proposed manifest names. From then on NextManifest
// returns it until DeliverManifest, so it can be written again but not lost.
func (l *Ledger) CommitManifest(now time.Time, m Manifest) (Manifest, error) {
	err := l.update(func(tx *bbolt.Tx) error {
		last, known, err := lastManifest(tx)
		if err != nil {
			return err
		}
		if known && last.DeliveredAt.IsZero() || m.Number != last.Number+1 || m.First != last.Last+1 || m.Last < m.First || m.Last > tx.Bucket(issuedBucket).Sequence() {
			return refused(fmt.Errorf("manifest %d does not follow manifest %d", m.Number, last.Number))
		}
		m.CreatedAt, m.DeliveredAt = now.UTC(), time.Time{}
		if err := tx.Bucket(exportsBucket).Put(number(m.Last), number(m.Number)); err != nil {
			return err
		}
		return store(tx.Bucket(manifestsBucket), number(m.Number), m)
	})
	return m, err
}

// DeliverManifest records that the manifest is durable in its file.
func (l *Ledger) DeliverManifest(now time.Time, n uint64) error {
	return l.changeManifest(n, func(m *Manifest) { m.DeliveredAt = now.UTC() })
}

// SyncManifest records that a hub has taken the manifest.
func (l *Ledger) SyncManifest(now time.Time, n uint64) error {
	return l.changeManifest(n, func(m *Manifest) {
		m.SyncedAt = now.UTC()
		if m.DeliveredAt.IsZero() {
			m.DeliveredAt = m.SyncedAt
		}
	})
}

func (l *Ledger) changeManifest(n uint64, change func(*Manifest)) error {
	return l.update(func(tx *bbolt.Tx) error {
		var m Manifest
		known, err := load(tx.Bucket(manifestsBucket), number(n), &m)
		if err == nil && !known {
			err = fmt.Errorf("manifest %d is %w", n, ErrNotFound)
		}
		if err != nil {
			return refused(err)
		}
		change(&m)
		return store(tx.Bucket(manifestsBucket), number(n), m)
	})
}

// Unsynced returns the committed manifests that no hub is known to have, by number.
func (l *Ledger) Unsynced() ([]Manifest, error) {
	var list []Manifest
	err := l.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(manifestsBucket).ForEach(func(n, data []byte) error {
			var m Manifest
			if err := json.Unmarshal(data, &m); err != nil {
				return damaged(n, err)
			}
			if m.SyncedAt.IsZero() {
				list = append(list, m)
			}
			return nil
		})
	})
	return list, err
}

// Manifest returns a committed manifest, or ErrNotFound.
func (l *Ledger) Manifest(n uint64) (Manifest, error) {
	var m Manifest
	err := l.view(func(tx *bbolt.Tx) error {
		known, err := load(tx.Bucket(manifestsBucket), number(n), &m)
		if err == nil && !known {
			err = fmt.Errorf("manifest %d is %w", n, ErrNotFound)
		}
		return err
	})
	return m, err
}

// Entries calls visit with record and certificate of every device a manifest names, in
// the order of issue. The record is as of that certificate, though it was replaced since. The certificate is visit's to keep.
func (l *Ledger) Entries(m Manifest, visit func(r Record, der []byte) error) error {
	return l.view(func(tx *bbolt.Tx) error {
		for seq := m.First; seq <= m.Last; seq++ {
			record, der, err := issuedAs(tx, seq, tx.Bucket(issuedBucket).Get(number(seq)))
			if err != nil {
				return err
			}
			if err := visit(record, der); err != nil {
				return err
			}
		}
		return nil
	})
}

// Unexported returns how many certificates no manifest names yet.
func (l *Ledger) Unexported() (int, error) {
	var n uint64
	err := l.view(func(tx *bbolt.Tx) error {
		last, _, err := lastManifest(tx)
		n = tx.Bucket(issuedBucket).Sequence() - last.Last
		return err
	})
	return int(n), err
}

func lastManifest(tx *bbolt.Tx) (m Manifest, known bool, err error) {
	n, _ := tx.Bucket(manifestsBucket).Cursor().Last()
	if n == nil {
		return Manifest{}, false, nil
	}
	known, err = load(tx.Bucket(manifestsBucket), n, &m)
	return m, known, err
}
