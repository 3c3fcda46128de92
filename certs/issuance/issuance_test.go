package issuance_test

import (
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
)

const (
	domain = "fleet.example"
	day    = 24 * time.Hour
	year   = 365 * day
)

// start is when the PKI of these tests is made.
var start = time.Date(2030, 3, 1, 12, 0, 0, 0, time.UTC)

func at(moment time.Time) func() time.Time { return func() time.Time { return moment } }

// pki is a root with an issuer of each kind, all with the validity that is their profile's.
type pki struct {
	root, operational, factory *issuance.Issuer
	operationalKey, factoryKey crypto.Signer
}

func newPKI(t testing.TB) pki {
	t.Helper()
	var p pki
	rootKey := newKey(t, elliptic.P256())
	cert, err := issuance.NewRoot(domain, rootKey, 0, at(start))
	if err == nil {
		p.root, err = issuance.NewIssuer(cert, rootKey, at(start))
	}
	if err != nil {
		t.Fatal(err)
	}
	p.operational, p.operationalKey = newIssuer(t, p.root, issuance.CARequest{Kind: identity.KindOperational, Name: "hub", TrustDomain: domain})
	p.factory, p.factoryKey = newIssuer(t, p.root, issuance.CARequest{Kind: identity.KindFactory, Name: "bench-1", TrustDomain: domain})
	return p
}

func newIssuer(t testing.TB, root *issuance.Issuer, r issuance.CARequest) (*issuance.Issuer, crypto.Signer) {
	t.Helper()
	key := newKey(t, elliptic.P256())
	r.PublicKey = key.Public()
	cert, err := root.IssueCA(r)
	if err != nil {
		t.Fatal(err)
	}
	i, err := issuance.NewIssuer(cert, key, at(start))
	if err != nil {
		t.Fatal(err)
	}
	return i, key
}

// request asks for a certificate of that profile and role for a fresh key.
func request(t testing.TB, profile issuance.Profile, role identity.Role, id string) issuance.Request {
	t.Helper()
	return issuance.Request{
		Profile:   profile,
		Identity:  identity.Identity{TrustDomain: domain, Role: role, ID: id},
		PublicKey: newKey(t, elliptic.P256()).Public(),
	}
}

func TestLeafCertificatesSayWhatTheirProfileSays(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	client, server := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, c := range []struct {
		profile issuance.Profile
		issuer  *issuance.Issuer
		role    identity.Role
		usage   []x509.ExtKeyUsage
		valid   time.Duration
	}{
		{issuance.DeviceProfile(), p.factory, identity.RoleDevice, client, 10 * year},
		{issuance.ServiceProfile(), p.operational, identity.RoleService, client, year},
		{issuance.OperatorProfile(), p.operational, identity.RoleOperator, client, 90 * day},
		{issuance.ServerProfile(), p.operational, identity.RoleHub, server, year},
	} {
		t.Run(c.profile.String(), func(t *testing.T) {
			t.Parallel()
			r := request(t, c.profile, c.role, "name-7")
			r.Identity.OU, r.Identity.BoardSerial = []string{"pump"}, "100000004f2a"
			if c.role == identity.RoleHub {
				r.DNSNames, r.IPAddresses = []string{"hub.fleet.example"}, []net.IP{net.IPv4(10, 0, 0, 1).To4()}
			}
			cert, err := c.issuer.Issue(r)
			if err != nil {
				t.Fatal(err)
			}
			wantLeaf(t, cert, c.issuer, r)
			if !slices.Equal(cert.ExtKeyUsage, c.usage) || len(cert.UnknownExtKeyUsage) > 0 {
				t.Errorf("extended key usage %v, want %v", cert.ExtKeyUsage, c.usage)
			}
			if !cert.NotBefore.Equal(start.Add(-5*time.Minute)) || !cert.NotAfter.Equal(start.Add(c.valid)) {
				t.Errorf("valid from %s to %s", cert.NotBefore, cert.NotAfter)
			}
		})
	}
}

