package est

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
)

func request(t testing.TB, key crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func extension(t testing.TB, id asn1.ObjectIdentifier, value any) pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: id, Value: der}
}

// zoo is certificate requests that boards, or somebody in their place, may send: whether
// they are taken, and if not, what is said.
func zoo(t testing.TB) map[string]struct {
	der  []byte
	want string
} {
	t.Helper()
	key, err := issuance.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := request(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "a"}})
	wrong := bytes.Clone(good)
	wrong[len(wrong)-1] ^= 1
	named := func(name string) []byte {
		return request(t, key, &x509.CertificateRequest{RawSubject: rawName(t, name)})
	}
	with := func(extensions ...pkix.Extension) []byte {
		return request(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "a"}, ExtraExtensions: extensions})
	}
	ca := extension(t, basicConstraints, struct{ IsCA bool }{true})
	usage := extension(t, asn1.ObjectIdentifier{2, 5, 29, 15}, asn1.BitString{Bytes: []byte{0x06}, BitLength: 7}) // keyCertSign, cRLSign
	server := extension(t, asn1.ObjectIdentifier{2, 5, 29, 37}, []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 1}})
	operator, err := url.Parse("spiffe://fleet.example/operator/admin")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]struct {
		der  []byte
		want string
	}{
		"as ours":          {good, ""},
		"as ours, P-384":   {request(t, p384(t), &x509.CertificateRequest{}), ""},
		"no name":          {request(t, key, &x509.CertificateRequest{}), ""},
		"keyUsage and EKU": {with(usage, server), ""},
		"foreign names":    {request(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "hub"}, DNSNames: []string{"hub.example"}, EmailAddresses: []string{"a@b.example"}, IPAddresses: []net.IP{{10, 0, 0, 1}}, URIs: []*url.URL{operator}}), ""},
		"CA:false":         {with(extension(t, basicConstraints, struct{}{})), ""},
		"unknown critical": {with(pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}), ""},
		"CA:true":          {with(ca), "asks to be a CA"},
		"constraints":      {with(pkix.Extension{Id: basicConstraints, Value: []byte{0x30, 0x05, 1}}), "malformed"},
		"extension twice":  {with(usage, usage), ""},
		"RSA-1024":         {opensslRequest(t, "rsa:1024"), "ECDSA on P-256 or P-384 is required"},
		"RSA-3072":         {request(t, rsaKey(t), &x509.CertificateRequest{}), "ECDSA on P-256 or P-384 is required"},
		"P-224":            {request(t, p224, &x509.CertificateRequest{}), "P-224"},
		"wrong signature":  {wrong, "signature is not by the key"},
		"trailing data":    {append(bytes.Clone(good), 0), "malformed"},
		"cut short":        {good[:len(good)-1], "malformed"},
		"name with NUL":    {named("a\x00b"), "control characters"},
		"name with escape": {named("\x1b[31mred"), "control characters"},
		"name with DEL":    {named("a\x7f"), "control characters"},
	}
}

