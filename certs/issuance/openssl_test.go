package issuance_test

import (
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// openssl runs the openssl command, which must succeed, and returns what it prints.
func openssl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := tryOpenssl(t, args...)
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func tryOpenssl(t testing.TB, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatalf("%v; install the Debian package openssl", err)
	}
	out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput()
	return string(out), err
}

// verdict is what the two verifiers say about a certificate, at one moment and for one
// purpose: a nil error is a good certificate.
type verdict struct {
	golang, openssl error
	text            string // openssl's words
}

// verify has crypto/x509 and openssl build the chain from leaf through the intermediates to the root.
func verify(t testing.TB, root *x509.Certificate, moment time.Time, usage x509.ExtKeyUsage, leaf *x509.Certificate, intermediates ...*x509.Certificate) verdict {
	t.Helper()
	var v verdict
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, c := range intermediates {
		others.AddCert(c)
	}
	_, v.golang = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, CurrentTime: moment, KeyUsages: []x509.ExtKeyUsage{usage}})

	dir := t.TempDir()
	file := func(name string, certs ...*x509.Certificate) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pemfile.EncodeCertificates(certs...), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	purpose := map[x509.ExtKeyUsage]string{x509.ExtKeyUsageClientAuth: "sslclient", x509.ExtKeyUsageServerAuth: "sslserver"}[usage]
	v.text, v.openssl = tryOpenssl(t, "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-purpose", purpose,
		"-attime", big.NewInt(moment.Unix()).String(), "-CAfile", file("root.crt", root), "-untrusted", file("issuers.crt", intermediates...), file("leaf.crt", leaf))
	return v
}

func TestOpensslVerifiesEveryProfile(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	for _, c := range []struct {
		profile issuance.Profile
		role    identity.Role
		issuer  *issuance.Issuer
		usage   x509.ExtKeyUsage
		not     x509.ExtKeyUsage
		text    []string
	}{
		{issuance.DeviceProfile(), identity.RoleDevice, p.factory, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth,
			[]string{"URI:spiffe://fleet.example/device/name-7\n", "TLS Web Client Authentication\n", "CA:FALSE\n"}},
		{issuance.ServiceProfile(), identity.RoleService, p.operational, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth,
			[]string{"URI:spiffe://fleet.example/service/name-7\n", "TLS Web Client Authentication\n", "CA:FALSE\n"}},
		{issuance.OperatorProfile(), identity.RoleOperator, p.operational, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth,
			[]string{"URI:spiffe://fleet.example/operator/name-7\n", "TLS Web Client Authentication\n", "CA:FALSE\n"}},
		{issuance.ServerProfile(), identity.RoleHub, p.operational, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth,
			[]string{"DNS:hub.fleet.example, IP Address:10.0.0.1, URI:spiffe://fleet.example/hub/name-7\n", "TLS Web Server Authentication\n"}},
	} {
		t.Run(c.profile.String(), func(t *testing.T) {
			t.Parallel()
			r := request(t, c.profile, c.role, "name-7")
			r.Identity.OU = []string{"pump"}
			if c.role == identity.RoleHub {
				r.DNSNames, r.IPAddresses = []string{"hub.fleet.example"}, []net.IP{{10, 0, 0, 1}}
			}
			cert, err := c.issuer.Issue(r)
			if err != nil {
				t.Fatal(err)
			}
			if v := verify(t, p.root.Certificate(), start, c.usage, cert, c.issuer.Certificate()); v.golang != nil || v.openssl != nil {
				t.Errorf("Go says %v, openssl %v: %s", v.golang, v.openssl, v.text)
			}
			if v := verify(t, p.root.Certificate(), start, c.not, cert, c.issuer.Certificate()); v.golang == nil || v.openssl == nil {
				t.Errorf("it is good for the other side of TLS too: Go says %v, openssl %v", v.golang, v.openssl)
			}
			text := textOf(t, cert)
			for _, want := range append(c.text, "Version: 3 ", "X509v3 Key Usage: critical\n", "  Digital Signature\n", "NIST CURVE: P-256\n",
				"Signature Algorithm: ecdsa-with-SHA256\n", "CN = name-7") {
				if !strings.Contains(text, want) && !strings.Contains(text, strings.ReplaceAll(want, " = ", "=")) { // openssl 3.2 writes CN=name-7
					t.Errorf("openssl x509 -text doesn't have %q:\n%s", want, text)
				}
			}
		})
	}
}

