package ledger

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/issuance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func fresh(t *testing.T) (*Ledger, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ledger.db")
	if err := Create(path, "bench-1"); err != nil {
		t.Fatal(err)
	}
	return open(t, path), path
}

func open(t *testing.T, path string) *Ledger {
	t.Helper()
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// device is a key with what it takes to certify it.
type device struct {
	hash string
	cert func(id, serial string) *x509.Certificate
}

func newDevice(t testing.TB) device {
	t.Helper()
	key, err := issuance.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return device{HashKey(spki), func(id, serial string) *x509.Certificate {
		n, ok := new(big.Int).SetString(serial, 16)
		if !ok {
			t.Fatalf("serial %q", serial)
		}
		template := &x509.Certificate{SerialNumber: n, Subject: pkix.Name{CommonName: id}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}}
}

func mustReserve(t *testing.T, l *Ledger, r Reservation) Record {
	t.Helper()
	records, err := l.Reserve(noon, r)
	if err != nil {
		t.Fatal(err)
	}
	return records[0]
}

func mustIssue(t *testing.T, l *Ledger, id string) device {
	t.Helper()
	d := newDevice(t)
	r := mustReserve(t, l, Reservation{ID: id, Serial: fmt.Sprintf("%x", id), KeyHash: d.hash})
	if err := l.Issue(noon, d.cert(id, r.Serial)); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestReservationRepeatedKeepsItsSerialNumberAndTakesTheNewKey(t *testing.T) {
	l, path := fresh(t)
	first, second := newDevice(t), newDevice(t)
	mustReserve(t, l, Reservation{ID: "a", Serial: "0a", KeyHash: first.hash, Out: "/one"})
	l.Close()
	l = open(t, path)
	r := mustReserve(t, l, Reservation{ID: "a", Serial: "0b", KeyHash: second.hash, Out: "/two", Model: "m"})
	if r.Serial != "0a" || r.KeyHash != second.hash || r.Out != "/two" || r.Model != "m" || r.State != Reserved {
		t.Errorf("reserved again as %+v", r)
	}
	if owner, err := l.KeyOwner(first.hash); owner != "" || err != nil {
		t.Errorf("the first key still is the key of %q %v", owner, err)
	}
	if err := l.Issue(noon, first.cert("a", "0a")); err == nil {
		t.Error("a certificate for the replaced key was stored")
	}
	if err := l.Issue(noon, second.cert("a", "0a")); err != nil {
		t.Error(err)
	}
}

func TestReservationsAreRefusedAllOrNone(t *testing.T) {
	l, _ := fresh(t)
	taken := mustIssue(t, l, "taken")
	batch, err := l.OpenBatch(noon, Batch{Prefix: "sim-", Count: 3, Out: "/out"})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		bad  Reservation
		want string
	}{
		"issued before":     {Reservation{ID: "taken", Serial: "01", KeyHash: "x"}, "has a certificate already"},
		"key of another":    {Reservation{ID: "b", Serial: "01", KeyHash: taken.hash}, "is the key of taken"},
		"kept for a batch":  {Reservation{ID: "sim-00002", Serial: "01", KeyHash: "x"}, "belongs to the unfinished batch sim-00001 to sim-00003"},
		"of another batch":  {Reservation{ID: "sim-00002", Serial: "01", KeyHash: "x", Batch: batch.Number + 1}, "belongs to the unfinished batch"},
		"same key for both": {Reservation{ID: "b", Serial: "01", KeyHash: "good"}, "is the key of good"},
	} {
		t.Run(name, func(t *testing.T) {
			good := Reservation{ID: "good", Serial: "02", KeyHash: "good"}
			if name != "same key for both" {
				if err := l.Check(good, test.bad); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("check: %v", err)
				}
			}
			if _, err := l.Reserve(noon, good, test.bad); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("reserve: %v", err)
			}
			if _, _, err := l.Device("good"); !errors.Is(err, ErrNotFound) {
				t.Errorf("the good one was reserved though the other was refused: %v", err)
			}
		})
	}
}

