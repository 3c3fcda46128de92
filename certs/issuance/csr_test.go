package issuance_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
)

func newCSR(t testing.TB, key crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestRequestProvesPossessionOfItsKey(t *testing.T) {
	t.Parallel()
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		key := newKey(t, curve)
		der, err := issuance.NewCSR(key, "board-7")
		if err != nil {
			t.Fatal(err)
		}
		csr, err := issuance.ParseCSR(der)
		if err != nil || !key.PublicKey.Equal(csr.PublicKey) || csr.Subject.CommonName != "board-7" {
			t.Errorf("%s: ParseCSR = %+v, %v", curve.Params().Name, csr, err)
		}
	}
}

func TestUnacceptableRequestsAreRefused(t *testing.T) {
	t.Parallel()
	key := newKey(t, elliptic.P256())
	good := newCSR(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "a"}})
	replaced := func(old, new []byte) []byte {
		if bytes.Count(good, old) != 1 {
			t.Fatalf("the request has %x %d times", old, bytes.Count(good, old))
		}
		return bytes.Replace(good, old, new, 1)
	}
	point := func(key *ecdsa.PrivateKey) []byte {
		b, err := key.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	offCurve := point(key)
	offCurve[len(offCurve)-1] ^= 1
	signatureChanged := bytes.Clone(good)
	signatureChanged[len(signatureChanged)-1] ^= 1
	for _, c := range []struct {
		name string
		der  []byte
		want error
	}{
		{"empty", nil, issuance.ErrRequest},
		{"noise", []byte("noise"), issuance.ErrRequest},
		{"PEM", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: good}), issuance.ErrRequest},
		{"cut short", good[:len(good)-1], issuance.ErrRequest},
		{"trailing data", append(bytes.Clone(good), 0), issuance.ErrRequest},
		{"twice", append(bytes.Clone(good), good...), issuance.ErrRequest},
		{"a certificate", certtest.New(t).Root.Certificate().Raw, issuance.ErrRequest},
		{"one megabyte", newCSR(t, key, &x509.CertificateRequest{DNSNames: []string{strings.Repeat("a", 1<<20)}}), issuance.ErrRequest},
		{"just too large", newCSR(t, key, &x509.CertificateRequest{DNSNames: []string{strings.Repeat("a", 16<<10)}}), issuance.ErrRequest},
		{"signature changed", signatureChanged, issuance.ErrRequest},
		{"another's key", replaced(point(key), point(newKey(t, elliptic.P256()))), issuance.ErrRequest},
		{"another name than was signed", replaced([]byte{0x13, 1, 'a'}, []byte{0x13, 1, 'b'}), issuance.ErrRequest},
		{"point off the curve", replaced(point(key), offCurve), issuance.ErrRequest},
		{"RSA", newCSR(t, newRSAKey(t), &x509.CertificateRequest{}), issuance.ErrKey},
		{"P-224", newCSR(t, newKey(t, elliptic.P224()), &x509.CertificateRequest{}), issuance.ErrKey},
		{"P-521", newCSR(t, newKey(t, elliptic.P521()), &x509.CertificateRequest{}), issuance.ErrKey},
		{"signed with SHA-1", opensslCSR(t, "-sha1"), issuance.ErrRequest},
	} {
		csr, err := issuance.ParseCSR(c.der)
		if !errors.Is(err, c.want) || csr != nil {
			t.Errorf("%s: %v, %v; want %v", c.name, csr, err, c.want)
		} else if len(err.Error()) > 500 {
			t.Errorf("%s: the error has %d bytes", c.name, len(err.Error()))
		}
	}
}

