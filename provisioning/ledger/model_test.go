package ledger

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// promises is what must hold of a ledger whatever is done to it.
type promises struct {
	serials   map[string]string // by ID, of the certificate under way or the newest
	certified map[string]int    // the key of the newest certificate, by ID
	keys      map[int]string    // whose a key is or was, by key, from the moment it is certified
	open      map[string]bool   // IDs with an open order to replace their certificate
	tokens    map[string]int    // the key that a token got a certificate for
	order     []string          // "ID serial supersedes", in the order of issue
	exported  []string
}

// Whatever is done in whatever order, with the file closed and opened in between: an ID
// keeps its serial number and certificate until an order replaces it, a token gets one
// certificate, and manifests name every certificate once, with what it supersedes.
func TestLedgerKeepsItsPromisesUnderAnyOrderOfCalls(t *testing.T) {
	keys := make([]device, 8)
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
		all := []string{"a", "b", "c", "d"}
		first, err := l.OpenOrder(noon, Order{Kind: Imported}, Line{IDs: all})
		if err != nil {
			t.Fatal(err)
		}
		for _, token := range []string{"t1", "t2"} {
			if err := l.AddTokens(noon, noon.Add(later), first.Number, "", token); err != nil {
				t.Fatal(err)
			}
		}
		p := promises{serials: map[string]string{}, certified: map[string]int{}, keys: map[int]string{}, open: map[string]bool{}, tokens: map[string]int{}}
		replacements := map[string]uint64{}
		previous := map[string]string{} // serial number that the certificate under way supersedes
		ids, anyKey := rapid.SampledFrom(all), rapid.IntRange(0, len(keys)-1)
		next := 0
		serial := func() string { next++; return fmt.Sprintf("01%04x", next) }
		reserved := func(t *rapid.T, r Record) {
			if known := p.serials[r.ID]; known != "" && known != r.Serial {
				if !p.open[r.ID] || r.Supersedes != known {
					t.Fatalf("%s had serial number %s and has %s, superseding %q", r.ID, known, r.Serial, r.Supersedes)
				}
				previous[r.ID] = known
			}
			p.serials[r.ID] = r.Serial
		}
		t.Repeat(map[string]func(*rapid.T){
			"reserve": func(t *rapid.T) {
				id, key := ids.Draw(t, "id"), anyKey.Draw(t, "key")
				order := first.Number
				if n, ok := replacements[id]; ok && rapid.Bool().Draw(t, "to replace") {
					order = n
				}
				records, err := l.Reserve(noon, plenty, Reservation{Order: order, ID: id, Serial: serial(), KeyHash: keys[key].hash})
				if err != nil {
					return
				}
				if owner, taken := p.keys[key]; taken && owner != id {
					t.Fatalf("%s was given the key of %s", id, owner)
				}
				if _, done := p.certified[id]; done && !p.open[id] {
					t.Fatalf("%s was reserved again after it was issued", id)
				}
				reserved(t, records[0])
			},
			"come with a token": func(t *rapid.T) {
				token, key := rapid.SampledFrom([]string{"t1", "t2"}).Draw(t, "token"), anyKey.Draw(t, "key")
				records, err := l.Reserve(noon, plenty, Reservation{Token: token, Serial: serial(), KeyHash: keys[key].hash})
				if err != nil {
					return
				}
				r := records[0]
				if had, used := p.tokens[token]; used && had != key {
					t.Fatalf("token %s got a certificate for key %d, and now one for %d", token, had, key)
				}
				if r.State == Reserved {
					reserved(t, r)
					if err := l.Issue(noon, keys[key].cert(r.ID, r.Serial)); err != nil {
						t.Fatal(err)
					}
					p.issued(r, key, previous)
				}
				p.tokens[token] = key
			},
			"issue": func(t *rapid.T) {
				id, key := ids.Draw(t, "id"), anyKey.Draw(t, "key")
				if p.serials[id] == "" {
					return
				}
				if err := l.Issue(noon, keys[key].cert(id, p.serials[id])); err != nil {
					return
				}
				if _, done := p.certified[id]; done && !p.open[id] {
					t.Fatalf("%s got a second certificate", id)
				}
				r, _, err := l.Device(id)
				if err != nil {
					t.Fatal(err)
				}
				p.issued(r, key, previous)
			},
			"order a replacement": func(t *rapid.T) {
				id := ids.Draw(t, "id")
				o, err := l.OpenOrder(noon, Order{Kind: Replacement, Reason: "r"}, Line{IDs: []string{id}})
				if _, done := p.certified[id]; err == nil && (!done || p.open[id]) {
					t.Fatalf("an order replaces what %s doesn't have, or is being replaced", id)
				}
				if err == nil {
					replacements[id], p.open[id] = o.Number, true
				}
			},
			"deliver": func(t *rapid.T) {
				if err := l.Deliver(noon, ids.Draw(t, "id")); err != nil {
					t.Fatal(err)
				}
			},
			"manifest": func(t *rapid.T) {
				m, committed, err := l.NextManifest(2)
				if errors.Is(err, ErrNothingNew) {
					if len(p.exported) != len(p.order) {
						t.Fatalf("nothing new though %d of %d are exported", len(p.exported), len(p.order))
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
				err = l.Entries(m, func(r Record, _ []byte) error {
					p.exported = append(p.exported, r.ID+" "+r.Serial+" "+r.Supersedes)
					return nil
				})
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
				if !slices.Equal(p.exported, p.order[:len(p.exported)]) {
					t.Fatalf("issued %v, exported %v", p.order, p.exported)
				}
				if n, err := l.Count(); err != nil || n != len(p.serials) {
					t.Fatalf("%d devices are counted, there are %d %v", n, len(p.serials), err)
				}
			},
		})
	})
}

// issued records that the device got its certificate.
func (p *promises) issued(r Record, key int, previous map[string]string) {
	p.certified[r.ID], p.keys[key] = key, r.ID
	p.order = append(p.order, r.ID+" "+r.Serial+" "+previous[r.ID])
	delete(p.open, r.ID)
	delete(previous, r.ID)
}
