package revocation_test

import (
	"crypto/x509"
	"math/big"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/revocation"
)

// names are RFC 5280 §5.3.1's, with its numbers.
var names = map[string]int{
	"unspecified": 0, "keyCompromise": 1, "cACompromise": 2, "affiliationChanged": 3, "superseded": 4,
	"cessationOfOperation": 5, "privilegeWithdrawn": 9, "aACompromise": 10,
}

func TestReasonsAreTheRFCsWordsAndNumbers(t *testing.T) {
	t.Parallel()
	for name, number := range names {
		for _, spelling := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			r, err := revocation.ParseReason(spelling)
			if err != nil || int(r) != number || r.String() != name {
				t.Errorf("ParseReason(%q) = %d (%s), %v; want %d (%s)", spelling, int(r), r, err, number, name)
			}
		}
	}
	var zero revocation.Reason
	if zero.String() != "unspecified" {
		t.Errorf("the zero reason is %s", zero)
	}
}

func TestUnknownReasonIsRefusedWithTheKnownOnes(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "stolen", "key-compromise", " keyCompromise", "1", "removeFromCRL", "certificateHold", strings.Repeat("x", 1<<20)} {
		r, err := revocation.ParseReason(name)
		if err == nil {
			t.Errorf("ParseReason(%.20q) = %s", name, r)
			continue
		}
		for known := range names {
			if !strings.Contains(err.Error(), known) || len(err.Error()) > 300 {
				t.Errorf("ParseReason(%.20q): %.300v; want a line that names %s", name, err, known)
			}
		}
	}
	if s := revocation.Reason(8).String(); s != "reason(8)" {
		t.Errorf("a number that is no reason of ours prints as %s", s)
	}
}

func certificate(authority string, serial int64) *x509.Certificate {
	return &x509.Certificate{AuthorityKeyId: []byte(authority), SerialNumber: big.NewInt(serial)}
}

func TestEmptySetHoldsNothing(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]*revocation.Set{"nil": nil, "zero": {}, "with nothing": (&revocation.Set{}).With(revocation.KeyCompromise)} {
		if r, found := set.Lookup(certificate("a", 1)); found || set.Len() != 0 {
			t.Errorf("the %s set holds %s and has length %d", name, r, set.Len())
		}
	}
}

func TestSetTellsIssuersAndSerialsApart(t *testing.T) {
	t.Parallel()
	var none *revocation.Set
	set := none.With(revocation.KeyCompromise, certificate("a", 1), certificate("b", 2))
	for _, c := range []struct {
		authority string
		serial    int64
		revoked   bool
	}{
		{"a", 1, true},
		{"b", 2, true},
		{"a", 2, false},
		{"b", 1, false},
		{"", 1, false},
		{"a", 257, false}, // 0x0101
	} {
		r, revoked := set.Lookup(certificate(c.authority, c.serial))
		if revoked != c.revoked || revoked && r != revocation.KeyCompromise {
			t.Errorf("issuer %q, serial %d: revoked %t for %s", c.authority, c.serial, revoked, r)
		}
	}
}

func TestSetNeverChanges(t *testing.T) {
	t.Parallel()
	before := (&revocation.Set{}).With(revocation.Superseded, certificate("a", 1))
	after := before.With(revocation.KeyCompromise, certificate("a", 2), certificate("a", 2))
	if _, found := before.Lookup(certificate("a", 2)); found || before.Len() != 1 || after.Len() != 2 {
		t.Errorf("With changed its receiver: %t, %d, %d", found, before.Len(), after.Len())
	}
}

func TestRevocationKeepsItsFirstReason(t *testing.T) {
	t.Parallel()
	set := (&revocation.Set{}).With(revocation.KeyCompromise, certificate("a", 1)).With(revocation.Unspecified, certificate("a", 1))
	if r, found := set.Lookup(certificate("a", 1)); !found || r != revocation.KeyCompromise || set.Len() != 1 {
		t.Errorf("revoked twice: %s, %t, %d", r, found, set.Len())
	}
}