// wantLeaf checks the fields that the certificates of all roles share.
func wantLeaf(t *testing.T, cert *x509.Certificate, issuer *issuance.Issuer, r issuance.Request) {
	t.Helper()
	id, err := identity.FromCertificate(cert)
	if err != nil || id.String() != r.Identity.String() || !slices.Equal(id.OU, r.Identity.OU) || id.BoardSerial != r.Identity.BoardSerial {
		t.Errorf("it names %+v, %v", id, err)
	}
	if cert.Version != 3 || cert.SignatureAlgorithm != x509.ECDSAWithSHA256 || cert.CheckSignatureFrom(issuer.Certificate()) != nil {
		t.Errorf("version %d, %s, not signed by %s", cert.Version, cert.SignatureAlgorithm, issuer.Certificate().Subject)
	}
	if cert.IsCA || cert.BasicConstraintsValid == (id.Role == identity.RoleHub) || cert.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("CA %t (%t), key usage %b", cert.IsCA, cert.BasicConstraintsValid, cert.KeyUsage)
	}
	if cert.SerialNumber.Sign() <= 0 || len(cert.SerialNumber.Bytes()) != 16 {
		t.Errorf("serial number %x", cert.SerialNumber)
	}
	if string(cert.AuthorityKeyId) != string(issuer.Certificate().SubjectKeyId) || len(cert.AuthorityKeyId) == 0 {
		t.Errorf("authority key identifier %x", cert.AuthorityKeyId)
	}
	if !slices.Equal(cert.DNSNames, r.DNSNames) || !slices.EqualFunc(cert.IPAddresses, r.IPAddresses, net.IP.Equal) || len(cert.EmailAddresses) > 0 {
		t.Errorf("names %q %v %q", cert.DNSNames, cert.IPAddresses, cert.EmailAddresses)
	}
	for _, e := range cert.Extensions {
		if mustBeCritical := e.Id.String() == "2.5.29.15" || e.Id.String() == "2.5.29.19"; e.Critical != mustBeCritical {
			t.Errorf("extension %s is critical: %t", e.Id, e.Critical)
		}
	}
	if !publicKeysEqual(cert.PublicKey, r.PublicKey) {
		t.Error("it has another key than was asked for")
	}
}

