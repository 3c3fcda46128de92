package ledger

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// old writes a ledger of format 1: a device of its own, an unfinished batch of three
// with one issued and one reserved, and a manifest that was delivered.
func old(t *testing.T) (path string, ders map[string][]byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ledger.db")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	ders = map[string][]byte{"solo": newDevice(t).cert("solo", "0a").Raw, "sim-00001": newDevice(t).cert("sim-00001", "0b").Raw}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{"meta", "devices", "certificates", "keys", "issued", "batches", "manifests", "exports"} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		stamp := noon.Format(time.RFC3339)
		for _, v := range []struct {
			bucket     string
			key, value []byte
		}{
			{"meta", formatKey, []byte("1")},
			{"meta", stationKey, []byte("bench-1")},
			{"devices", []byte("solo"), []byte(`{"id":"solo","state":"issued","serial":"0a","key":"k1","model":"m","out":"/solo","sequence":1,"reserved_at":"` + stamp + `","issued_at":"` + stamp + `"}`)},
			{"devices", []byte("sim-00001"), []byte(`{"id":"sim-00001","state":"issued","serial":"0b","key":"k2","ou":["x"],"out":"/sim/sim-00001","batch":1,"sequence":2,"reserved_at":"` + stamp + `","issued_at":"` + stamp + `"}`)},
			{"devices", []byte("sim-00002"), []byte(`{"id":"sim-00002","state":"reserved","serial":"0c","key":"k3","out":"/sim/sim-00002","batch":1,"reserved_at":"` + stamp + `"}`)},
			{"keys", []byte("k1"), []byte("solo")}, {"keys", []byte("k2"), []byte("sim-00001")}, {"keys", []byte("k3"), []byte("sim-00002")},
			{"certificates", []byte("solo"), ders["solo"]}, {"certificates", []byte("sim-00001"), ders["sim-00001"]},
			{"issued", number(1), []byte("solo")}, {"issued", number(2), []byte("sim-00001")},
			{"batches", number(1), []byte(`{"number":1,"prefix":"sim-","first":1,"count":3,"out":"/sim","ou":["x"],"delivered":1,"opened_at":"` + stamp + `"}`)},
			{"manifests", number(1), []byte(`{"number":1,"first":1,"last":1,"created_at":"` + stamp + `","delivered_at":"` + stamp + `"}`)},
			{"exports", number(1), number(1)},
		} {
			if err := tx.Bucket([]byte(v.bucket)).Put(v.key, v.value); err != nil {
				return err
			}
		}
		return errors.Join(tx.Bucket([]byte("issued")).SetSequence(2), tx.Bucket([]byte("batches")).SetSequence(1))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return path, ders
}

func TestLedgerOfFormat1IsCarriedOn(t *testing.T) {
	path, ders := old(t)
	for range 2 { // migrated, and then opened as it is
		l := open(t, path)
		for id, want := range map[string]string{"solo": "exported 0a m [] 1", "sim-00001": "issued 0b  [x] 0", "sim-00002": "reserved 0c  [] 0"} {
			r, der, err := l.Device(id)
			if got := fmt.Sprintf("%s %s %s %v %d", r.State, r.Serial, r.Model, r.OU, r.Manifest); err != nil || got != want || string(der) != string(ders[id]) {
				t.Errorf("%s: %s, %d bytes, %v", id, got, len(der), err)
			}
		}
		o, err := l.FindRun("sim-", 3, "/sim")
		if err != nil || o.Closed() || o.Number != 1 || o.Delivered != 1 || o.Reserved != 2 || o.Issued != 1 || o.First != "sim-00001" || o.Last != "sim-00003" {
			t.Errorf("%+v %v", o, err)
		}
		if n, err := l.Count(); n != 3 || err != nil {
			t.Errorf("%d devices %v", n, err)
		}
		l.Close()
	}
	l := open(t, path)
	// The reserved one keeps its serial number, the batch goes on, the counter, too.
	d := newDevice(t)
	if r := mustReserve(t, l, Reservation{Order: 1, ID: "sim-00002", Serial: "ff", KeyHash: d.hash}); r.Serial != "0c" || fmt.Sprint(r.OU) != "[x]" {
		t.Errorf("%+v", r)
	}
	if err := l.Issue(noon, d.cert("sim-00002", "0c")); err != nil {
		t.Fatal(err)
	}
	if o, err := l.AdvanceRun(noon, 1, 3); err != nil || !o.Closed() {
		t.Errorf("%+v %v", o, err)
	}
	if o := mustOpen(t, l, Order{}, Line{Pattern: Pattern{"sim-", 5}, Count: 1}); o.First != "sim-00004" || o.Number != 2 {
		t.Errorf("%+v", o)
	}
	m, committed, err := l.NextManifest(10)
	if err != nil || committed || m.Number != 2 || m.First != 2 || m.Last != 3 {
		t.Errorf("%+v %v %v", m, committed, err)
	}
	if _, err := l.OpenOrder(noon, Order{}, Line{IDs: []string{"solo"}}); err == nil {
		t.Error("a device of format 1 was ordered again")
	}
}

func TestMigrationThatFailsLeavesTheLedgerAsItWas(t *testing.T) {
	path, _ := old(t)
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(certificatesBucket).Delete([]byte("solo")) }), db.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := Open(path); err == nil {
			t.Fatal("opened without a certificate that it should have")
		}
	}
}
