package boltstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
)

// assorted returns devices in every state, with and without what a record may lack.
func assorted(t *testing.T) []registry.Device {
	t.Helper()
	cause := registry.Cause{Actor: "ann", Reason: "keyCompromise", At: epoch.Add(time.Hour)}
	var all []registry.Device
	for i, verb := range []func(*registry.Device) error{
		func(*registry.Device) error { return nil },
		func(d *registry.Device) error { return d.Activate(cause) },
		func(d *registry.Device) error { return d.Suspend(cause) },
		func(d *registry.Device) error { return d.Revoke(cause) },
		func(d *registry.Device) error { return d.Retire(cause) },
		func(d *registry.Device) error { return d.Replace("x", cause) },
		func(d *registry.Device) error {
			return d.Supersede(d.Certificates[0].Serial, device("", "feed").Certificates[0], epoch)
		},
	} {
		d := device(fmt.Sprint("pi-", i), fmt.Sprintf("%02x", i))
		if i%2 == 1 {
			d.OU, d.Station, d.Batch, d.Protection = []string{"pump", "eu"}, "bench-1", "lot-1", "tpm"
			d.Labels["site"] = fmt.Sprint("s", i)
		} else {
			d.Labels = nil
		}
		if err := verb(&d); err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
	all = append(all, registry.Device{ID: "bare", State: registry.StateRegistered})
	slices.SortFunc(all, func(a, b registry.Device) int { return strings.Compare(a.ID, b.ID) })
	return all
}

func TestFactsSayWhatTheRecordsSay(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	devices := assorted(t)
	commit(t, s, registry.Change{Devices: devices, Sightings: []registry.Sighting{{ID: "pi-3", At: epoch}, {ID: "pi-3", At: epoch.Add(time.Minute)}, {ID: "bare", At: epoch}}})
	for after, from := range map[string]int{"": 0, "bare": 1, "pi-2": 4, "pi-2x": 4, "z": len(devices)} {
		var got []registry.Facts
		if err := s.Facts(t.Context(), after, func(f *registry.Facts) bool {
			c := *f
			c.Usable = append([]registry.Fingerprint(nil), f.Usable...)
			got = append(got, c)
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if len(got) != len(devices)-from {
			t.Fatalf("%d devices after %q, want %d", len(got), after, len(devices)-from)
		}
		for i, f := range got {
			d, err := s.Device(t.Context(), devices[from+i].ID)
			if err != nil {
				t.Fatal(err)
			}
			want := d.Facts()
			if a, err := s.Attributes(t.Context(), d.ID); err != nil || !reflect.DeepEqual(a, *want.Attributes) {
				t.Errorf("attributes of %s = %+v, %v", d.ID, a, err)
			}
			if !reflect.DeepEqual(f, want) {
				t.Errorf("facts of %s = %+v %+v\nwant %+v %+v", d.ID, f, f.Attributes, want, want.Attributes)
			}
		}
	}
	n := 0
	if err := s.Facts(t.Context(), "", func(*registry.Facts) bool { n++; return n < 3 }); err != nil || n != 3 {
		t.Errorf("stopped after %d, %v", n, err)
	}
}

func TestDevicesWithEqualAttributesShareThem(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	commit(t, s, registry.Change{Devices: []registry.Device{device("pi-1", "01"), device("pi-2", "02")}})
	var first *registry.Attributes
	if err := s.Facts(t.Context(), "", func(f *registry.Facts) bool {
		if first != nil && f.Attributes != first {
			t.Error("equal attributes are not shared")
		}
		first = f.Attributes
		return true
	}); err != nil {
		t.Fatal(err)
	}
}

// Every single bit of a device's facts decides who is admitted, and none can flip unseen.
func TestFlippedBitInFactsIsDamage(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	s.db.NoSync = true
	commit(t, s, registry.Change{Devices: []registry.Device{device("pi-1", "01")}})
	var good []byte
	if err := s.db.View(func(tx *bbolt.Tx) error {
		good = slices.Clone(tx.Bucket(bucketFacts).Get([]byte("pi-1")))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	put := func(key string, value []byte) {
		t.Helper()
		if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketFacts).Put([]byte(key), value) }); err != nil {
			t.Fatal(err)
		}
	}
	read := func() error { return s.Facts(t.Context(), "", func(*registry.Facts) bool { return true }) }
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 1 << (i % 8)
		put("pi-1", bad)
		if err := read(); !errors.Is(err, ErrDamaged) {
			t.Fatalf("octet %d: error = %v", i, err)
		}
	}
	for n := range good {
		put("pi-1", good[:n])
		if err := read(); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%d octets: error = %v", n, err)
		}
	}
	put("pi-1", good)
	if err := read(); err != nil {
		t.Fatal(err)
	}
	put("pi-2", good) // another device's
	if err := read(); !errors.Is(err, ErrDamaged) {
		t.Fatalf("facts of another device: error = %v", err)
	}
}

