package station

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench returns an open station whose authority is accepted, and its fleet.
func bench(t testing.TB) (*Station, *certtest.Fleet) {
	t.Helper()
	fleet := certtest.New(t)
	dir := t.TempDir()
	if _, err := Init(dir, certtest.StationName); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, nil)
	if _, err := s.Accept(authorized(t, s, fleet, nil)); err != nil {
		t.Fatal(err)
	}
	return s, fleet
}

func open(t testing.TB, dir string, now func() time.Time) *Station {
	t.Helper()
	s, err := Open(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// authorized returns the file with an authority that the fleet's root signed at now.
func authorized(t testing.TB, s *Station, fleet *certtest.Fleet, now func() time.Time) string {
	t.Helper()
	if now == nil {
		now = time.Now
	}
	ca, err := fleet.Root.At(now).IssueCA(issuance.CARequest{
		Kind: identity.KindFactory, Name: s.Name(), TrustDomain: certtest.TrustDomain, PublicKey: s.key.Public(),
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "authority.crt")
	if err := pemfile.WriteCertificates(file, ca, fleet.Root.Certificate()); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestDeviceOfTheStationIsTrustedByTheHub(t *testing.T) {
	s, fleet := bench(t)
	out := filepath.Join(t.TempDir(), "D")
	d, err := s.Issue(DeviceOrder{ID: "a", Out: out, OU: []string{"press"}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := mtls.LoadCredentials(out, "device")
	if err != nil {
		t.Fatal(err)
	}
	if c.Identity.String() != "spiffe://fleet.example/device/a" || !slices.Equal(c.Identity.OU, []string{"press"}) || d.Fingerprint != identity.Fingerprint(c.Leaf) {
		t.Errorf("%v %v", c.Identity, d)
	}
	pool := x509.NewCertPool()
	pool.AddCert(fleet.Root.Certificate())
	between := x509.NewCertPool()
	issuer, err := x509.ParseCertificate(c.Certificate.Certificate[1])
	if err != nil {
		t.Fatal(err)
	}
	between.AddCert(issuer)
	if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
}

// The serial number that a killed run reserved is the one the repetition uses, even if
// the folder is another one by then.
func TestReservedSerialNumberIsUsedByTheRepetition(t *testing.T) {
	s, _ := bench(t)
	o, err := s.ledger.OpenOrder(time.Now(), ledger.Order{Kind: ledger.Single}, ledger.Line{IDs: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ledger.Reserve(time.Now(), 1, ledger.Reservation{Order: o.Number, ID: "a", Serial: "0badcafe", KeyHash: "of a key that was lost"}); err != nil {
		t.Fatal(err)
	}
	d, err := s.Issue(DeviceOrder{ID: "a", Out: filepath.Join(t.TempDir(), "D")})
	if err != nil || d.Serial != "0badcafe" || d.Repeated {
		t.Errorf("%+v %v", d, err)
	}
}

func TestNothingIsSignedOutsideTheAuthoritysValidity(t *testing.T) {
	s, _ := bench(t)
	dir := s.dir
	s.Close()
	for name, test := range map[string]struct {
		now  time.Time
		want string
	}{
		"clock never set": {time.Unix(0, 0), "set the clock"},
		"years ahead":     {time.Now().AddDate(5, 0, 0), "hub station authorize"},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, dir, func() time.Time { return test.now })
			defer s.Close()
			out := filepath.Join(t.TempDir(), "D")
			_, err := s.Issue(DeviceOrder{ID: "a", Out: out})
			_, batchErr := s.Batch(context.Background(), BatchOrder{Prefix: "a-", Count: 1, Out: out}, nil)
			_, exportErr := s.Export(out)
			for _, err := range []error{err, batchErr, exportErr} {
				if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), test.want) {
					t.Error(err)
				}
			}
			if _, err := os.Stat(out); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something was written: %v", err)
			}
		})
	}
}

func TestRenewedAuthorityServesDevicesOfTheOldOne(t *testing.T) {
	s, fleet := bench(t)
	out := filepath.Join(t.TempDir(), "D")
	first, err := s.Issue(DeviceOrder{ID: "a", Out: out})
	if err != nil {
		t.Fatal(err)
	}
	later := func() time.Time { return time.Now().Add(time.Minute) }
	a, err := s.Accept(authorized(t, s, fleet, later))
	if err != nil || a.Change != Renewed {
		t.Fatal(a, err)
	}
	if err := os.Remove(filepath.Join(out, deviceCertFile)); err != nil {
		t.Fatal(err)
	}
	again, err := s.Issue(DeviceOrder{ID: "a", Out: out})
	if err != nil || again.Fingerprint != first.Fingerprint {
		t.Fatal(again, err)
	}
	chain, err := pemfile.ReadCertificates(filepath.Join(out, deviceCertFile))
	if err != nil || identity.SerialString(chain[1].SerialNumber) != a.Serial || chain[0].CheckSignatureFrom(chain[1]) != nil {
		t.Errorf("the old certificate does not chain through the new authority: %v", err)
	}
}

func TestBatchStopsBetweenGroupsAndIsFinishedByRepetition(t *testing.T) {
	s, _ := bench(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	const most = groupsAtATime * groupSize // are begun before the first has come through
	o := BatchOrder{Prefix: "sim-", Count: most + 10, Out: filepath.Join(t.TempDir(), "out")}
	var seen []int
	_, err := s.Batch(ctx, o, func(done int) {
		seen = append(seen, done)
		if done > 0 {
			cancel()
		}
	})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d of %d devices complete: repeat the command", most, o.Count)) {
		t.Fatal(err)
	}
	// The first group has left for the boards: it isn't missed.
	if err := os.RemoveAll(filepath.Join(o.Out, "sim-00001")); err != nil {
		t.Fatal(err)
	}
	r, err := s.Batch(context.Background(), o, func(done int) { seen = append(seen, done) })
	if err != nil || !r.Resumed || r.Issued != 10 || r.Before != most || len(r.Lost) != 0 || r.Last != fmt.Sprintf("sim-%05d", o.Count) {
		t.Fatalf("%+v %v", r, err)
	}
	if want := []int{0, groupSize, most, most, o.Count}; !slices.Equal(seen, want) {
		t.Errorf("progress %v, want %v", seen, want)
	}
}

// A killed run issued devices whose folders are then lost: they are named, the others
// are finished, and the batch is closed, since no repetition would bring the keys back.
func TestBatchNamesDevicesWhoseKeysAreLost(t *testing.T) {
	s, _ := bench(t)
	o := BatchOrder{Prefix: "sim-", Count: 3, Out: filepath.Join(t.TempDir(), "out")}
	a, err := s.valid()
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := s.openBatch(a, o)
	if err != nil {
		t.Fatal(err)
	}
	group, err := s.batchGroup(b, b.Delivered)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.enrol(a, group[:2]); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(o.Out, "sim-00002")); err != nil {
		t.Fatal(err)
	}
	r, err := s.Batch(context.Background(), o, nil)
	if err != nil || !slices.Equal(r.Lost, []string{"sim-00002"}) || r.Issued != 1 || !r.Complete {
		t.Fatalf("%+v %v", r, err)
	}
	r, err = s.Batch(context.Background(), o, nil)
	if err != nil || r.Before != 3 || r.Issued != 0 {
		t.Fatalf("%+v %v", r, err)
	}
	e, err := s.Export(t.TempDir())
	if err != nil || e.Devices != 3 {
		t.Errorf("the manifest must name the lost one too: %+v %v", e, err)
	}
}

func TestWritesAreUndoneOnFailure(t *testing.T) {
	dir := t.TempDir()
	var w writes
	path := filepath.Join(dir, "new", "file")
	if err := w.add(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	blocked := filepath.Join(dir, "blocked")
	if err := os.MkdirAll(filepath.Join(blocked, "file", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := w.add(filepath.Join(blocked, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.commit(); err == nil {
		t.Fatal("a folder was replaced by a file")
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", ".*.partial"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// What a stick brings must be refused or accepted, never anything else.
func FuzzAccept(f *testing.F) {
	s, fleet := bench(f)
	good, err := os.ReadFile(authorized(f, s, fleet, nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(pemfile.EncodeCertificates(fleet.Factory.Certificate(), fleet.Root.Certificate()))
	f.Add(pemfile.EncodeCertificates(fleet.Device("a").Leaf, fleet.Root.Certificate()))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	file := filepath.Join(f.TempDir(), "file")
	before := s.authority.Load()
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Accept(file); err != nil {
			if s.authority.Load() != before {
				t.Error("a refused file changed the authority")
			}
			return
		}
		ca := s.authority.Load().issuer.Certificate()
		if err := ca.CheckSignatureFrom(fleet.Root.Certificate()); err != nil {
			t.Errorf("accepted though not by the root: %v", err)
		}
		before = s.authority.Load()
	})
}
