package boltstore

import (
	"bytes"
	"context"
	"fmt"

	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
)

// documentBucket returns the bucket of a kind of document. That of answers, which older
// stores don't have, is made with the first; until then, and only then, it is nil.
func documentBucket(tx *bbolt.Tx, kind registry.DocumentKind) (*bbolt.Bucket, error) {
	switch kind {
	case registry.KindReceipt, registry.KindProposal, registry.KindOrder:
		return tx.Bucket([]byte(kind)), nil
	case registry.KindAnswer:
		if tx.Writable() {
			return tx.CreateBucketIfNotExists([]byte(kind))
		}
		return tx.Bucket([]byte(kind)), nil
	}
	return nil, fmt.Errorf("the store keeps no documents of kind %q", kind)
}

func putDocument(tx *bbolt.Tx, d registry.Document) error {
	bucket, err := documentBucket(tx, d.Kind)
	if err != nil {
		return err
	}
	if d.Data == nil {
		return bucket.Delete([]byte(d.ID))
	}
	return bucket.Put([]byte(d.ID), d.Data)
}

// Document returns the document of that kind and ID, or an error that matches
// registry.ErrUnknown.
func (s *Store) Document(ctx context.Context, kind registry.DocumentKind, id string) ([]byte, error) {
	var data []byte
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		bucket, err := documentBucket(tx, kind)
		if err != nil {
			return err
		}
		if bucket == nil {
			return registry.ErrUnknown
		}
		if data = bytes.Clone(bucket.Get([]byte(id))); data == nil {
			return registry.ErrUnknown
		}
		return nil
	})
	return data, err
}

// Documents returns at most limit documents of a kind in order of ID, those after the
// given ID only.
func (s *Store) Documents(ctx context.Context, kind registry.DocumentKind, after string, limit int) ([]registry.Document, error) {
	var page []registry.Document
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		bucket, err := documentBucket(tx, kind)
		if err != nil || bucket == nil {
			return err
		}
		c := bucket.Cursor()
		for k, v := seekAfter(c, after); k != nil && len(page) < limit; k, v = c.Next() {
			page = append(page, registry.Document{Kind: kind, ID: string(k), Data: bytes.Clone(v)})
		}
		return nil
	})
	return page, err
}