func TestRecordWithoutDERKeepsWhatIsStored(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	commit(t, s, registry.Change{Devices: []registry.Device{device("pi-1", "01")}})
	page, err := s.Devices(t.Context(), "", 1)
	if err != nil || page[0].Certificates[0].DER != nil {
		t.Fatalf("page = %+v, %v", page, err)
	}
	records, err := s.Records(t.Context(), []string{"pi-1"})
	if err != nil || len(records) != 1 || records[0].Certificates[0].DER != nil {
		t.Fatalf("records = %+v, %v", records, err)
	}
	records[0].Model = "pi5"
	commit(t, s, registry.Change{Devices: records})
	d, err := s.Device(t.Context(), "pi-1")
	if err != nil || d.Model != "pi5" || !slices.Equal(d.Certificates[0].DER, []byte{1, 2}) {
		t.Fatalf("device = %+v, %v", d, err)
	}
	der, err := s.Certificate(t.Context(), "pi-1", d.Certificates[0].Fingerprint)
	if err != nil || !slices.Equal(der, []byte{1, 2}) {
		t.Fatalf("certificate = %v, %v", der, err)
	}
	if _, err := s.Certificate(t.Context(), "pi-2", d.Certificates[0].Fingerprint); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("another's certificate: error = %v", err)
	}
	if _, err := s.Records(t.Context(), []string{"pi-1", "nobody"}); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("records of nobody: error = %v", err)
	}
}

func TestDocumentsAreKeptByKind(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	commit(t, s, registry.Change{Documents: []registry.Document{
		{Kind: registry.KindReceipt, ID: "b", Data: []byte("2")}, {Kind: registry.KindReceipt, ID: "a", Data: []byte("1")},
		{Kind: registry.KindOrder, ID: "a", Data: []byte("order")},
	}})
	if data, err := s.Document(t.Context(), registry.KindReceipt, "a"); err != nil || string(data) != "1" {
		t.Errorf("document = %s, %v", data, err)
	}
	if page, err := s.Documents(t.Context(), registry.KindReceipt, "a", 5); err != nil || len(page) != 1 || page[0].ID != "b" || string(page[0].Data) != "2" {
		t.Errorf("page = %+v, %v", page, err)
	}
	commit(t, s, registry.Change{Documents: []registry.Document{{Kind: registry.KindOrder, ID: "a"}, {Kind: registry.KindProposal, ID: "none"}}})
	if _, err := s.Document(t.Context(), registry.KindOrder, "a"); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("removed document: error = %v", err)
	}
	if err := s.Commit(t.Context(), registry.Change{Documents: []registry.Document{{Kind: "devices", ID: "pi-1", Data: []byte("x")}}}); err == nil {
		t.Error("a document was written over records")
	}
}

func TestAuditQueryWalksPastWhatItDoesNotPick(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	var change registry.Change
	for i := range 50 {
		change.Audit = append(change.Audit, audit("device.revoke", fmt.Sprint("pi-", i%10)))
	}
	commit(t, s, change)
	var numbers []uint64
	q := registry.AuditQuery{Device: "pi-3", Limit: 2}
	for pages := 1; ; pages++ {
		page, err := s.Audit(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Records {
			numbers = append(numbers, r.Number)
		}
		if q.After = page.Next; q.After == 0 {
			break
		}
		if pages > 10 {
			t.Fatal("there is no end to the pages")
		}
	}
	if !slices.Equal(numbers, []uint64{4, 14, 24, 34, 44}) {
		t.Fatalf("found %v", numbers)
	}
}

// A log that was cut off at its end goes on with the next number, so that the gap shows.
func TestAuditGoesOnAfterTheLastNumberEverGiven(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	commit(t, s, registry.Change{Audit: []registry.AuditRecord{audit("a", ""), audit("b", ""), audit("c", "")}})
	if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketAudit).Delete(number(3)) }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AuditHead(t.Context()); !errors.Is(err, registry.ErrTampered) {
		t.Errorf("head: error = %v", err)
	}
	commit(t, s, registry.Change{Audit: []registry.AuditRecord{audit("d", "")}})
	page, err := s.Audit(t.Context(), query(0, 10))
	if err != nil || len(page.Records) != 3 || page.Records[2].Number != 4 {
		t.Fatalf("audit = %+v, %v", page, err)
	}
}