func TestOpensslReadsTheCAsAsMeant(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	for _, c := range []struct {
		issuer *issuance.Issuer
		text   []string
		absent string
	}{
		{p.root, []string{"CA:TRUE, pathlen:1\n"}, "Extended Key Usage"},
		{p.operational, []string{"CA:TRUE, pathlen:0\n", "TLS Web Client Authentication, TLS Web Server Authentication\n", "X509v3 Name Constraints: critical\n", "URI:fleet.example\n"}, "Excluded"},
		{p.factory, []string{"CA:TRUE, pathlen:0\n", "TLS Web Client Authentication\n", "X509v3 Name Constraints: critical\n", "URI:fleet.example\n", "Excluded:\n", "IP:0.0.0.0/0.0.0.0\n"}, "Server"},
	} {
		text := textOf(t, c.issuer.Certificate())
		for _, want := range append(c.text, "X509v3 Basic Constraints: critical\n", "Digital Signature, Certificate Sign, CRL Sign\n", "X509v3 Subject Key Identifier: \n") {
			if !strings.Contains(text, want) {
				t.Errorf("openssl x509 -text of the %s doesn't have %q:\n%s", c.issuer.Kind(), want, text)
			}
		}
		if strings.Contains(text, c.absent) {
			t.Errorf("openssl x509 -text of the %s has %q:\n%s", c.issuer.Kind(), c.absent, text)
		}
	}
}

func textOf(t testing.TB, cert *x509.Certificate) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.crt")
	if err := os.WriteFile(path, pemfile.EncodeCertificates(cert), 0o600); err != nil {
		t.Fatal(err)
	}
	return openssl(t, "x509", "-noout", "-text", "-in", path)
}

// forge signs what Issue and IssueCA refuse to: whoever stole a CA's key is not held back by our code.
func forge(t testing.TB, by *issuance.Issuer, key crypto.Signer, template x509.Certificate) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	own := newKey(t, elliptic.P256())
	template.SerialNumber = big.NewInt(666)
	template.NotBefore, template.NotAfter = start, start.Add(day)
	template.BasicConstraintsValid = true
	template.KeyUsage |= x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, &template, by.Certificate(), own.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, own
}

