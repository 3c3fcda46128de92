package boltstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func device(id, serial string) registry.Device {
	return registry.Device{
		ID: id, State: registry.StateRegistered, Model: "pi4", Labels: map[string]string{"line": "a"}, Created: epoch, Updated: epoch,
		Certificates: []registry.Certificate{{Serial: serial, Issuer: "ee", Fingerprint: fingerprint(serial), NotBefore: epoch, NotAfter: epoch.AddDate(1, 0, 0), DER: []byte{1, 2}}},
	}
}

// fingerprint makes one up for a certificate of that serial number.
func fingerprint(serial string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(serial)))
}

// bare is a record as a page has it.
func bare(d registry.Device) registry.Device {
	d = d.Clone()
	for i := range d.Certificates {
		d.Certificates[i].DER = nil
	}
	return d
}

func query(after uint64, limit int) registry.AuditQuery {
	return registry.AuditQuery{After: after, Limit: limit}
}

func audit(action, id string) registry.AuditRecord {
	return registry.AuditRecord{Time: epoch, Actor: "ann", Action: action, Device: id, Outcome: registry.OutcomeDone}
}

func openStore(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func commit(t testing.TB, s *Store, change registry.Change) {
	t.Helper()
	if err := s.Commit(t.Context(), change); err != nil {
		t.Fatal(err)
	}
}

func TestChangesSurviveReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hub.db")
	s := openStore(t, path)
	d := device("pi-1", "01")
	commit(t, s, registry.Change{Devices: []registry.Device{d}, Audit: []registry.AuditRecord{audit("import", "pi-1"), audit("again", "pi-1")}})
	commit(t, s, registry.Change{Sightings: []registry.Sighting{{ID: "pi-1", At: epoch}, {ID: "nobody", At: epoch}}})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, path)
	got, err := s.Device(t.Context(), "pi-1")
	d.FirstSeen, d.LastSeen = epoch, epoch
	if err != nil || !reflect.DeepEqual(got, d) {
		t.Fatalf("device = %+v, %v\nwant %+v", got, err, d)
	}
	page, err := s.Audit(t.Context(), query(0, 10))
	if records := page.Records; err != nil || len(records) != 2 || records[0].Number != 1 || records[1].Number != 2 || records[1].Action != "again" || page.Next != 0 {
		t.Fatalf("audit = %+v, %v", page, err)
	}
	if _, err := s.Device(t.Context(), "nobody"); !errors.Is(err, registry.ErrUnknown) {
		t.Fatalf("error = %v, want ErrUnknown", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if names := list(t, filepath.Dir(path)); !slices.Equal(names, []string{"hub.db"}) {
		t.Fatalf("folder holds %v", names)
	}
}

func TestPagesCoverEveryDeviceOnceInOrder(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	var change registry.Change
	var want []string
	for i := range 25 {
		id := fmt.Sprintf("pi-%02d", i)
		change.Devices = append(change.Devices, device(id, id))
		change.Audit = append(change.Audit, audit("import", id))
		want = append(want, id)
	}
	slices.Reverse(change.Devices)
	commit(t, s, change)
	for _, limit := range []int{1, 7, 25, 100} {
		var got []string
		for after := ""; ; {
			page, err := s.Devices(t.Context(), after, limit)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			for _, d := range page {
				got = append(got, d.ID)
			}
			after = got[len(got)-1]
		}
		if !slices.Equal(got, want) {
			t.Fatalf("limit %d: %v", limit, got)
		}
	}
	if page, err := s.Devices(t.Context(), "pi-03x", 1); err != nil || page[0].ID != "pi-04" {
		t.Fatalf("page after an ID that isn't there = %v, %v", page, err)
	}
	if page, err := s.Audit(t.Context(), query(20, 3)); err != nil || len(page.Records) != 3 || page.Records[0].Number != 21 || page.Next != 23 {
		t.Fatalf("audit page = %+v, %v", page, err)
	}
	if page, err := s.Audit(t.Context(), query(^uint64(0), 3)); err != nil || len(page.Records) != 0 || page.Next != 0 {
		t.Fatalf("audit page after the last number = %+v, %v", page, err)
	}
}

func TestRefusedCommitLeavesNothing(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	commit(t, s, registry.Change{Devices: []registry.Device{device("pi-1", "01")}, Audit: []registry.AuditRecord{audit("import", "pi-1")}})
	before := dump(t, s)
	badState := device("pi-4", "04")
	badState.State = "nonsense"
	for name, devices := range map[string][]registry.Device{
		"serial of another device":      {device("pi-2", "02"), device("pi-3", "01")},
		"one serial twice in a change":  {device("pi-2", "02"), device("pi-3", "02")},
		"a state that isn't one":        {device("pi-2", "02"), badState},
		"a key longer than bbolt takes": {device("pi-2", "02"), device(strings.Repeat("x", 40000), "05")},
	} {
		err := s.Commit(t.Context(), registry.Change{
			Sightings: []registry.Sighting{{ID: "pi-1", At: epoch}}, Devices: devices, Audit: []registry.AuditRecord{audit("import", "pi-2")},
		})
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		if after := dump(t, s); after != before {
			t.Errorf("%s: the store changed from\n%s\nto\n%s", name, before, after)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Commit(cancelled, registry.Change{Audit: []registry.AuditRecord{audit("late", "")}}); !errors.Is(err, context.Canceled) {
		t.Fatalf("error = %v, want Canceled", err)
	}
	if after := dump(t, s); after != before {
		t.Fatal("a cancelled commit changed the store")
	}
}

func TestSerialBelongsToOneDeviceOfAnIssuer(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	commit(t, s, registry.Change{Devices: []registry.Device{device("pi-1", "01")}})
	var conflict *registry.ConflictError
	err := s.Commit(t.Context(), registry.Change{Devices: []registry.Device{device("pi-2", "01")}})
	if !errors.As(err, &conflict) || conflict.Owner != "pi-1" || conflict.ID != "pi-2" || conflict.Serial != "01" {
		t.Fatalf("error = %v", err)
	}
	other := device("pi-2", "01")
	other.Certificates[0].Issuer = "dd" // serial numbers are an issuer's own
	commit(t, s, registry.Change{Devices: []registry.Device{other}})
	commit(t, s, registry.Change{Devices: []registry.Device{device("pi-1", "01")}}) // its own, again
}

func TestRevocationIsKeptWithTheSerial(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	d := device("pi-1", "01")
	if err := d.Revoke(registry.Cause{Reason: "keyCompromise", At: epoch}); err != nil {
		t.Fatal(err)
	}
	odd := device("pi-2", "no hex")
	odd.Certificates[0].Issuer = "nor this"
	odd.Certificates[0].Superseded = epoch
	commit(t, s, registry.Change{Devices: []registry.Device{d, odd, device("pi-3", "03")}})
	for _, want := range []registry.Ownership{
		{Issuer: "ee", Serial: "01", Device: "pi-1", Revoked: epoch, Reason: "keyCompromise"},
		{Issuer: "nor this", Serial: "no hex", Device: "pi-2", Superseded: true},
		{Issuer: "ee", Serial: "03", Device: "pi-3"},
	} {
		if got, err := s.Owner(t.Context(), want.Issuer, want.Serial); err != nil || got != want {
			t.Errorf("owner = %+v, %v; want %+v", got, err, want)
		}
	}
	var serials []string
	if err := s.Owners(t.Context(), "ee", func(o registry.Ownership) bool { serials = append(serials, o.Serial); return true }); err != nil || !slices.Equal(serials, []string{"01", "03"}) {
		t.Errorf("the issuer's serial numbers = %v, %v", serials, err)
	}
	if _, err := s.Owner(t.Context(), "ee", "02"); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("error = %v, want ErrUnknown", err)
	}
}

func TestSightingsWidenAndNeverTouchTheRecord(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	commit(t, s, registry.Change{Devices: []registry.Device{device("pi-1", "01")}})
	for _, offset := range []time.Duration{5, 3, 9, 7} {
		commit(t, s, registry.Change{Sightings: []registry.Sighting{{ID: "pi-1", At: epoch.Add(offset)}}})
	}
	d := device("pi-1", "01") // an older copy, written back
	commit(t, s, registry.Change{Devices: []registry.Device{d}})
	got, err := s.Device(t.Context(), "pi-1")
	if err != nil || !got.FirstSeen.Equal(epoch.Add(3)) || !got.LastSeen.Equal(epoch.Add(9)) || !got.Updated.Equal(epoch) {
		t.Fatalf("device = %+v, %v", got, err)
	}
}

// TestStoreBehavesAsAMap compares random commits, refused ones among them, with a
// plain model, reopening the file now and then.
func TestStoreBehavesAsAMap(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		path := filepath.Join(dir, fmt.Sprint(runs, ".db"))
		s, err := Open(path)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { s.Close() }()
		s.db.NoSync = true // for speed: nobody pulls the plug here
		devices, owners, audits := map[string]registry.Device{}, map[string]string{}, 0
		ids := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		rt.Repeat(map[string]func(*rapid.T){
			"commit": func(rt *rapid.T) {
				var change registry.Change
				legal, next := true, map[string]string{}
				for range rapid.IntRange(1, 3).Draw(rt, "devices") {
					d := device(ids.Draw(rt, "id"), rapid.SampledFrom([]string{"01", "02", "03"}).Draw(rt, "serial"))
					key := d.Certificates[0].Key()
					for _, known := range []map[string]string{owners, next} {
						if owner, ok := known[key]; ok && owner != d.ID {
							legal = false
						}
					}
					next[key] = d.ID
					change.Devices = append(change.Devices, d)
					change.Audit = append(change.Audit, audit("x", d.ID))
				}
				if err := s.Commit(context.Background(), change); (err == nil) != legal {
					rt.Fatalf("commit: %v, legal %v", err, legal)
				}
				if !legal {
					return
				}
				audits += len(change.Audit)
				for _, d := range change.Devices {
					devices[d.ID], owners[d.Certificates[0].Key()] = d, d.ID
				}
			},
			"reopen": func(rt *rapid.T) {
				if err := s.Close(); err != nil {
					rt.Fatal(err)
				}
				if s, err = Open(path); err != nil {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) {
				page, err := s.Devices(context.Background(), "", 100)
				if err != nil || len(page) != len(devices) {
					rt.Fatalf("%d devices, %v; want %d", len(page), err, len(devices))
				}
				for _, d := range page {
					if !reflect.DeepEqual(d, bare(devices[d.ID])) {
						rt.Fatalf("device %+v, want %+v", d, devices[d.ID])
					}
				}
				log, err := s.Audit(context.Background(), query(0, 10000))
				if err != nil || len(log.Records) != audits {
					rt.Fatalf("%d audit records, %v; want %d", len(log.Records), err, audits)
				}
			},
		})
	})
}

// dump returns everything in the store as text.
func dump(t *testing.T, s *Store) string {
	t.Helper()
	var b strings.Builder
	if err := s.db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, bucket *bbolt.Bucket) error {
			return bucket.ForEach(func(k, v []byte) error {
				_, err := fmt.Fprintf(&b, "%s %s=%s\n", name, k, v)
				return err
			})
		})
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
