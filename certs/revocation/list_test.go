package revocation_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/revocation"
)

var moment = time.Now().UTC().Truncate(time.Second)

func list(number int64, entries ...revocation.Entry) revocation.List {
	return revocation.List{Number: big.NewInt(number), ThisUpdate: moment, NextUpdate: moment.Add(time.Hour), Entries: entries}
}

func sign(t testing.TB, l revocation.List, issuer *x509.Certificate, key crypto.Signer) []byte {
	t.Helper()
	der, err := l.Sign(issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestListSaysAfterReadingWhatItSaidBefore(t *testing.T) {
	t.Parallel()
	pki := certtest.New(t)
	want := list(7,
		revocation.Entry{Serial: big.NewInt(1), At: moment.Add(-time.Hour)},
		revocation.Entry{Serial: new(big.Int).Lsh(big.NewInt(1), 158), At: moment, Reason: revocation.KeyCompromise},
		revocation.Entry{Serial: big.NewInt(3), At: moment, Reason: revocation.Hold})
	got, err := revocation.ReadList(sign(t, want, pki.Factory.Certificate(), pki.FactoryKey), pki.Factory.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	if got.Number.Cmp(want.Number) != 0 || !got.ThisUpdate.Equal(want.ThisUpdate) || !got.NextUpdate.Equal(want.NextUpdate) || len(got.Entries) != len(want.Entries) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	for i, e := range want.Entries {
		if g := got.Entries[i]; g.Serial.Cmp(e.Serial) != 0 || !g.At.Equal(e.At) || g.Reason != e.Reason {
			t.Errorf("entry %d is %+v, want %+v", i, g, e)
		}
	}
}

// raw signs a template that List would not make.
func raw(t *testing.T, template *x509.RevocationList, pki *certtest.Fleet) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, template, pki.Factory.Certificate(), pki.FactoryKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestListThatMayNotSayEverythingIsRefused(t *testing.T) {
	t.Parallel()
	pki := certtest.New(t)
	good := sign(t, list(1), pki.Factory.Certificate(), pki.FactoryKey)
	critical := func(oid ...int) []pkix.Extension {
		return []pkix.Extension{{Id: asn1.ObjectIdentifier(oid), Critical: true, Value: []byte{0x30, 0}}}
	}
	template := func() *x509.RevocationList {
		return &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: moment, NextUpdate: moment.Add(time.Hour)}
	}
	indirect, scoped := template(), template()
	scoped.ExtraExtensions = critical(2, 5, 29, 28) // issuing distribution point
	indirect.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(5), RevocationTime: moment, ExtraExtensions: critical(2, 5, 29, 29)}}
	tampered := append([]byte(nil), good...)
	tampered[len(tampered)-1] ^= 1
	for name, c := range map[string]struct {
		der  []byte
		want error
	}{
		"of another issuer":             {sign(t, list(1), pki.Operational.Certificate(), pki.OperationalKey), revocation.ErrIssuer},
		"of an issuer of the same name": {sign(t, list(1), pki.Foreign().Factory.Certificate(), func() crypto.Signer { f := pki.Foreign(); return f.FactoryKey }()), revocation.ErrIssuer},
		"tampered with":                 {tampered, revocation.ErrIssuer},
		"cut short":                     {good[:len(good)-9], revocation.ErrMalformed},
		"with something behind it":      {append(append([]byte(nil), good...), 0), revocation.ErrMalformed},
		"empty":                         {nil, revocation.ErrMalformed},
		"of a part only":                {raw(t, scoped, pki), revocation.ErrMalformed},
		"with another issuer's entries": {raw(t, indirect, pki), revocation.ErrMalformed},
	} {
		if c.der == nil && name != "empty" {
			t.Fatal(name)
		}
		if _, err := revocation.ReadList(c.der, pki.Factory.Certificate()); !errors.Is(err, c.want) {
			t.Errorf("a list %s: %v, want %v", name, err, c.want)
		}
	}
}