func TestCACertificatesSayWhatTheirKindSays(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	anyIP := func(c *x509.Certificate) (masks []string) {
		for _, n := range c.ExcludedIPRanges {
			masks = append(masks, n.String())
		}
		return masks
	}
	for _, c := range []struct {
		issuer      *issuance.Issuer
		kind        identity.IssuerKind
		name        string
		pathLength  int
		usage       []x509.ExtKeyUsage
		permitted   []string
		excludedDNS []string
		excludedIP  []string
		valid       time.Duration
	}{
		{p.root, identity.KindRoot, domain, 1, nil, nil, nil, nil, 25 * year},
		{p.operational, identity.KindOperational, "hub", 0, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, []string{domain}, nil, nil, 5 * year},
		{p.factory, identity.KindFactory, "bench-1", 0, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, []string{domain}, nil, []string{"0.0.0.0/0", "::/0"}, 90 * day},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			t.Parallel()
			cert := c.issuer.Certificate()
			kind, err := identity.KindOf(cert)
			if err != nil || kind != c.kind || c.issuer.Kind() != c.kind {
				t.Errorf("it is a %s, %v", kind, err)
			}
			if want := "CN=" + c.name + ",OU=" + string(c.kind); cert.Subject.String() != want {
				t.Errorf("subject %s, want %s", cert.Subject, want)
			}
			if !cert.IsCA || cert.MaxPathLen != c.pathLength || cert.MaxPathLenZero != (c.pathLength == 0) {
				t.Errorf("CA %t, path length %d (%t)", cert.IsCA, cert.MaxPathLen, cert.MaxPathLenZero)
			}
			if cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign|x509.KeyUsageDigitalSignature || !slices.Equal(cert.ExtKeyUsage, c.usage) {
				t.Errorf("key usage %b, extended %v", cert.KeyUsage, cert.ExtKeyUsage)
			}
			if !slices.Equal(cert.PermittedURIDomains, c.permitted) || cert.PermittedDNSDomainsCritical != (c.permitted != nil) ||
				!slices.Equal(cert.ExcludedDNSDomains, c.excludedDNS) || !slices.Equal(anyIP(cert), c.excludedIP) {
				t.Errorf("constraints: URI %q (critical %t), DNS not %q, IP not %q", cert.PermittedURIDomains, cert.PermittedDNSDomainsCritical, cert.ExcludedDNSDomains, anyIP(cert))
			}
			if len(cert.SubjectKeyId) == 0 || len(cert.URIs)+len(cert.DNSNames) > 0 || len(cert.SerialNumber.Bytes()) != 16 {
				t.Errorf("key identifier %x, names %v %q, serial number %x", cert.SubjectKeyId, cert.URIs, cert.DNSNames, cert.SerialNumber)
			}
			if !cert.NotAfter.Equal(start.Add(c.valid)) || cert.CheckSignatureFrom(p.root.Certificate()) != nil {
				t.Errorf("valid to %s, signed by the root: %v", cert.NotAfter, cert.CheckSignatureFrom(p.root.Certificate()))
			}
			if id, err := identity.FromCertificate(cert); err == nil {
				t.Errorf("a CA names %s", id)
			}
		})
	}
}

func TestIssuerSignsNothingOutsideItsAuthority(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	issuers := map[string]*issuance.Issuer{"root": p.root, "operational": p.operational, "factory": p.factory}
	allowed := map[string]bool{
		"factory/device": true, "operational/device": true, "operational/service": true, "operational/operator": true, "operational/hub": true,
	}
	profiles := map[identity.Role]issuance.Profile{
		identity.RoleDevice: issuance.DeviceProfile(), identity.RoleService: issuance.ServiceProfile(),
		identity.RoleOperator: issuance.OperatorProfile(), identity.RoleHub: issuance.ServerProfile(),
	}
	for name, issuer := range issuers {
		for role, profile := range profiles {
			cert, err := issuer.Issue(request(t, profile, role, "a"))
			if (err == nil) != allowed[name+"/"+string(role)] {
				t.Errorf("%s issues a %s: %v", name, role, err)
			}
			if err != nil && (!errors.Is(err, issuance.ErrAuthority) || cert != nil) {
				t.Errorf("%s issues a %s: %v; want ErrAuthority", name, role, err)
			}
		}
		_, err := issuer.IssueCA(issuance.CARequest{Kind: identity.KindFactory, Name: "bench-2", TrustDomain: domain, PublicKey: newKey(t, elliptic.P256()).Public()})
		if name == "root" && err != nil || name != "root" && !errors.Is(err, issuance.ErrAuthority) {
			t.Errorf("%s issues a CA: %v", name, err)
		}
	}
}

