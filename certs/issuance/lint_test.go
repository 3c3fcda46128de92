package issuance_test

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
)

// TestLinterFindsNoErrorInAnyCertificate has zlint look at every kind of certificate that
// is issued, with all that it may have in it.
func TestLinterFindsNoErrorInAnyCertificate(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	budgeted, _ := newIssuer(t, p.root, issuance.CARequest{Kind: identity.KindFactory, Name: "bench-2", TrustDomain: domain, MaxDevices: 500})
	publishing := p.operational.Publishing(issuance.Publication{List: "http://hub.fleet.example/crl/x.crl", OCSP: "http://hub.fleet.example/ocsp"})
	certs := map[string]*x509.Certificate{
		"root": p.root.Certificate(), "operational CA": p.operational.Certificate(),
		"factory CA": p.factory.Certificate(), "factory CA with a budget": budgeted.Certificate(),
	}
	for name, c := range map[string]struct {
		issuer  *issuance.Issuer
		profile issuance.Profile
		role    identity.Role
		change  func(*issuance.Request)
	}{
		"device": {p.factory, issuance.DeviceProfile(), identity.RoleDevice, nil},
		"device with OU and board serial": {p.factory, issuance.DeviceProfile(), identity.RoleDevice, func(r *issuance.Request) {
			r.Identity.OU, r.Identity.BoardSerial = []string{"pump", "weather"}, "10000000abcdef"
		}},
		"device with a TPM": {p.factory, issuance.DeviceProfile(), identity.RoleDevice, func(r *issuance.Request) { r.Protection = identity.ProtectionTPM }},
		"device on P-384": {p.factory, issuance.DeviceProfile(), identity.RoleDevice, func(r *issuance.Request) {
			r.PublicKey = newKey(t, elliptic.P384()).Public()
		}},
		"device of the longest ID": {p.factory, issuance.DeviceProfile(), identity.RoleDevice, func(r *issuance.Request) {
			r.Identity.ID = "a.2345678901234567890123456789012345678901234567890123456789.Z-_"
		}},
		"renewed device":            {p.operational, issuance.DeviceProfile(), identity.RoleDevice, nil},
		"renewed device with a TPM": {publishing, issuance.DeviceProfile(), identity.RoleDevice, func(r *issuance.Request) { r.Protection = identity.ProtectionTPM }},
		"service":                   {p.operational, issuance.ServiceProfile(), identity.RoleService, nil},
		"service with places":       {publishing, issuance.ServiceProfile(), identity.RoleService, nil},
		"operator":                  {p.operational, issuance.OperatorProfile(), identity.RoleOperator, func(r *issuance.Request) { r.Identity.OU = []string{"admin"} }},
		"station":                   {p.operational, issuance.StationProfile(), identity.RoleStation, nil},
		"server": {publishing, issuance.ServerProfile(), identity.RoleHub, func(r *issuance.Request) {
			r.DNSNames, r.IPAddresses = []string{"hub.fleet.example", "localhost"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
		}},
	} {
		r := request(t, c.profile, c.role, "name-7")
		if c.change != nil {
			c.change(&r)
		}
		cert, err := c.issuer.Issue(r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		certs[name] = cert
	}
	responder, err := p.operational.IssueResponder(newKey(t, elliptic.P256()).Public())
	if err != nil {
		t.Fatal(err)
	}
	certs["responder"] = responder
	// One that nobody should issue: a CA by its key usage and none by its constraints.
	key := newKey(t, elliptic.P256())
	wrong := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "x"}, NotBefore: start, NotAfter: start.Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, wrong, wrong, key.Public(), key)
	if err == nil {
		certs["wrong"], err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	found := certtest.Lint(t, certs)
	for name, errors := range found {
		if name != "wrong" {
			t.Errorf("%s: %q", name, errors)
		}
	}
	if len(found["wrong"]) == 0 {
		t.Error("the linter finds nothing wrong with anything")
	}
}
