package boltstore

import (
	"bytes"
	"context"

	"go.etcd.io/bbolt"
)

// bucketConsumers is not in every file: it is made with the first consumer.
var bucketConsumers = []byte("consumers")

// Consumers returns what is kept for each consumer of the journal, by its name.
func (s *Store) Consumers(ctx context.Context) (map[string][]byte, error) {
	all := make(map[string][]byte)
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketConsumers)
		if bucket == nil {
			return nil
		}
		return bucket.ForEach(func(name, data []byte) error {
			all[string(name)] = bytes.Clone(data)
			return nil
		})
	})
	return all, err
}

// PutConsumer keeps data for a consumer in place of what was kept before. Durable when it returns.
func (s *Store) PutConsumer(ctx context.Context, name string, data []byte) error {
	return s.updateConsumers(ctx, func(bucket *bbolt.Bucket) error { return bucket.Put([]byte(name), data) })
}

// DeleteConsumer forgets a consumer; one that isn't there is no error. Durable when it returns.
func (s *Store) DeleteConsumer(ctx context.Context, name string) error {
	return s.updateConsumers(ctx, func(bucket *bbolt.Bucket) error { return bucket.Delete([]byte(name)) })
}

func (s *Store) updateConsumers(ctx context.Context, change func(*bbolt.Bucket) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.guard("write", func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			bucket, err := tx.CreateBucketIfNotExists(bucketConsumers)
			if err != nil {
				return err
			}
			return change(bucket)
		})
	})
}