func TestContradictoryRequestsAreRefused(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	for name, change := range map[string]func(*issuance.Request){
		"profile of another role": func(r *issuance.Request) { r.Profile = issuance.OperatorProfile() },
		"zero profile":            func(r *issuance.Request) { r.Profile = issuance.Profile{} },
		"a CA's profile":          func(r *issuance.Request) { r.Profile = issuance.OperationalIssuerProfile() },
		"no identity":             func(r *issuance.Request) { r.Identity = identity.Identity{} },
		"bad ID":                  func(r *issuance.Request) { r.Identity.ID = "../a" },
		"bad role":                func(r *issuance.Request) { r.Identity.Role = "admin" },
		"bad trust domain":        func(r *issuance.Request) { r.Identity.TrustDomain = "Fleet.example" },
		"another trust domain":    func(r *issuance.Request) { r.Identity.TrustDomain = "other.example" },
		"a trust domain below":    func(r *issuance.Request) { r.Identity.TrustDomain = "evil.fleet.example" },
		"host names for a device": func(r *issuance.Request) { r.DNSNames = []string{"hub.fleet.example"} },
		"address for a device":    func(r *issuance.Request) { r.IPAddresses = []net.IP{{10, 0, 0, 1}} },
		"no key":                  func(r *issuance.Request) { r.PublicKey = nil },
		"RSA key":                 func(r *issuance.Request) { r.PublicKey = newRSAKey(t).Public() },
		"P-521 key":               func(r *issuance.Request) { r.PublicKey = newKey(t, elliptic.P521()).Public() },
		"serial number 0":         func(r *issuance.Request) { r.Serial = new(big.Int) },
		"negative serial number":  func(r *issuance.Request) { r.Serial = big.NewInt(-1) },
		"serial of 21 octets":     func(r *issuance.Request) { r.Serial = new(big.Int).Lsh(big.NewInt(1), 159) },
		"negative lifetime":       func(r *issuance.Request) { r.Valid = -time.Second },
	} {
		r := request(t, issuance.DeviceProfile(), identity.RoleDevice, "a")
		change(&r)
		if cert, err := p.operational.Issue(r); err == nil || cert != nil {
			t.Errorf("%s: a certificate was issued: %v", name, cert.Subject)
		} else if strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("%s: %q is no sentence", name, err)
		}
	}
	good := issuance.CARequest{Kind: identity.KindFactory, Name: "bench-2", TrustDomain: domain, PublicKey: newKey(t, elliptic.P256()).Public()}
	for name, change := range map[string]func(*issuance.CARequest){
		"kind root":         func(r *issuance.CARequest) { r.Kind = identity.KindRoot },
		"no kind":           func(r *issuance.CARequest) { r.Kind = "" },
		"bad name":          func(r *issuance.CARequest) { r.Name = "bench 2" },
		"bad trust domain":  func(r *issuance.CARequest) { r.TrustDomain = "" },
		"IP trust domain":   func(r *issuance.CARequest) { r.TrustDomain = "10.0.0.1" },
		"RSA key":           func(r *issuance.CARequest) { r.PublicKey = newRSAKey(t).Public() },
		"negative lifetime": func(r *issuance.CARequest) { r.Valid = -time.Second },
	} {
		r := good
		change(&r)
		if cert, err := p.root.IssueCA(r); err == nil {
			t.Errorf("%s: a CA was issued: %v", name, cert.Subject)
		}
	}
	if _, err := issuance.NewRoot("10.0.0.1", newKey(t, elliptic.P256()), 0, nil); err == nil {
		t.Error("a root for an IP address was made")
	}
	if _, err := issuance.NewRoot(domain, newKey(t, elliptic.P224()), 0, nil); !errors.Is(err, issuance.ErrKey) {
		t.Errorf("a root with a P-224 key: %v", err)
	}
}

func TestReservedSerialNumberIsUsed(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	r := request(t, issuance.DeviceProfile(), identity.RoleDevice, "a")
	serial, err := issuance.NewSerial()
	if err != nil {
		t.Fatal(err)
	}
	r.Serial = serial
	cert, err := p.factory.Issue(r)
	if err != nil || cert.SerialNumber.Cmp(serial) != 0 {
		t.Errorf("serial number %x, %v; want %x", cert.SerialNumber, err, serial)
	}
}

func TestIssuerNeedsACACertificateAndItsKey(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	if _, err := issuance.NewIssuer(p.factory.Certificate(), p.operationalKey, nil); err == nil {
		t.Error("an issuer with another's key was made")
	}
	key := newKey(t, elliptic.P256())
	r := request(t, issuance.DeviceProfile(), identity.RoleDevice, "a")
	r.PublicKey = key.Public()
	leaf, err := p.factory.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := issuance.NewIssuer(leaf, key, nil); err == nil {
		t.Error("a device became an issuer")
	}
}