// rawName is a subject with one common name, as UTF8String whatever is in it.
func rawName(t testing.TB, name string) []byte {
	t.Helper()
	der, err := asn1.Marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(name)}}}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func p384(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// opensslRequest is a request with a key that crypto/rsa won't make.
func opensslRequest(t testing.TB, algorithm string) []byte {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "csr")
	if out, err := exec.Command("openssl", "req", "-new", "-newkey", algorithm, "-nodes", "-keyout", filepath.Join(dir, "key"), "-subj", "/CN=a", "-outform", "DER", "-out", file).CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	der, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestRequestsOfTheZooAreIgnoredOrRefusedPartByPart(t *testing.T) {
	_, config := newAuthority(t)
	h := NewHandler(config)
	for name, c := range zoo(t) {
		t.Run(name, func(t *testing.T) {
			response := send(h, "POST", Prefix+opEnroll, typeRequest, secret, strings.NewReader(encoded(c.der)), nil)
			body, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			if name == "extension twice" { // crypto/x509 refuses it before we do
				c.want = "malformed"
			}
			if c.want != "" {
				if response.StatusCode != 400 || !strings.Contains(string(body), c.want) {
					t.Errorf("%d %s", response.StatusCode, body)
				}
				return
			}
			if response.StatusCode != 200 {
				t.Fatalf("%d %s", response.StatusCode, body)
			}
			onlyItsKey(t, c.der, body)
		})
	}
}

// onlyItsKey fails unless the certificate in an answer has of the request its key alone.
func onlyItsKey(t *testing.T, der, answer []byte) {
	t.Helper()
	message, err := decodeBase64(answer)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := decodeCerts(message)
	if err != nil {
		t.Fatal(err)
	}
	cert := certs[0]
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.FromCertificate(cert)
	if err != nil || id.String() != "spiffe://fleet.example/device/board-7" || len(cert.URIs) != 1 || len(cert.DNSNames)+len(cert.EmailAddresses)+len(cert.IPAddresses) > 0 {
		t.Errorf("it names %v %v %v %v %v", id, err, cert.DNSNames, cert.EmailAddresses, cert.IPAddresses)
	}
	if cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature || len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || len(cert.UnknownExtKeyUsage) > 0 {
		t.Errorf("it is for %v %v, CA %t", cert.KeyUsage, cert.ExtKeyUsage, cert.IsCA)
	}
	if len(cert.UnhandledCriticalExtensions) > 0 || !bytes.Equal(cert.RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo) {
		t.Errorf("extensions %v", cert.UnhandledCriticalExtensions)
	}
}

// Names are matched by checkRequest again where crypto/x509 would let a field pass twice.
func TestExtensionTwiceIsRefusedWhoeverParsedIt(t *testing.T) {
	usage := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Value: []byte{3, 2, 1, 6}}
	if err := checkRequest(&x509.CertificateRequest{Extensions: []pkix.Extension{usage, usage}}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Error(err)
	}
}

func FuzzEnroll(f *testing.F) {
	for _, c := range zoo(f) {
		f.Add([]byte(encoded(c.der)))
	}
	f.Add([]byte("-----BEGIN"))
	f.Add([]byte("===="))
	_, config := newAuthority(f)
	config.Refusals = Rate{PerSecond: 1e9, Burst: 1e9}
	h := NewHandler(config)
	f.Fuzz(func(t *testing.T, body []byte) {
		response := send(h, "POST", Prefix+opEnroll, typeRequest, secret, bytes.NewReader(body), nil)
		answer, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		switch response.StatusCode {
		case 400, 413:
			if len(answer) > 1000 || bytes.ContainsAny(answer[:len(answer)-1], "\x00\x1b\n") {
				t.Errorf("the error is %q", answer)
			}
		case 200:
			der, err := decodeBase64(body)
			if err != nil {
				t.Fatal(err)
			}
			onlyItsKey(t, der, answer)
		default:
			t.Errorf("%d %s", response.StatusCode, answer)
		}
	})
}

func FuzzDecodeCerts(f *testing.F) {
	a, _ := newAuthority(f)
	for _, certs := range [][]*x509.Certificate{a.fleet.Bundle(), {a.fleet.Root.Certificate()}, nil} {
		der, err := encodeCerts(certs...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Add([]byte{0x30, 0x80, 0x24, 0x80, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		certs, err := decodeCerts(der)
		if (err == nil) != (len(certs) > 0) {
			t.Errorf("%d certificates, %v", len(certs), err)
		}
	})
}

func FuzzParseToken(f *testing.F) {
	a, _ := newAuthority(f)
	f.Add(NewToken(a.fleet.Root.Certificate()).String())
	f.Add("fh1..")
	f.Add("FH1.aaaaaaaaaaaaaaaaaaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbb")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			return
		}
		if again, err := ParseToken(token.String()); err != nil || again != token || !strings.EqualFold(strings.TrimSpace(text), token.String()) {
			t.Errorf("%q is read as %q", text, token)
		}
	})
}
