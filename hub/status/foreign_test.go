package status_test

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/status"
)

// shelf is a Foreign with its clock.
type shelf struct {
	*status.Foreign
	t   *testing.T
	pki *certtest.Fleet
	dir string
	now time.Time
}

func newShelf(t *testing.T) *shelf {
	s := &shelf{t: t, pki: certtest.New(t), dir: t.TempDir(), now: time.Now().UTC().Truncate(time.Second)}
	s.open()
	return s
}

func (s *shelf) open() {
	s.t.Helper()
	f, err := status.OpenForeign(status.ForeignConfig{
		Dir: s.dir, Issuers: func() []*x509.Certificate { return s.pki.Trust().Issuers }, Now: func() time.Time { return s.now },
		Own: func(c *x509.Certificate) bool { return c.Equal(s.pki.Operational.Certificate()) },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.Foreign = f
}

func (s *shelf) file() string {
	return filepath.Join(s.dir, status.KeyID(s.pki.Factory.Certificate())+".crl")
}

func (s *shelf) sign(number int64, issuer *x509.Certificate, key crypto.Signer, serials ...*big.Int) []byte {
	s.t.Helper()
	l := revocation.List{Number: big.NewInt(number), ThisUpdate: s.now, NextUpdate: s.now.Add(time.Hour)}
	for _, n := range serials {
		l.Entries = append(l.Entries, revocation.Entry{Serial: n, At: s.now, Reason: revocation.KeyCompromise})
	}
	der, err := l.Sign(issuer, key)
	if err != nil {
		s.t.Fatal(err)
	}
	return der
}

func (s *shelf) factory(number int64, serials ...*big.Int) []byte {
	return s.sign(number, s.pki.Factory.Certificate(), s.pki.FactoryKey, serials...)
}

func (s *shelf) holds(serial *big.Int, want bool, when string) {
	s.t.Helper()
	if _, got := s.Revoked(s.pki.Factory.Certificate(), serial); got != want {
		s.t.Errorf("%s: revoked %t, want %t", when, got, want)
	}
}

// problem is what is wrong with the factory's list, as operators see it.
func (s *shelf) problem(want string) {
	s.t.Helper()
	lists := s.Lists()
	if len(lists) != 1 || (want == "") != (lists[0].Problem == "") || !strings.Contains(lists[0].Problem, want) {
		s.t.Errorf("lists %+v, want one with the problem %q", lists, want)
	}
}

func TestForeignListIsTakenHot(t *testing.T) {
	s := newShelf(t)
	one, two := big.NewInt(1001), big.NewInt(1002)
	s.holds(one, false, "before")
	imported, err := s.Import(s.factory(1, one))
	if err != nil || len(imported.List.Entries) != 1 {
		t.Fatalf("%+v, %v", imported, err)
	}
	s.holds(one, true, "after")
	s.holds(two, false, "after")
	if _, other := s.Revoked(s.pki.Operational.Certificate(), one); other {
		t.Error("the list of one issuer revokes another's certificate")
	}
	imported, err = s.Import(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: s.factory(2, two)}))
	if err != nil || imported.Removed != 1 {
		t.Fatalf("%+v, %v", imported, err)
	}
	s.holds(two, true, "after the second")
	s.open()
	s.holds(two, true, "after a restart")
	s.problem("")
}

func TestForeignListThatMustNotBeTakenChangesNothing(t *testing.T) {
	s := newShelf(t)
	one, two := big.NewInt(1001), big.NewInt(1002)
	if _, err := s.Import(s.factory(7, one)); err != nil {
		t.Fatal(err)
	}
	foreign := s.pki.Foreign()
	untrusted, untrustedKey := s.pki.IssuingCA(identity.KindFactory, "bench-9")
	stale := revocation.List{Number: big.NewInt(9), ThisUpdate: s.now.Add(-2 * time.Hour), NextUpdate: s.now.Add(-time.Hour)}
	staleDER, err := stale.Sign(s.pki.Factory.Certificate(), s.pki.FactoryKey)
	if err != nil {
		t.Fatal(err)
	}
	refused := uint64(0)
	for name, c := range map[string]struct {
		der  []byte
		want error
	}{
		"by a stranger of the same name": {s.sign(9, foreign.Factory.Certificate(), foreign.FactoryKey, two), revocation.ErrIssuer},
		"by a CA that isn't trusted":     {s.sign(9, untrusted.Certificate(), untrustedKey, two), revocation.ErrIssuer},
		"of the hub's own CA":            {s.sign(9, s.pki.Operational.Certificate(), s.pki.OperationalKey, two), status.ErrOwn},
		"of an older number":             {s.factory(6, two), revocation.ErrOlder},
		"of the same number":             {s.factory(7, two), revocation.ErrOlder},
		"out of date":                    {staleDER, revocation.ErrStale},
		"that is none":                   {[]byte("x"), revocation.ErrMalformed},
	} {
		refused++
		if _, err := s.Import(c.der); !errors.Is(err, c.want) {
			t.Errorf("a list %s: %v, want %v", name, err, c.want)
		}
		s.holds(one, true, name)
		s.holds(two, false, name)
		if s.Refused() != refused {
			t.Errorf("a list %s: %d refusals counted, want %d", name, s.Refused(), refused)
		}
	}
	s.open()
	s.holds(one, true, "after a restart")
}

func TestListThatHasGrownOldStillRevokesAndAlarms(t *testing.T) {
	s := newShelf(t)
	one := big.NewInt(1001)
	if _, err := s.Import(s.factory(1, one)); err != nil {
		t.Fatal(err)
	}
	s.now = s.now.Add(48 * time.Hour)
	s.Check()
	s.holds(one, true, "out of date")
	s.problem("a newer list was due")
	s.open()
	s.holds(one, true, "out of date, after a restart")
	s.problem("a newer list was due")
	if _, err := s.Import(s.factory(2, one)); err != nil {
		t.Fatal(err)
	}
	s.problem("")
}

func TestListOnDiskThatIsNotTheAcceptedOneAlarms(t *testing.T) {
	one := big.NewInt(1001)
	for name, c := range map[string]struct {
		change func(*shelf)
		want   string
	}{
		"missing": {func(s *shelf) { os.Remove(s.file()) }, "missing from disk"},
		"damaged": {func(s *shelf) { os.WriteFile(s.file(), []byte("x"), 0o600) }, "import it again"},
		"older":   {func(s *shelf) { os.WriteFile(s.file(), s.factory(3), 0o600) }, "older"},
		"of another issuer": {func(s *shelf) {
			os.WriteFile(s.file(), s.sign(9, s.pki.Operational.Certificate(), s.pki.OperationalKey), 0o600)
		}, "not signed by this issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			der := s.factory(5, one)
			if _, err := s.Import(der); err != nil {
				t.Fatal(err)
			}
			c.change(s)
			s.holds(one, true, "in memory")
			s.open()
			s.problem(c.want)
			if _, err := s.Import(s.factory(4)); !errors.Is(err, revocation.ErrOlder) {
				t.Errorf("an older list in place of it: %v", err)
			}
			if _, err := s.Import(der); err != nil {
				t.Errorf("the same list again: %v", err)
			}
			s.holds(one, true, "imported again")
			s.problem("")
		})
	}
}