func TestCertificateIsStoredOnlyAsReserved(t *testing.T) {
	l, _ := fresh(t)
	d, other := newDevice(t), newDevice(t)
	mustReserve(t, l, Reservation{ID: "a", Serial: "0a", KeyHash: d.hash})
	for name, cert := range map[string]*x509.Certificate{
		"other serial number": d.cert("a", "0b"),
		"other key":           other.cert("a", "0a"),
		"ID not reserved":     d.cert("b", "0a"),
	} {
		if err := l.Issue(noon, cert); err == nil {
			t.Errorf("%s: stored", name)
		}
	}
	if err := l.Issue(noon, d.cert("a", "0a")); err != nil {
		t.Fatal(err)
	}
	if err := l.Issue(noon, d.cert("a", "0a")); err == nil {
		t.Error("stored twice")
	}
	r, der, err := l.Device("a")
	if err != nil || r.State != Issued || r.Sequence != 1 || len(der) == 0 || !r.IssuedAt.Equal(noon) {
		t.Errorf("%+v %d %v", r, len(der), err)
	}
}

func TestBatchCountsOnFromEverythingWithItsPrefix(t *testing.T) {
	l, _ := fresh(t)
	for _, id := range []string{"sim-00007", "sim-9", "sim-x", "sim-0000000012345678901234567890", "sin-00050"} {
		mustIssue(t, l, id)
	}
	b, err := l.OpenBatch(noon, Batch{Prefix: "sim-", Count: 100, Out: "/a"})
	if err != nil || b.ID(0) != "sim-00010" || b.ID(99) != "sim-00109" {
		t.Fatalf("%v %v", b, err)
	}
	// Its IDs are taken from now on, though no record has them.
	b2, err := l.OpenBatch(noon, Batch{Prefix: "sim-", Count: 1, Out: "/b"})
	if err != nil || b2.ID(0) != "sim-00110" {
		t.Fatalf("%v %v", b2, err)
	}
	for id, want := range map[string]bool{"sim-00010": true, "sim-00109": true, "sim-00009": false, "sim-00110": false, "sim-10": false, "sim-000010": false, "other": false} {
		if b.Contains(id) != want {
			t.Errorf("%s: %t", id, !want)
		}
	}
	if _, err := l.OpenBatch(noon, Batch{Prefix: "sim-", Count: MaxCounter, Out: "/c"}); err == nil {
		t.Error("a batch runs over the end of the counter")
	}
	if b3, err := l.OpenBatch(noon, Batch{Prefix: "new.", Count: 100_001, Out: "/c"}); err != nil || b3.ID(100_000) != "new.100001" {
		t.Errorf("%v %v", b3, err)
	}
}

func TestBatchIsFoundOpenBeforeCompleteAndNewestFirst(t *testing.T) {
	l, _ := fresh(t)
	if _, err := l.FindBatch("a-", 2, "/o"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	var numbers []uint64
	for range 3 {
		b, err := l.OpenBatch(noon, Batch{Prefix: "a-", Count: 2, Out: "/o"})
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, b.Number)
	}
	for _, step := range []struct{ close, find int }{{-1, 0}, {0, 1}, {2, 1}, {1, 2}} {
		if step.close >= 0 {
			if b, err := l.AdvanceBatch(noon, numbers[step.close], 2); err != nil || !b.Closed() {
				t.Fatal(b, err)
			}
		}
		if b, err := l.FindBatch("a-", 2, "/o"); err != nil || b.Number != numbers[step.find] {
			t.Errorf("after closing %d: %v %v", step.close, b.Number, err)
		}
	}
	if _, err := l.AdvanceBatch(noon, numbers[0], 2); err == nil {
		t.Error("a closed batch advanced")
	}
	if open, err := l.UnfinishedBatches(); len(open) != 0 || err != nil {
		t.Error(open, err)
	}
}

