package fleet

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/hub/boltstore"
	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
)

// TestTamperingWithTheAuditLogIsFound changes the file behind the hub's back, as who has
// the disk could.
func TestTamperingWithTheAuditLogIsFound(t *testing.T) {
	key := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	reseal := func(b *bbolt.Bucket, from uint64) error { // makes a log that fits itself
		var hash registry.AuditHash
		if v := b.Get(key(from - 1)); v != nil {
			hash = registry.AuditHash(v)
		}
		for n := from; ; n++ {
			v := b.Get(key(n))
			if v == nil {
				return nil
			}
			hash = hash.Link(n, v[32:])
			if err := b.Put(key(n), append(append([]byte(nil), hash[:]...), v[32:]...)); err != nil {
				return err
			}
		}
	}
	for name, tt := range map[string]struct {
		tamper func(b *bbolt.Bucket) error
		say    string
	}{
		"a word changed": {func(b *bbolt.Bucket) error {
			v := string(b.Get(key(3)))
			return b.Put(key(3), []byte(strings.Replace(v, "/ann", "/ben", 1)))
		}, "record 3"},
		"a record removed": {func(b *bbolt.Bucket) error { return b.Delete(key(2)) }, "record 1"},
		"the last removed": {func(b *bbolt.Bucket) error { return b.Delete(key(4)) }, "ends at record 3"},
		"the last removed, and their number": {func(b *bbolt.Bucket) error {
			return errors.Join(b.Delete(key(4)), b.SetSequence(3))
		}, "ends at record 3"},
		"two swapped": {func(b *bbolt.Bucket) error {
			x, y := append([]byte(nil), b.Get(key(2))...), append([]byte(nil), b.Get(key(3))...)
			return errors.Join(b.Put(key(2), y), b.Put(key(3), x))
		}, "record 2"},
		"a record cut short": {func(b *bbolt.Bucket) error { return b.Put(key(2), b.Get(key(2))[:20]) }, "malformed"},
		"a word changed, and all sealed again": {func(b *bbolt.Bucket) error {
			v := string(b.Get(key(3)))
			if err := b.Put(key(3), []byte(strings.Replace(v, "/ann", "/ben", 1))); err != nil {
				return err
			}
			return reseal(b, 3)
		}, "receipt"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.register("pi-1", "pi-2")
			for _, id := range []string{"pi-1", "pi-2"} {
				if _, err := r.Revoke(t.Context(), id, 1, ann); err != nil {
					t.Fatal(err)
				}
			}
			if v, err := r.VerifyAudit(t.Context()); err != nil || v.Head.Number != 4 || v.Receipts != 2 {
				t.Fatalf("before: %+v, %v", v, err)
			}
			r.close()
			db, err := bbolt.Open(r.path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = db.Update(func(tx *bbolt.Tx) error { return tt.tamper(tx.Bucket([]byte("audit"))) })
			if err := errors.Join(err, db.Close()); err != nil {
				t.Fatal(err)
			}
			r.open()
			_, err = r.VerifyAudit(t.Context())
			if !errors.Is(err, registry.ErrTampered) || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("error = %v, want one that says %q", err, tt.say)
			}
			// It keeps nobody from being cut off.
			if _, err := r.Suspend(t.Context(), "pi-9", "", ann); !errors.Is(err, ErrUnknownDevice) {
				t.Errorf("error = %v", err)
			}
			r.register("pi-3")
			if receipt, err := r.Revoke(t.Context(), "pi-3", 1, ann); err != nil || r.state("pi-3") != registry.StateRevoked {
				t.Errorf("receipt = %+v, %v", receipt, err)
			}
			if _, err = r.VerifyAudit(t.Context()); !errors.Is(err, registry.ErrTampered) && !errors.Is(err, boltstore.ErrDamaged) {
				t.Errorf("afterwards: error = %v", err)
			}
		})
	}
}
