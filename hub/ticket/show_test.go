package ticket

import (
	"path/filepath"
	"testing"
	"time"
)

func TestKeysAreListedNewestFirst(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	r, err := OpenRing(filepath.Join(t.TempDir(), "tickets.json"), Config{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	first := r.Keys()
	if len(first) != 1 || len(first[0].ID) != 2*keyIDSize || !first[0].Created.Equal(now) {
		t.Fatalf("keys %+v", first)
	}
	now = now.Add(time.Hour)
	if err := r.Rotate(); err != nil {
		t.Fatal(err)
	}
	if keys := r.Keys(); len(keys) != 2 || keys[1] != first[0] || !keys[0].Created.Equal(now) {
		t.Errorf("keys %+v after %+v", keys, first)
	}
}