func TestLifetimes(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	factoryEnd, operationalEnd := start.Add(90*day), start.Add(5*year)
	begin := p.factory.Certificate().NotBefore
	for _, c := range []struct {
		name                string
		issuer              *issuance.Issuer
		profile             issuance.Profile
		role                identity.Role
		now                 time.Time
		valid               time.Duration
		notBefore, notAfter time.Time // zero: refused
	}{
		{"the profile's own", p.factory, issuance.DeviceProfile(), identity.RoleDevice, start, 0, begin, start.Add(10 * year)},
		{"as asked for", p.operational, issuance.OperatorProfile(), identity.RoleOperator, start.Add(day), time.Hour, start.Add(day - 5*time.Minute), start.Add(day + time.Hour)},
		{"the profile's maximum", p.operational, issuance.OperatorProfile(), identity.RoleOperator, start, 20 * year, begin, start.Add(year)},
		{"a board outlives its factory issuer", p.factory, issuance.DeviceProfile(), identity.RoleDevice, factoryEnd, 0, factoryEnd.Add(-5 * time.Minute), factoryEnd.Add(10 * year)},
		{"a board does not outlive an operational issuer", p.operational, issuance.DeviceProfile(), identity.RoleDevice, start, 0, begin, operationalEnd},
		{"a service does not outlive its issuer", p.operational, issuance.ServiceProfile(), identity.RoleService, operationalEnd.Add(-time.Hour), 0, operationalEnd.Add(-65 * time.Minute), operationalEnd},
		{"not backdated before its issuer", p.factory, issuance.DeviceProfile(), identity.RoleDevice, begin.Add(time.Minute), day, begin, begin.Add(day + time.Minute)},
		{"factory issuer at an end", p.factory, issuance.DeviceProfile(), identity.RoleDevice, factoryEnd.Add(time.Second), 0, time.Time{}, time.Time{}},
		{"operational issuer at an end", p.operational, issuance.ServiceProfile(), identity.RoleService, operationalEnd.Add(time.Second), 0, time.Time{}, time.Time{}},
		{"issuer not begun", p.factory, issuance.DeviceProfile(), identity.RoleDevice, begin.Add(-time.Second), 0, time.Time{}, time.Time{}},
	} {
		r := request(t, c.profile, c.role, "a")
		r.Valid = c.valid
		cert, err := c.issuer.At(at(c.now)).Issue(r)
		switch {
		case c.notAfter.IsZero():
			if !errors.Is(err, issuance.ErrAuthority) || !strings.Contains(err.Error(), "set the clock or renew the issuer") {
				t.Errorf("%s: %v; want ErrAuthority and what to do", c.name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case !cert.NotBefore.Equal(c.notBefore) || !cert.NotAfter.Equal(c.notAfter):
			t.Errorf("%s: valid from %s to %s, want %s to %s", c.name, cert.NotBefore, cert.NotAfter, c.notBefore, c.notAfter)
		}
	}
}

func TestIssuingCADoesNotOutliveTheRoot(t *testing.T) {
	t.Parallel()
	key := newKey(t, elliptic.P256())
	cert, err := issuance.NewRoot(domain, key, year, at(start))
	if err != nil {
		t.Fatal(err)
	}
	root, err := issuance.NewIssuer(cert, key, at(start))
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []identity.IssuerKind{identity.KindOperational, identity.KindFactory} {
		ca, _ := newIssuer(t, root, issuance.CARequest{Kind: kind, Name: "a", TrustDomain: domain, Valid: 2 * year})
		if end := ca.Certificate().NotAfter; !end.Equal(start.Add(year)) {
			t.Errorf("the %s is valid to %s, the root to %s", kind, end, cert.NotAfter)
		}
	}
}
