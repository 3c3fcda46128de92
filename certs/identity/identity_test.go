package identity_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/identity"
)

// roles are the five, as DESIGN.md §2 names them.
var roles = []identity.Role{identity.RoleDevice, identity.RoleService, identity.RoleOperator, identity.RoleStation, identity.RoleHub}

func TestIDsAreSafeInTopicsFilesAndURIs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		id   string
		good bool
	}{
		{"a", true},
		{"7", true},
		{"sim-00001", true},
		{"Board_7.rev-B", true},
		{"a..b", true},
		{"a-", true},
		{strings.Repeat("x", 64), true},
		{"", false},
		{strings.Repeat("x", 65), false},
		{".", false},
		{"..", false},
		{"..a", false},
		{".hidden", false},
		{"-flag", false},
		{"_a", false},
		{"a/b", false},
		{`a\b`, false},
		{"a b", false},
		{" a", false},
		{"a\n", false},
		{"a\x00", false},
		{"+", false},
		{"a#", false},
		{"a+", false},
		{"$SYS", false},
		{"a:b", false}, // a service's client identifier puts the colon after its ID
		{"a%2fb", false},
		{"ä", false},
		{"\u0430", false}, // Cyrillic, looks like a
		{"\xff", false},
	} {
		err := identity.ValidID(c.id)
		if (err == nil) != c.good {
			t.Errorf("ValidID(%q) = %v, want good: %t", c.id, err, c.good)
		}
		if err != nil && !errors.Is(err, identity.ErrInvalid) {
			t.Errorf("ValidID(%q) = %v, which is no ErrInvalid", c.id, err)
		}
	}
}

func TestTrustDomainsAreLowerCaseHostNames(t *testing.T) {
	t.Parallel()
	label := strings.Repeat("a", 63)
	for _, c := range []struct {
		domain string
		good   bool
	}{
		{"fleet.example", true},
		{"fleet", true},
		{"x9.fleet-7.example", true},
		{"1.example", true},
		{label + ".example", true},
		{strings.Repeat(label+".", 3) + strings.Repeat("a", 61), true}, // 253 characters
		{strings.Repeat(label+".", 3) + strings.Repeat("a", 62), false},
		{label + "a.example", false},
		{"", false},
		{".", false},
		{".example", false},
		{"example.", false},
		{"a..b", false},
		{"-a.example", false},
		{"a-.example", false},
		{"Fleet.example", false},
		{"fleet_1.example", false}, // SPIFFE allows it, name constraints don't
		{"*.example", false},
		{"fleet.example:8443", false},
		{"user@fleet.example", false},
		{"fleet.example/x", false},
		{"fleet example", false},
		{"flött.example", false},
		{"[::1]", false},
		{"10.0.0.1", false}, // a constraint on a URI with an address never matches
		{"999.0.0.1", true}, // is no address
	} {
		if err := identity.ValidTrustDomain(c.domain); (err == nil) != c.good {
			t.Errorf("ValidTrustDomain(%q) = %v, want good: %t", c.domain, err, c.good)
		} else if err != nil && !errors.Is(err, identity.ErrInvalid) {
			t.Errorf("ValidTrustDomain(%q) = %v, which is no ErrInvalid", c.domain, err)
		}
	}
}

func TestNewRefusesUnknownRoles(t *testing.T) {
	t.Parallel()
	for _, role := range []identity.Role{"", "Device", "admin", "device/x", "*"} {
		if role.Valid() {
			t.Errorf("role %q is valid", role)
		}
		if id, err := identity.New("fleet.example", role, "a"); !errors.Is(err, identity.ErrInvalid) {
			t.Errorf("New with role %q = %v, %v; want ErrInvalid", role, id, err)
		}
	}
}

func TestSPIFFEIDsRoundTrip(t *testing.T) {
	t.Parallel()
	for _, role := range roles {
		for _, id := range []string{"a", "Board_7.rev-B", strings.Repeat("9", 64)} {
			want, err := identity.New("fleet.example", role, id)
			if err != nil {
				t.Fatal(err)
			}
			if s := want.String(); s != "spiffe://fleet.example/"+string(role)+"/"+id || want.URI().String() != s {
				t.Errorf("String() = %s, URI() = %s", s, want.URI())
			}
			got, err := identity.Parse(want.String())
			if err != nil || got.TrustDomain != want.TrustDomain || got.Role != role || got.ID != id {
				t.Errorf("Parse(%s) = %+v, %v", want, got, err)
			}
		}
	}
}

// A SPIFFE ID has one spelling: two that differ are two identities, or no identity.
func TestParseRefusesOtherSpellings(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"",
		"spiffe://",
		"spiffe:///device/a",
		"spiffe://fleet.example",
		"spiffe://fleet.example/",
		"spiffe://fleet.example/device",
		"spiffe://fleet.example/device/",
		"spiffe://fleet.example/device/a/",
		"spiffe://fleet.example/device/a/b",
		"spiffe://fleet.example//device/a",
		"spiffe://fleet.example/device/../operator/root",
		"spiffe://fleet.example/device/..",
		"spiffe://fleet.example/device/%61",
		"spiffe://fleet.example/device/a%2Fb",
		"spiffe://fleet.example/device/a?x=1",
		"spiffe://fleet.example/device/a?",
		"spiffe://fleet.example/device/a#",
		"spiffe://fleet.example:443/device/a",
		"spiffe://u@fleet.example/device/a",
		"spiffe://Fleet.example/device/a",
		"SPIFFE://fleet.example/device/a",
		"https://fleet.example/device/a",
		"//fleet.example/device/a",
		"spiffe://fleet.example/Device/a",
		"spiffe://fleet.example/root/a",
		" spiffe://fleet.example/device/a",
		"spiffe://fleet.example/device/a\n",
		"spiffe://fleet.example/device/a\x00",
	} {
		if id, err := identity.Parse(s); !errors.Is(err, identity.ErrInvalid) {
			t.Errorf("Parse(%q) = %v, %v; want ErrInvalid", s, id, err)
		}
	}
}

// What somebody sent must not fill the log.
func TestErrorsQuoteNoMoreThanALine(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("/", 1<<20)
	_, err := identity.Parse("spiffe://" + long)
	for _, err := range []error{err, identity.ValidID(strings.Repeat("é", 32)), identity.ValidID(long), identity.ValidTrustDomain(long)} {
		if err == nil || len(err.Error()) > 500 || strings.Contains(err.Error(), "\n") {
			t.Errorf("the error has %d bytes: %.300v", len(err.Error()), err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"spiffe://fleet.example/device/sim-00001",
		"spiffe://fleet.example/hub/hub",
		"spiffe://a/operator/..",
		"spiffe://10.0.0.1/service/a",
		"spiffe://fleet.example/device/a%2f",
		"spiffe://\xff/\x00/é",
	} {
		f.Add(s)
	}
	safe := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	f.Fuzz(func(t *testing.T, s string) {
		id, err := identity.Parse(s)
		if err != nil {
			if !errors.Is(err, identity.ErrInvalid) {
				t.Fatalf("Parse(%q) = %v, which is no ErrInvalid", s, err)
			}
			return
		}
		if id.String() != s || id.URI().String() != s {
			t.Errorf("Parse(%q) reads back as %s, %s", s, id, id.URI())
		}
		if !safe.MatchString(id.ID) || !id.Role.Valid() {
			t.Errorf("Parse(%q) = %+v", s, id)
		}
		if again, err := identity.New(id.TrustDomain, id.Role, id.ID); err != nil || again.String() != s {
			t.Errorf("New of what Parse(%q) returned: %v, %v", s, again, err)
		}
	})
}
