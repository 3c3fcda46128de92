package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
)

// certificate signs template with a key of its own and reads the result back: what
// FromCertificate sees has been through the wire.
func certificate(t *testing.T, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(7), time.Now(), time.Now().Add(time.Hour)
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func uris(t *testing.T, raw ...string) []*url.URL {
	t.Helper()
	var all []*url.URL
	for _, r := range raw {
		u, err := url.Parse(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, u)
	}
	return all
}

func TestCertificateNamesItsBearer(t *testing.T) {
	t.Parallel()
	cert := certificate(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "board-7", OrganizationalUnit: []string{"pump", "rev-b"}, SerialNumber: "100000004f2a"},
		URIs:    uris(t, "spiffe://fleet.example/device/board-7"),
	})
	id, err := identity.FromCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	if id.String() != "spiffe://fleet.example/device/board-7" || id.BoardSerial != "100000004f2a" {
		t.Errorf("FromCertificate = %+v", id)
	}
	slices.Sort(id.OU) // in a SET they have no order
	if !slices.Equal(id.OU, []string{"pump", "rev-b"}) {
		t.Errorf("OU = %q", id.OU)
	}
	id.OU[0] = "changed"
	if slices.Contains(cert.Subject.OrganizationalUnit, "changed") {
		t.Error("the identity shares its OU with the certificate")
	}
}

func TestCertificateThatNamesNobodyClearlyIsRefused(t *testing.T) {
	t.Parallel()
	const good = "spiffe://fleet.example/device/a"
	cn := func(names ...string) (subject pkix.Name) {
		for _, n := range names {
			subject.ExtraNames = append(subject.ExtraNames, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: n})
		}
		return subject
	}
	for _, c := range []struct {
		name     string
		template x509.Certificate
		because  string
	}{
		{"no URI", x509.Certificate{Subject: cn("a"), DNSNames: []string{"a"}}, "0 URI names"},
		{"two URIs", x509.Certificate{Subject: cn("a"), URIs: uris(t, good, "spiffe://fleet.example/operator/a")}, "2 URI names"},
		{"the same URI twice", x509.Certificate{Subject: cn("a"), URIs: uris(t, good, good)}, "2 URI names"},
		{"foreign URI", x509.Certificate{Subject: cn("a"), URIs: uris(t, "https://fleet.example/device/a")}, "spiffe://"},
		{"URN", x509.Certificate{Subject: cn("a"), URIs: uris(t, "urn:uuid:6ba7b810-9dad-11d1-80b4-00c04fd430c8")}, "spiffe://"},
		{"escaped ID", x509.Certificate{Subject: cn("a"), URIs: uris(t, "spiffe://fleet.example/device/%61")}, "not allowed"},
		{"escaped slash", x509.Certificate{Subject: cn("a"), URIs: uris(t, "spiffe://fleet.example/device/x%2Fa")}, "not allowed"},
		{"further segment", x509.Certificate{Subject: cn("a"), URIs: uris(t, good+"/a")}, "is not spiffe://"},
		{"unknown role", x509.Certificate{Subject: cn("a"), URIs: uris(t, "spiffe://fleet.example/admin/a")}, "role"},
		{"common name of another", x509.Certificate{Subject: cn("b"), URIs: uris(t, good)}, "common name"},
		{"common name in another case", x509.Certificate{Subject: cn("A"), URIs: uris(t, good)}, "common name"},
		{"no common name", x509.Certificate{URIs: uris(t, good)}, "common name"},
		{"another common name first", x509.Certificate{Subject: cn("b", "a"), URIs: uris(t, good)}, "2 common names"},
		{"another common name last", x509.Certificate{Subject: cn("a", "b"), URIs: uris(t, good)}, "2 common names"},
		{"CA certificate", x509.Certificate{IsCA: true, Subject: cn("a"), URIs: uris(t, good)}, "CA certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			id, err := identity.FromCertificate(certificate(t, &c.template))
			if !errors.Is(err, identity.ErrInvalid) || !strings.Contains(err.Error(), c.because) {
				t.Errorf("FromCertificate = %v, %v; want ErrInvalid with %q", id, err, c.because)
			}
			if id.ID != "" || id.Role != "" {
				t.Errorf("a refused certificate names %+v", id)
			}
		})
	}
}

func TestIssuerKindIsReadFromACAsSubjectOnly(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ca   bool
		ou   []string
		want identity.IssuerKind // "": refused
	}{
		{true, []string{"root"}, identity.KindRoot},
		{true, []string{"factory"}, identity.KindFactory},
		{true, []string{"hub"}, identity.KindOperational},
		{false, []string{"hub"}, ""},
		{true, nil, ""},
		{true, []string{"Factory"}, ""},
		{true, []string{""}, ""},
		{true, []string{"factory", "hub"}, ""},
	} {
		cert := certificate(t, &x509.Certificate{IsCA: c.ca, Subject: pkix.Name{CommonName: "x", OrganizationalUnit: c.ou}})
		kind, err := identity.KindOf(cert)
		if kind != c.want || (err == nil) != (c.want != "") {
			t.Errorf("CA %t with OU %q is of kind %q, %v; want %q", c.ca, c.ou, kind, err, c.want)
		}
		if err != nil && !errors.Is(err, identity.ErrInvalid) {
			t.Errorf("KindOf = %v, which is no ErrInvalid", err)
		}
	}
}

func TestEachIssuerKindMayIssueItsRolesOnly(t *testing.T) {
	t.Parallel()
	for _, role := range append(slices.Clone(roles), "", "admin") {
		if got, want := identity.KindFactory.MayIssue(role), role == identity.RoleDevice; got != want {
			t.Errorf("a factory CA may issue %q: %t", role, got)
		}
		if got, want := identity.KindOperational.MayIssue(role), slices.Contains(roles, role); got != want {
			t.Errorf("an operational CA may issue %q: %t", role, got)
		}
		if identity.KindRoot.MayIssue(role) || identity.IssuerKind("").MayIssue(role) {
			t.Errorf("a root or a CA of no kind may issue %q", role)
		}
	}
}

func TestSerialNumbersAndFingerprintsAreLowerCaseHexOfWholeBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{1: "01", 0xab: "ab", 0xabc: "0abc", 0x100: "0100"} {
		if got := identity.SerialString(big.NewInt(n)); got != want {
			t.Errorf("SerialString(%#x) = %q, want %q", n, got, want)
		}
	}
	a, b := certificate(t, &x509.Certificate{}), certificate(t, &x509.Certificate{})
	fp := identity.Fingerprint(a)
	if len(fp) != 64 || fp != strings.ToLower(fp) || fp != identity.Fingerprint(a) || fp == identity.Fingerprint(b) {
		t.Errorf("fingerprint %q", fp)
	}
}
