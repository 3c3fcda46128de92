package boltstore

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
)

// format1 writes a store as the first hubs did, from testdata, and returns its path and
// bytes.
func format1(t *testing.T) (path string, data []byte) {
	t.Helper()
	f, err := os.Open("testdata/format1.db.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if data, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "hub.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, data
}

// devices1 returns what that store holds.
func devices1(t *testing.T) (devices []registry.Device) {
	t.Helper()
	data, err := os.ReadFile("testdata/format1.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &devices); err != nil {
		t.Fatal(err)
	}
	return devices
}

func TestStoreOfTheFormerFormatOpensWithAllThatItHeld(t *testing.T) {
	path, data := format1(t)
	s := openStore(t, path)
	for round := range 2 { // migrated, and opened again
		for _, was := range devices1(t) {
			got, err := s.Device(t.Context(), was.ID)
			if err != nil {
				t.Fatal(err)
			}
			// What the format didn't have.
			if len(got.History) != 1 || got.History[0].To != was.State || !got.History[0].At.Equal(was.Updated) {
				t.Errorf("%s: history = %+v", was.ID, got.History)
			}
			wantBatch := map[string]string{"pi-active": "lot-7"}[was.ID]
			if wantBatch == "" {
				wantBatch = "bench-1.1"
			}
			if got.Batch != wantBatch {
				t.Errorf("%s: batch %q, want %q", was.ID, got.Batch, wantBatch)
			}
			if was.State == registry.StateSuspended {
				if got.Reason != registry.ReasonHold || got.Note != "lost on site" {
					t.Errorf("%s: reason %q, note %q", was.ID, got.Reason, got.Note)
				}
				got.Reason, got.Note = was.Reason, ""
			}
			for i, c := range got.Certificates {
				if (c.Reason != "") == c.Revoked.IsZero() || c.Reason != "" && c.Reason != "keyCompromise" {
					t.Errorf("%s: certificate revoked %v for %q", was.ID, c.Revoked, c.Reason)
				}
				got.Certificates[i].Reason = ""
				if owner, err := s.Owner(t.Context(), c.Issuer, c.Serial); err != nil || owner.Device != was.ID || !owner.Revoked.Equal(c.Revoked) {
					t.Errorf("%s: owner = %+v, %v", was.ID, owner, err)
				}
			}
			got.History, got.Batch = nil, ""
			was.Batch = ""
			if !reflect.DeepEqual(got, was) {
				t.Errorf("device = %+v\nwant %+v", got, was)
			}
		}
		page, err := s.Audit(t.Context(), query(0, 100))
		if err != nil || len(page.Records) != 13 || page.Records[0].Action != "manifest.import" || page.Records[10].Device != "pi-revoked" || page.Records[12].Action != "store.migrate" {
			t.Fatalf("audit = %+v, %v", page, err)
		}
		var chain registry.AuditChain
		if err := s.AuditLines(t.Context(), 0, func(line registry.AuditLine) bool {
			if err := chain.Next(line); err != nil {
				t.Error(err)
			}
			return true
		}); err != nil || chain.Head().Number != 13 {
			t.Fatalf("chain ends at %+v, %v", chain.Head(), err)
		}
		if kept, err := os.ReadFile(path + ".format1"); err != nil || !bytes.Equal(kept, data) {
			t.Fatalf("the old file is not kept as it was: %v", err)
		}
		if names := list(t, filepath.Dir(path)); !slices.Equal(names, []string{"hub.db", "hub.db.format1"}) {
			t.Fatalf("folder holds %v", names)
		}
		if round == 0 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, path)
		}
	}
	commit(t, s, registry.Change{Devices: []registry.Device{device("pi-new", "0a")}, Audit: []registry.AuditRecord{audit("import", "pi-new")}})
}

func TestMigrationThatWasKilledIsDoneAgain(t *testing.T) {
	path, _ := format1(t)
	for name, data := range map[string]string{partialPrefix(path) + "77": "half a store", "hub.db.format1": "half a copy"} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := openStore(t, path)
	if page, err := s.Devices(t.Context(), "", 10); err != nil || len(page) != 5 {
		t.Fatalf("%d devices, %v", len(page), err)
	}
	if names := list(t, filepath.Dir(path)); !slices.Equal(names, []string{"hub.db", "hub.db.format1"}) {
		t.Fatalf("folder holds %v", names)
	}
}

func TestMigrationKeepsThatThereIsAJournalAndWhoReadsIt(t *testing.T) {
	for _, begun := range []bool{false, true} {
		path, _ := format1(t)
		if begun {
			old, err := open(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(old.BeginJournal(), old.PutConsumer(t.Context(), "crm", []byte("7")), old.Close()); err != nil {
				t.Fatal(err)
			}
		}
		s := openStore(t, path)
		if has, err := s.HasJournal(t.Context()); err != nil || has != begun {
			t.Errorf("after the migration: has a journal %v, %v; want %v", has, err, begun)
		}
		if consumers, err := s.Consumers(t.Context()); err != nil || (string(consumers["crm"]) == "7") != begun {
			t.Errorf("after the migration: consumers %v, %v", consumers, err)
		}
	}
}

func TestDamagedRecordStopsTheMigrationAndChangesNothing(t *testing.T) {
	for name, spoil := range map[string]func(tx *bbolt.Tx) error{
		"a record": func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketDevices).Put([]byte("pi-active"), []byte(`{"id":"pi-active","sta`))
		},
		"a gap in the audit log": func(tx *bbolt.Tx) error { return tx.Bucket(bucketAudit).Delete(number(3)) },
	} {
		path, _ := format1(t)
		old, err := open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(old.db.Update(spoil), old.Close()); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := Open(path); !errors.Is(err, ErrDamaged) {
			if err == nil {
				s.Close()
			}
			t.Errorf("%s: error = %v", name, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
			t.Errorf("%s: the file was changed (%v)", name, err)
		}
		if names := list(t, filepath.Dir(path)); !slices.Equal(names, []string{"hub.db"}) {
			t.Errorf("%s: folder holds %v", name, names)
		}
	}
}
