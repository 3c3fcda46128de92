package boltstore

import (
	"context"
	"fmt"

	"go.etcd.io/bbolt"
)

// bucketJournal is not in every file: it is made when the hub's journal is.
var bucketJournal = []byte("journal")

var keyBegun = []byte("begun")

// HasJournal reports whether the hub has begun a journal. From then on a missing one
// is a loss, not a beginning.
func (s *Store) HasJournal(ctx context.Context) (has bool, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketJournal)
		has = bucket != nil && bucket.Get(keyBegun) != nil
		return nil
	})
	return has, err
}

// BeginJournal notes that there is a journal. Durable when it returns.
func (s *Store) BeginJournal() error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists(bucketJournal)
		if err != nil {
			return err
		}
		return bucket.Put(keyBegun, []byte{1})
	})
	if err != nil {
		return fmt.Errorf("note in store %s that there is a journal: %w", s.path, err)
	}
	return nil
}
