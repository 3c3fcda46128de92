package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"go.etcd.io/bbolt"
)

// Snapshot hands put the store as it is at one moment: its size in bytes, and a function
// that writes it. Work goes on meanwhile, but the file grows until it has returned.
func (s *Store) Snapshot(ctx context.Context, put func(size int64, writeTo func(io.Writer) error) error) error {
	return s.view(ctx, func(tx *bbolt.Tx) error {
		return put(tx.Size(), func(w io.Writer) error {
			_, err := tx.WriteTo(w)
			return err
		})
	})
}

// Check looks through a store that no hub has open: every page, every bucket, and what
// bbolt itself can tell. It changes nothing.
func Check(path string) (err error) {
	if _, err := os.Stat(path); err != nil {
		return err
	}
	s, err := open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if _, err := s.check(); err != nil {
		return err
	}
	return s.view(context.Background(), func(tx *bbolt.Tx) error {
		var first error
		for err := range tx.Check() { // to its end: a goroutine of bbolt's feeds it
			if first == nil {
				first = s.damaged(fmt.Errorf("its pages don't fit together: %w", err))
			}
		}
		return first
	})
}