func TestPrefixMustNotRunIntoTheCounter(t *testing.T) {
	for prefix, ok := range map[string]bool{"sim-": true, "a": true, "": false, "sim-1": false, "0": false} {
		if err := ValidPrefix(prefix); (err == nil) != ok {
			t.Errorf("%q: %v", prefix, err)
		}
	}
}

func TestManifestRepeatsUntilDelivered(t *testing.T) {
	l, path := fresh(t)
	if _, _, err := l.NextManifest(10); !errors.Is(err, ErrNothingNew) {
		t.Fatal(err)
	}
	for _, id := range []string{"c", "a", "b"} {
		mustIssue(t, l, id)
	}
	proposal, committed, err := l.NextManifest(2)
	if err != nil || committed || proposal.Number != 1 || proposal.Len() != 2 {
		t.Fatal(proposal, committed, err)
	}
	if _, err := l.CommitManifest(noon, Manifest{Number: 2, First: 1, Last: 1}); err == nil {
		t.Error("a manifest number was skipped")
	}
	if _, err := l.CommitManifest(noon, Manifest{Number: 1, First: 2, Last: 2}); err == nil {
		t.Error("a certificate was skipped")
	}
	if _, err := l.CommitManifest(noon, proposal); err != nil {
		t.Fatal(err)
	}
	if _, err := l.CommitManifest(noon, Manifest{Number: 2, First: 3, Last: 3}); err == nil {
		t.Error("a second manifest was committed before the first was delivered")
	}
	l.Close()
	l = open(t, path)
	mustIssue(t, l, "d")
	m, committed, err := l.NextManifest(10)
	if err != nil || !committed || m.Number != 1 || m.Len() != 2 || !m.CreatedAt.Equal(noon) {
		t.Fatal(m, committed, err)
	}
	if err := l.DeliverManifest(noon, 1); err != nil {
		t.Fatal(err)
	}
	var ids []string
	if err := l.Entries(m, func(r Record, der []byte) error { ids = append(ids, r.ID); return nil }); err != nil || fmt.Sprint(ids) != "[c a]" {
		t.Errorf("manifest 1 names %v %v", ids, err)
	}
	if n, err := l.Unexported(); n != 2 || err != nil {
		t.Errorf("%d are in no manifest %v", n, err)
	}
	states := map[string]string{}
	if err := l.Devices(func(r Record) error { states[r.ID] = fmt.Sprint(r.State, r.Manifest); return nil }); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(states) != "map[a:exported1 b:issued0 c:exported1 d:issued0]" {
		t.Error(states)
	}
	if err := l.DeliverManifest(noon, 9); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := l.Manifest(9); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestLedgerOpensForOneProcessAtATime(t *testing.T) {
	_, path := fresh(t)
	if _, err := Open(path); !errors.Is(err, ErrLocked) {
		t.Error(err)
	}
}

func TestLedgerIsNeverMadeOrReplacedByOpening(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(empty, "bench-1"); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if _, err := Open(empty); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Error(err)
	}
	foreign := filepath.Join(dir, "foreign")
	db, err := bbolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := Open(foreign); err == nil || !strings.Contains(err.Error(), "is not a station's ledger") {
		t.Error(err)
	}
	l, path := fresh(t)
	if err := l.update(func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(formatKey, []byte("2")) }); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), `has format "2"`) {
		t.Error(err)
	}
}

func TestDamagedRecordIsNamed(t *testing.T) {
	l, _ := fresh(t)
	if err := l.update(func(tx *bbolt.Tx) error { return tx.Bucket(devicesBucket).Put([]byte("a"), []byte("{")) }); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		l.Devices(func(Record) error { return nil }),
		func() error { _, _, err := l.Device("a"); return err }(),
		l.Check(Reservation{ID: "a"}),
	} {
		if err == nil || !strings.Contains(err.Error(), `record "a" is damaged`) {
			t.Error(err)
		}
	}
}
