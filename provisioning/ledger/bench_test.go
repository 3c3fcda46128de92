package ledger

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// million is a ledger of a million issued devices, made without the rules.
func million(b *testing.B) string {
	b.Helper()
	const devices, step = 1_000_000, 50_000
	path := filepath.Join(b.TempDir(), "ledger.db")
	if err := Create(path, "bench-1"); err != nil {
		b.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		b.Fatal(err)
	}
	der := make([]byte, 450)
	for start := 1; start <= devices; start += step {
		err := db.Update(func(tx *bbolt.Tx) error {
			for i := start; i < start+step; i++ {
				id := fmt.Sprintf("pi-%07d", i)
				record, err := json.Marshal(Record{ID: id, State: Delivered, Serial: fmt.Sprintf("%032x", i), KeyHash: fmt.Sprintf("%064x", i), Model: "rpi-5", Order: 1, Sequence: uint64(i), Protection: Software, ReservedAt: noon, IssuedAt: noon, DeliveredAt: noon})
				if err != nil {
					return err
				}
				for _, v := range []struct{ bucket, key, value []byte }{
					{devicesBucket, []byte(id), record}, {keysBucket, fmt.Appendf(nil, "%064x", i), []byte(id)},
					{issuedBucket, number(uint64(i)), []byte(id)}, {certificatesBucket, number(uint64(i)), der},
				} {
					if err := appended(tx.Bucket(v.bucket)).Put(v.key, v.value); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if err := tx.Bucket(metaBucket).Put(countKey, number(devices)); err != nil {
			return err
		}
		return tx.Bucket(issuedBucket).SetSequence(devices)
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	return path
}

// BenchmarkMillionDevices opens a ledger of a million devices, looks one up, and
// reserves and issues one more.
func BenchmarkMillionDevices(b *testing.B) {
	path := million(b)
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			l, err := Open(path)
			if err != nil {
				b.Fatal(err)
			}
			l.Close()
		}
	})
	l, err := Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	b.Run("device", func(b *testing.B) {
		for b.Loop() {
			if _, der, err := l.Device(fmt.Sprintf("pi-%07d", 1+rand.IntN(1_000_000))); err != nil || len(der) == 0 {
				b.Fatal(err)
			}
		}
	})
	b.Run("key", func(b *testing.B) {
		for b.Loop() {
			if owner, err := l.KeyOwner(fmt.Sprintf("%064x", 1+rand.IntN(1_000_000))); err != nil || owner == "" {
				b.Fatal(err)
			}
		}
	})
	b.Run("order", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := l.OpenOrder(noon, Order{Kind: Imported}, Line{Pattern: Pattern{"new-", 5}, Count: 1000}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
