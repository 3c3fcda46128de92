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

// plenty is more devices than any test makes.
const plenty = 1 << 30

// order opens an order that lists the IDs.
func order(t testing.TB, l *Ledger, ids ...string) uint64 {
	t.Helper()
	return mustOpen(t, l, Order{Kind: Imported}, Line{IDs: ids}).Number
}

func mustOpen(t testing.TB, l *Ledger, o Order, lines ...Line) Order {
	t.Helper()
	o, err := l.OpenOrder(noon, o, lines...)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func mustReserve(t testing.TB, l *Ledger, r Reservation) Record {
	t.Helper()
	records, err := l.Reserve(noon, plenty, r)
	if err != nil {
		t.Fatal(err)
	}
	return records[0]
}

func mustIssue(t testing.TB, l *Ledger, id string) device {
	t.Helper()
	d := newDevice(t)
	r := mustReserve(t, l, Reservation{Order: order(t, l, id), ID: id, Serial: fmt.Sprintf("%x", id), KeyHash: d.hash})
	if err := l.Issue(noon, d.cert(id, r.Serial)); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestReservationRepeatedKeepsItsSerialNumberAndTakesTheNewKey(t *testing.T) {
	l, path := fresh(t)
	first, second := newDevice(t), newDevice(t)
	n := order(t, l, "a")
	mustReserve(t, l, Reservation{Order: n, ID: "a", Serial: "0a", KeyHash: first.hash, Out: "/one"})
	l.Close()
	l = open(t, path)
	r := mustReserve(t, l, Reservation{Order: n, ID: "a", Serial: "0b", KeyHash: second.hash, Out: "/two"})
	if r.Serial != "0a" || r.KeyHash != second.hash || r.Out != "/two" || r.State != Reserved {
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
	if o, err := l.Order(n); err != nil || o.Reserved != 1 || o.Issued != 1 || o.Closed() {
		t.Errorf("%+v %v", o, err)
	}
	if err := l.Deliver(noon, "a", "a", "unknown"); err != nil {
		t.Fatal(err)
	}
	if o, err := l.Order(n); err != nil || o.Delivered != 1 || !o.Closed() {
		t.Errorf("%+v %v", o, err)
	}
}

func TestReservationsAreRefusedAllOrNone(t *testing.T) {
	l, _ := fresh(t)
	taken := mustIssue(t, l, "taken")
	run := mustOpen(t, l, Order{Kind: Run, Prefix: "sim-", Out: "/out"}, Line{Pattern: Pattern{"sim-", 5}, Count: 3})
	n := order(t, l, "good", "b")
	listed := order(t, l, "listed")
	closed := order(t, l, "closed")
	if _, err := l.CloseOrder(noon, closed); err != nil {
		t.Fatal(err)
	}
	guarded := mustOpen(t, l, Order{Kind: Imported}, Line{IDs: []string{"guarded"}, Attributes: Attributes{Protection: TPM}}).Number
	late := mustOpen(t, l, Order{Kind: Imported}, Line{IDs: []string{"late"}, Attributes: Attributes{NotAfter: noon}}).Number
	ek := order(t, l, "chip")
	mustReserve(t, l, Reservation{Order: ek, ID: "chip", Serial: "0c", KeyHash: "chip", EK: "ee"})
	for name, test := range map[string]struct {
		bad  Reservation
		want string
	}{
		"issued before":         {Reservation{Order: n, ID: "taken", KeyHash: "x"}, "has a certificate already"},
		"key of another":        {Reservation{Order: n, ID: "b", KeyHash: taken.hash}, "is the key of taken"},
		"kept for a batch":      {Reservation{Order: n, ID: "sim-00002", KeyHash: "x"}, "belongs to the unfinished batch sim-00001 to sim-00003"},
		"of another order":      {Reservation{Order: n, ID: "listed", KeyHash: "x"}, fmt.Sprintf("belongs to the open order %d", listed)},
		"batch's by a stranger": {Reservation{Order: run.Number, ID: "sim-2", KeyHash: "x"}, "no open order has sim-2"},
		"closed order":          {Reservation{Order: closed, ID: "closed", KeyHash: "x"}, "is closed"},
		"no such order":         {Reservation{Order: 99, ID: "b", KeyHash: "x"}, "order 99 is not in the ledger"},
		"in no order":           {Reservation{Order: n, ID: "x", KeyHash: "x"}, "no open order has x"},
		"protection":            {Reservation{Order: guarded, ID: "guarded", KeyHash: "x", Protection: Software}, "demands a key in a tpm"},
		"over":                  {Reservation{Order: late, ID: "late", KeyHash: "x"}, "which is past"},
		"another's TPM":         {Reservation{Order: n, ID: "b", KeyHash: "x", EK: "ee"}, "the TPM is that of chip"},
		"same key for both":     {Reservation{Order: n, ID: "b", KeyHash: "good"}, "is the key of good"},
	} {
		t.Run(name, func(t *testing.T) {
			good := Reservation{Order: n, ID: "good", Serial: "02", KeyHash: "good"}
			if name != "same key for both" {
				if err := l.Check(noon, plenty, good, test.bad); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("check: %v", err)
				}
			}
			if _, err := l.Reserve(noon, plenty, good, test.bad); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("reserve: %v", err)
			}
			if name != "same key for both" {
				if _, err := l.Reserve(noon, plenty, test.bad); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("reserve alone: %v", err)
				}
			}
			if _, _, err := l.Device("good"); !errors.Is(err, ErrNotFound) {
				t.Errorf("the good one was reserved though the other was refused: %v", err)
			}
		})
	}
}

func TestBudgetCountsEveryIDOnce(t *testing.T) {
	l, _ := fresh(t)
	n := order(t, l, "a", "b", "c")
	reserve := func(id string) error {
		_, err := l.Reserve(noon, 2, Reservation{Order: n, ID: id, Serial: "0" + id, KeyHash: id})
		return err
	}
	for _, id := range []string{"a", "b", "a", "b"} {
		if err := reserve(id); err != nil {
			t.Fatal(err)
		}
	}
	if err := reserve("c"); !errors.Is(err, ErrBudget) || !strings.Contains(err.Error(), "--max-devices") {
		t.Errorf("the third of two devices: %v", err)
	}
	if c, err := l.Count(); c != 2 || err != nil {
		t.Errorf("%d devices %v", c, err)
	}
}

func TestCertificateIsStoredOnlyAsReserved(t *testing.T) {
	l, _ := fresh(t)
	d, other := newDevice(t), newDevice(t)
	mustReserve(t, l, Reservation{Order: order(t, l, "a"), ID: "a", Serial: "0a", KeyHash: d.hash})
	for name, cert := range map[string]*x509.Certificate{
		"other serial number": d.cert("a", "0b"),
		"other key":           other.cert("a", "0a"),
		"ID not reserved":     d.cert("b", "0a"),
	} {
		if err := l.Issue(noon, cert); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
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
	if err := l.update(func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(formatKey, []byte("3")) }); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), `has format "3"`) {
		t.Error(err)
	}
}

func TestDamagedRecordIsNamed(t *testing.T) {
	l, _ := fresh(t)
	n := order(t, l, "a")
	if err := l.update(func(tx *bbolt.Tx) error { return tx.Bucket(devicesBucket).Put([]byte("a"), []byte("{")) }); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		l.Devices(func(Record) error { return nil }),
		func() error { _, _, err := l.Device("a"); return err }(),
		l.Check(noon, plenty, Reservation{Order: n, ID: "a"}),
	} {
		if err == nil || !strings.Contains(err.Error(), `record "a" is damaged`) {
			t.Error(err)
		}
	}
}
