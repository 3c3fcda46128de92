package issuance_test

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
)

func TestCertificateSaysThatATPMHasProvedTheKey(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	for _, c := range []struct {
		asked identity.Protection
		says  identity.Protection
	}{
		{identity.ProtectionTPM, identity.ProtectionTPM},
		{identity.ProtectionUnproven, identity.ProtectionUnproven},
		{"", identity.ProtectionUnproven},
		{"TPM", identity.ProtectionUnproven},
	} {
		r := request(t, issuance.DeviceProfile(), identity.RoleDevice, "board-7")
		r.Protection = c.asked
		cert, err := p.factory.Issue(r)
		if err != nil {
			t.Fatal(err)
		}
		if says := identity.ProtectionOf(cert); says != c.says {
			t.Errorf("asked for %q, it says %q", c.asked, says)
		}
		if got := len(cert.Policies); (got == 1) != (c.says == identity.ProtectionTPM) {
			t.Errorf("asked for %q: %d policies", c.asked, got)
		}
		if cert.IsCA {
			t.Error("it is a CA")
		}
		v := verify(t, p.root.Certificate(), start.Add(time.Hour), x509.ExtKeyUsageClientAuth, cert, p.factory.Certificate())
		if v.golang != nil || v.openssl != nil {
			t.Errorf("asked for %q: Go says %v, OpenSSL %s", c.asked, v.golang, v.text)
		}
	}
}

func TestOnlyDevicesCertificatesSayWhereTheirKeyIs(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	for role, profile := range map[identity.Role]issuance.Profile{
		identity.RoleService: issuance.ServiceProfile(), identity.RoleOperator: issuance.OperatorProfile(),
		identity.RoleStation: issuance.StationProfile(), identity.RoleHub: issuance.ServerProfile(),
	} {
		r := request(t, profile, role, "name-7")
		r.Protection = identity.ProtectionTPM
		if cert, err := p.operational.Issue(r); err == nil {
			t.Errorf("%s: %v", role, cert.Policies)
		}
	}
}

// What a device asks for in its request is what it would like, and no proof of anything.
func TestPolicyInARequestDoesNotReachTheCertificate(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	value, err := asn1.Marshal([]struct{ ID asn1.ObjectIdentifier }{{identity.TPMPolicy()}})
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t, elliptic.P256())
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:         pkix.Name{CommonName: "board-7"},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 32}, Value: value}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := issuance.ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	r := request(t, issuance.DeviceProfile(), identity.RoleDevice, "board-7")
	r.PublicKey = csr.PublicKey
	cert, err := p.factory.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	if identity.ProtectionOf(cert) != identity.ProtectionUnproven {
		t.Error("the certificate says what the request asked for")
	}
}

// Every octet of a certificate is paid for in each full handshake: see hub/server's
// TestConnectStaysInItsByteBudget for the sum. The sixth is that of a length beyond 255.
func TestProofOfProtectionCosts6OctetsAtMost(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	size := func(proved identity.Protection) int {
		r := request(t, issuance.DeviceProfile(), identity.RoleDevice, "board-7")
		r.Protection = proved
		cert, err := p.factory.Issue(r)
		if err != nil {
			t.Fatal(err)
		}
		return len(cert.RawTBSCertificate)
	}
	if more := size(identity.ProtectionTPM) - size(""); more > 6 {
		t.Errorf("%d octets more", more)
	}
}
