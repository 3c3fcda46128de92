package ledger

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is done in whatever order, with the file closed and opened in between: an ID
// keeps its serial number and certificate, and manifests name every certificate once.
func TestLedgerKeepsItsPromisesUnderAnyOrderOfCalls(t *testing.T) {
	keys := make([]device, 6)
	for i := range keys {
		keys[i] = newDevice(t)
	}
	dir, runs := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		path := filepath.Join(dir, fmt.Sprint(runs))
		if err := Create(path, "bench-1"); err != nil {
			t.Fatal(err)
		}
		l, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { l.Close() }()

		serials := map[string]string{} // by ID
		certified := map[string]int{}  // key by ID
		var order, exported []string
		ids := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		next := 0
		t.Repeat(map[string]func(*rapid.T){
			"reserve": func(t *rapid.T) {
				id, key := ids.Draw(t, "id"), rapid.IntRange(0, len(keys)-1).Draw(t, "key")
				next++
				records, err := l.Reserve(noon, Reservation{ID: id, Serial: fmt.Sprintf("%04x", next), KeyHash: keys[key].hash})
				if _, done := certified[id]; done && err == nil {
					t.Fatalf("%s was reserved again after it was issued", id)
				}
				if err == nil {
					if known := serials[id]; known != "" && known != records[0].Serial {
						t.Fatalf("%s had serial number %s and has %s", id, known, records[0].Serial)
					}
					serials[id] = records[0].Serial
				}
			},
			"issue": func(t *rapid.T) {
				id, key := ids.Draw(t, "id"), rapid.IntRange(0, len(keys)-1).Draw(t, "key")
				if serials[id] == "" {
					return
				}
				if err := l.Issue(noon, keys[key].cert(id, serials[id])); err == nil {
					if _, done := certified[id]; done {
						t.Fatalf("%s got a second certificate", id)
					}
					for other, k := range certified {
						if k == key {
							t.Fatalf("%s and %s have the same key", id, other)
						}
					}
					certified[id] = key
					order = append(order, id)
				}
			},
			"manifest": func(t *rapid.T) {
				m, committed, err := l.NextManifest(2)
				if errors.Is(err, ErrNothingNew) {
					if len(exported) != len(order) {
						t.Fatalf("nothing new though %d of %d are exported", len(exported), len(order))
					}
					return
				}
				if err == nil && !committed {
					m, err = l.CommitManifest(noon, m)
				}
				if err != nil {
					t.Fatal(err)
				}
				if rapid.Bool().Draw(t, "killed before the file was written") {
					return
				}
				err = l.Entries(m, func(r Record, _ []byte) error { exported = append(exported, r.ID); return nil })
				if err := errors.Join(err, l.DeliverManifest(noon, m.Number)); err != nil {
					t.Fatal(err)
				}
			},
			"reopen": func(t *rapid.T) {
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				if l, err = Open(path); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				if !slices.Equal(exported, order[:len(exported)]) {
					t.Fatalf("issued %v, exported %v", order, exported)
				}
			},
		})
	})
}