// opensslCSR returns a request that the openssl command made.
func opensslCSR(t testing.TB, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	keyFile, csrFile := filepath.Join(dir, "key.pem"), filepath.Join(dir, "csr.der")
	openssl(t, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", keyFile)
	openssl(t, append([]string{"req", "-new", "-key", keyFile, "-subj", "/CN=a", "-outform", "DER", "-out", csrFile}, args...)...)
	der, err := os.ReadFile(csrFile)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Whatever a request asks for, the certificate has its key and the identity we gave.
func TestNothingOfARequestReachesTheCertificateButItsKey(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	key := newKey(t, elliptic.P256())
	for _, c := range []struct {
		name string
		der  []byte
	}{
		{"plain, by openssl", opensslCSR(t)},
		{"CA:true and foreign names, by openssl", opensslCSR(t, "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign",
			"-addext", "extendedKeyUsage=serverAuth", "-addext", "subjectAltName=URI:spiffe://other.example/operator/root,DNS:evil.example,IP:10.0.0.1,email:a@evil.example")},
		{"foreign names", newCSR(t, key, &x509.CertificateRequest{
			Subject:  pkix.Name{CommonName: "root", OrganizationalUnit: []string{string(identity.KindOperational)}, SerialNumber: "1"},
			DNSNames: []string{"evil.example"}, IPAddresses: []net.IP{{10, 0, 0, 1}}, EmailAddresses: []string{"a@evil.example"},
		})},
		{"NUL in the common name", newCSR(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "board-7\x00.evil.example"}})},
		{"newline in the common name", newCSR(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "board-7\nroot"}})},
		{"no name at all", newCSR(t, key, &x509.CertificateRequest{})},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			csr, err := issuance.ParseCSR(c.der)
			if err != nil {
				t.Fatal(err)
			}
			id, err := identity.New(certtest.TrustDomain, identity.RoleDevice, "board-7")
			if err != nil {
				t.Fatal(err)
			}
			cert, err := fleet.Factory.Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: id, PublicKey: csr.PublicKey})
			if err != nil {
				t.Fatal(err)
			}
			if !publicKeysEqual(cert.PublicKey, csr.PublicKey) {
				t.Error("the certificate has another key than the request")
			}
			wantPlainDevice(t, cert, "board-7")
		})
	}
}

func publicKeysEqual(a, b any) bool {
	key, ok := a.(*ecdsa.PublicKey)
	return ok && key.Equal(b)
}

// wantPlainDevice fails the test unless the certificate says device id, and nothing else.
func wantPlainDevice(t testing.TB, cert *x509.Certificate, id string) {
	t.Helper()
	if cert.Subject.String() != "CN="+id || len(cert.Subject.Names) != 1 {
		t.Errorf("subject %q", cert.Subject)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://fleet.example/device/"+id || len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) > 0 {
		t.Errorf("names %v %q %v %q", cert.URIs, cert.DNSNames, cert.IPAddresses, cert.EmailAddresses)
	}
	if cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("CA %t, key usage %b, extended %v", cert.IsCA, cert.KeyUsage, cert.ExtKeyUsage)
	}
	var known []string
	for _, e := range cert.Extensions {
		known = append(known, e.Id.String())
	}
	// key usage, extended key usage, basic constraints, authority key identifier, subject alternative name
	if want := []string{"2.5.29.15", "2.5.29.37", "2.5.29.19", "2.5.29.35", "2.5.29.17"}; !slices.Equal(known, want) {
		t.Errorf("extensions %v, want %v", known, want)
	}
}

func FuzzParseCSR(f *testing.F) {
	key := newKey(f, elliptic.P256())
	good := newCSR(f, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "a"}})
	f.Add(good)
	f.Add(newCSR(f, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "a\x00b"}, DNSNames: []string{"evil.example"}}))
	f.Add(newCSR(f, newKey(f, elliptic.P384()), &x509.CertificateRequest{}))
	f.Add(newCSR(f, newKey(f, elliptic.P521()), &x509.CertificateRequest{}))
	f.Add(newCSR(f, newRSAKey(f), &x509.CertificateRequest{}))
	f.Add(good[:len(good)/2])
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})
	fleet := certtest.New(f)
	id, err := identity.New(certtest.TrustDomain, identity.RoleDevice, "board-7")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, err := issuance.ParseCSR(der)
		if err != nil {
			if !errors.Is(err, issuance.ErrRequest) && !errors.Is(err, issuance.ErrKey) {
				t.Fatalf("%v is neither ErrRequest nor ErrKey", err)
			}
			return
		}
		if !bytes.Equal(csr.Raw, der) || len(der) > 16<<10 || csr.CheckSignature() != nil || issuance.CheckKey(csr.PublicKey) != nil {
			t.Fatalf("a request of %d bytes was accepted", len(der))
		}
		cert, err := fleet.Factory.Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: id, PublicKey: csr.PublicKey})
		if err != nil {
			t.Fatal(err)
		}
		wantPlainDevice(t, cert, "board-7")
	})
}