func TestListOfTheSameOrAnOlderNumberOrOutOfTimeIsRefused(t *testing.T) {
	t.Parallel()
	l := list(7)
	for name, c := range map[string]struct {
		known *big.Int
		now   time.Time
		want  error
	}{
		"the first":              {nil, moment, nil},
		"newer":                  {big.NewInt(6), moment, nil},
		"the same":               {big.NewInt(7), moment, revocation.ErrOlder},
		"older":                  {big.NewInt(8), moment, revocation.ErrOlder},
		"in its last second":     {nil, l.NextUpdate.Add(-time.Second), nil},
		"at its next update":     {nil, l.NextUpdate, revocation.ErrStale},
		"long after":             {nil, l.NextUpdate.Add(time.Hour), revocation.ErrStale},
		"of a clock a bit ahead": {nil, moment.Add(-time.Minute), nil},
		"of tomorrow":            {nil, moment.Add(-24 * time.Hour), revocation.ErrStale},
		"older and out of date":  {big.NewInt(8), l.NextUpdate, revocation.ErrOlder},
	} {
		if err := l.Check(c.known, c.now); !errors.Is(err, c.want) {
			t.Errorf("a list %s: %v, want %v", name, err, c.want)
		}
	}
}

func openssl(t testing.TB, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatalf("%v; install the Debian package openssl", err)
	}
	out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput()
	return string(out), err
}

// openssl verify -crl_check takes our lists: the issuer's for a leaf, and refuses without.
func TestOpensslRefusesWhatTheListHas(t *testing.T) {
	t.Parallel()
	pki := certtest.New(t)
	good, bad := pki.Device("pi-1"), pki.Device("pi-2")
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root := write("root.crt", pemfile.EncodeCertificates(pki.Root.Certificate()))
	issuer := write("issuer.crt", pemfile.EncodeCertificates(pki.Factory.Certificate()))
	check := func(leaf *x509.Certificate, crl []byte) string {
		args := []string{"verify", "-x509_strict", "-crl_check", "-CAfile", root, "-untrusted", issuer}
		if crl != nil {
			der, pem := write("list.der", crl), filepath.Join(dir, "list.pem")
			if out, err := openssl(t, "crl", "-inform", "DER", "-in", der, "-out", pem); err != nil {
				t.Fatal(out)
			}
			args = append(args, "-CRLfile", pem)
		}
		out, err := openssl(t, append(args, write("leaf.crt", pemfile.EncodeCertificates(leaf)))...)
		if (err == nil) != strings.HasSuffix(strings.TrimSpace(out), "OK") {
			t.Fatalf("openssl verify: %v: %s", err, out)
		}
		return out
	}
	l := list(1, revocation.Entry{Serial: bad.Leaf.SerialNumber, At: moment, Reason: revocation.KeyCompromise})
	der := sign(t, l, pki.Factory.Certificate(), pki.FactoryKey)
	stale := l
	stale.ThisUpdate, stale.NextUpdate = moment.Add(-2*time.Hour), moment.Add(-time.Hour)
	for name, c := range map[string]struct {
		out, want string
	}{
		"good":         {check(good.Leaf, der), "OK"},
		"revoked":      {check(bad.Leaf, der), "certificate revoked"},
		"without list": {check(good.Leaf, nil), "unable to get certificate CRL"},
		"stale":        {check(good.Leaf, sign(t, stale, pki.Factory.Certificate(), pki.FactoryKey)), "CRL has expired"},
		"other issuer": {check(good.Leaf, sign(t, l, pki.Operational.Certificate(), pki.OperationalKey)), "unable to get certificate CRL"},
	} {
		if !strings.Contains(c.out, c.want) {
			t.Errorf("%s: openssl says %q, want %q", name, c.out, c.want)
		}
	}
}

func FuzzReadList(f *testing.F) {
	pki := certtest.New(f)
	der := sign(f, list(1, revocation.Entry{Serial: big.NewInt(9), At: moment}), pki.Factory.Certificate(), pki.FactoryKey)
	f.Add(der)
	f.Add(der[:40])
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := revocation.ReadList(data, pki.Factory.Certificate())
		if err == nil && string(data) != string(der) {
			// Only what the CA has signed is read, and it has signed one list.
			if l.Number.Int64() != 1 || len(l.Entries) != 1 || l.Entries[0].Serial.Int64() != 9 {
				t.Errorf("a list that nobody signed was read: %+v", l)
			}
		}
	})
}

// A list of 100,000 entries is to be signed within a second.
func BenchmarkSignListOf100000(b *testing.B) {
	pki := certtest.New(b)
	l := list(1)
	for i := range 100_000 {
		serial := new(big.Int).Lsh(big.NewInt(int64(i+1)), 120)
		l.Entries = append(l.Entries, revocation.Entry{Serial: serial, At: moment, Reason: revocation.KeyCompromise})
	}
	for b.Loop() {
		if _, err := l.Sign(pki.Factory.Certificate(), pki.FactoryKey); err != nil {
			b.Fatal(err)
		}
	}
}