func device(domain, id string) x509.Certificate {
	return x509.Certificate{
		Subject:     pkix.Name{CommonName: id},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: domain, Path: "/device/" + id}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

func TestStolenFactoryKeyMakesNoFurtherCA(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	for name, by := range map[string]struct {
		issuer *issuance.Issuer
		key    crypto.Signer
	}{"factory": {p.factory, p.factoryKey}, "operational": {p.operational, p.operationalKey}} {
		ca, caKey := forge(t, by.issuer, by.key, x509.Certificate{
			Subject: pkix.Name{CommonName: "bench-2", OrganizationalUnit: []string{string(identity.KindOperational)}},
			IsCA:    true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte("forged"),
		})
		below, err := issuance.NewIssuer(ca, caKey, at(start))
		if err != nil {
			t.Fatal(err)
		}
		leaf, _ := forge(t, below, caKey, device(domain, "a"))
		if v := verify(t, p.root.Certificate(), start, x509.ExtKeyUsageClientAuth, leaf, ca, by.issuer.Certificate()); v.golang == nil || v.openssl == nil || !strings.Contains(v.text, "path length constraint exceeded") {
			t.Errorf("a CA that the %s CA made: Go says %v, openssl %v: %s", name, v.golang, v.openssl, v.text)
		}
	}
}

func TestNameConstraintsHoldAStolenIssuerKeyToItsTrustDomain(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	with := func(template x509.Certificate, change func(*x509.Certificate)) x509.Certificate {
		change(&template)
		return template
	}
	server := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	for _, c := range []struct {
		name     string
		issuer   *issuance.Issuer
		key      crypto.Signer
		template x509.Certificate
		usage    x509.ExtKeyUsage
		good     bool
	}{
		{"its own trust domain", p.factory, p.factoryKey, device(domain, "a"), x509.ExtKeyUsageClientAuth, true},
		{"another trust domain, factory", p.factory, p.factoryKey, device("other.example", "a"), x509.ExtKeyUsageClientAuth, false},
		{"another trust domain, operational", p.operational, p.operationalKey, device("other.example", "a"), x509.ExtKeyUsageClientAuth, false},
		{"a trust domain with its name at the end", p.factory, p.factoryKey, device("notfleet.example", "a"), x509.ExtKeyUsageClientAuth, false},
		{"a trust domain with its name at the beginning", p.factory, p.factoryKey, device("fleet.example.org", "a"), x509.ExtKeyUsageClientAuth, false},
		{"an IP address for a trust domain", p.factory, p.factoryKey, device("10.0.0.1", "a"), x509.ExtKeyUsageClientAuth, false},
		{"both trust domains", p.factory, p.factoryKey, with(device(domain, "a"), func(c *x509.Certificate) {
			c.URIs = append(c.URIs, device("other.example", "a").URIs...)
		}), x509.ExtKeyUsageClientAuth, false},
		{"address by a factory", p.factory, p.factoryKey, with(device(domain, "a"), func(c *x509.Certificate) { c.IPAddresses = []net.IP{{10, 0, 0, 1}} }), x509.ExtKeyUsageClientAuth, false},
		{"IPv6 address by a factory", p.factory, p.factoryKey, with(device(domain, "a"), func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv6loopback} }), x509.ExtKeyUsageClientAuth, false},
		{"server by a factory", p.factory, p.factoryKey, with(device(domain, "a"), server), x509.ExtKeyUsageServerAuth, false},
		{"server with a host name by a factory", p.factory, p.factoryKey, with(device(domain, "a"), func(c *x509.Certificate) {
			server(c)
			c.DNSNames = []string{"hub.fleet.example"}
		}), x509.ExtKeyUsageServerAuth, false},
		{"server by the operational CA", p.operational, p.operationalKey, with(device(domain, "a"), server), x509.ExtKeyUsageServerAuth, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			leaf, _ := forge(t, c.issuer, c.key, c.template)
			if v := verify(t, p.root.Certificate(), start, c.usage, leaf, c.issuer.Certificate()); (v.golang == nil) != c.good || (v.openssl == nil) != c.good {
				t.Errorf("want good: %t; Go says %v, openssl %v: %s", c.good, v.golang, v.openssl, v.text)
			}
		})
	}
}

// Where a certificate has no host name, openssl takes a common name with a dot for one and holds it against the issuer's
// constraints on host names: so our issuers have none.
func TestAnyIDVerifiesUnderGoAndOpenssl(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	for _, id := range []string{"board-0007", "board_0007", "board.0007", "a.b.c"} {
		for _, issuer := range []*issuance.Issuer{p.factory, p.operational} {
			cert, err := issuer.Issue(request(t, issuance.DeviceProfile(), identity.RoleDevice, id))
			if err != nil {
				t.Fatal(err)
			}
			if v := verify(t, p.root.Certificate(), start, x509.ExtKeyUsageClientAuth, cert, issuer.Certificate()); v.golang != nil || v.openssl != nil {
				t.Errorf("%s by the %s CA: Go says %v, openssl %v: %s", id, issuer.Kind(), v.golang, v.openssl, v.text)
			}
		}
	}
}
