package boltstore

import (
	"errors"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/fleethub/fleethub/hub/registry"
)

// Answers have a bucket of their own only once there is one, so that a store of before is a store.
func TestAnswersAreKeptInAStoreThatHadNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hub.db")
	s := openStore(t, path)
	if _, err := s.Document(t.Context(), registry.KindAnswer, "k"); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("before the first: %v", err)
	}
	if page, err := s.Documents(t.Context(), registry.KindAnswer, "", 10); err != nil || len(page) != 0 {
		t.Errorf("before the first: %+v, %v", page, err)
	}
	answer := registry.Document{Kind: registry.KindAnswer, ID: "k", Data: []byte("{}")}
	if err := s.Commit(t.Context(), registry.Change{Documents: []registry.Document{answer}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, path)
	if data, err := s.Document(t.Context(), registry.KindAnswer, "k"); err != nil || string(data) != "{}" {
		t.Errorf("after a restart: %q, %v", data, err)
	}
	if err := s.Commit(t.Context(), registry.Change{Documents: []registry.Document{{Kind: registry.KindAnswer, ID: "k"}}}); err != nil {
		t.Fatal(err)
	}
	if page, err := s.Documents(t.Context(), registry.KindAnswer, "", 10); err != nil || len(page) != 0 {
		t.Errorf("after its removal: %+v, %v", page, err)
	}
	if err := s.db.View(func(tx *bbolt.Tx) error {
		if tx.Bucket([]byte(registry.KindReceipt)).Inspect().KeyN != 0 {
			return errors.New("an answer is among the receipts")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
