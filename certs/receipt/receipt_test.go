package receipt_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/receipt"
)

func payload(at time.Time) []byte {
	return fmt.Appendf(nil, `{"receipt_id":"r-1","signed_at":%q}`, at.Format(time.RFC3339Nano))
}

func sign(t testing.TB, at time.Time, key crypto.Signer, chain ...*x509.Certificate) []byte {
	t.Helper()
	data, err := receipt.Sign(payload(at), chain, key)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestReceiptReadsBackAsSignedByEitherKeyOfAHub(t *testing.T) {
	t.Parallel()
	pki, now := certtest.New(t), time.Now()
	server := pki.Server()
	for name, data := range map[string][]byte{
		"issuing CA":                    sign(t, now, pki.OperationalKey, pki.Operational.Certificate()),
		"issuing CA and root":           sign(t, now, pki.OperationalKey, pki.Operational.Certificate(), pki.Root.Certificate()),
		"server certificate and issuer": sign(t, now, server.Key, server.Leaf, pki.Operational.Certificate()),
	} {
		if bytes.Count(data, []byte("\n")) != 1 {
			t.Errorf("%s: it is not one line", name)
		}
		got, signer, err := receipt.Open(append([]byte("\r\n "), data...), pki.Bundle())
		if err != nil || !bytes.Equal(got, payload(now)) {
			t.Errorf("%s: %s, %v", name, got, err)
			continue
		}
		if signer.Subject.CommonName != "hub" {
			t.Errorf("%s: signed by %s", name, signer.Subject)
		}
		if got, err := receipt.Payload(data); err != nil || !bytes.Equal(got, payload(now)) {
			t.Errorf("%s: unverified %s, %v", name, got, err)
		}
	}
}

func TestReceiptOutlivesItsSignersCertificate(t *testing.T) {
	t.Parallel()
	pki := certtest.New(t)
	ca := pki.Operational.Certificate()
	for name, tt := range map[string]struct {
		at time.Time
		ok bool
	}{
		"as it begins":          {ca.NotBefore.Add(time.Second), true},
		"as it ends":            {ca.NotAfter.Add(-time.Second), true},
		"before":                {ca.NotBefore.Add(-time.Hour), false},
		"after":                 {ca.NotAfter.Add(time.Hour), false},
		"a thousand years late": {ca.NotAfter.AddDate(1000, 0, 0), false},
	} {
		_, _, err := receipt.Open(sign(t, tt.at, pki.OperationalKey, ca), pki.Bundle())
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, receipt.ErrInvalid) {
			t.Errorf("signed %s: %v", name, err)
		}
	}
}

func TestReceiptOfAnybodyElseIsRefused(t *testing.T) {
	t.Parallel()
	pki, now := certtest.New(t), time.Now()
	foreign, device, operator, server := pki.Foreign(), pki.Device("hub"), pki.Operator("ann"), pki.Server()
	byFactory, byFactoryKey := subordinate(t, pki.Factory.Certificate(), pki.FactoryKey)
	byOperational, byOperationalKey := subordinate(t, pki.Operational.Certificate(), pki.OperationalKey)
	good := sign(t, now, pki.OperationalKey, pki.Operational.Certificate())
	flip := func(i int) []byte {
		bad := bytes.Clone(good)
		if bad[i] ^= 1; bad[i] == '.' || bad[i] == '\n' {
			bad[i] ^= 3
		}
		return bad
	}
	theirs, err := manifest.Sign(manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: "hub", Number: 1}, []*x509.Certificate{pki.Operational.Certificate()}, pki.OperationalKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty":                          nil,
		"text":                           []byte("hello"),
		"JSON":                           payload(now),
		"cut short":                      good[:len(good)-9],
		"changed in the header":          flip(20),
		"changed in the middle":          flip(len(good) - 120),
		"changed in the signature":       flip(len(good) - 20),
		"a manifest":                     theirs,
		"another fleet's":                sign(t, now, foreign.OperationalKey, foreign.Operational.Certificate()),
		"a factory CA's":                 sign(t, now, pki.FactoryKey, pki.Factory.Certificate()),
		"a device's":                     sign(t, now, device.Key, device.Leaf, device.Issuer),
		"an operator's":                  sign(t, now, operator.Key, operator.Leaf, operator.Issuer),
		"another's key":                  sign(t, now, pki.FactoryKey, pki.Operational.Certificate()),
		"a CA that a factory CA made":    sign(t, now, byFactoryKey, byFactory, pki.Factory.Certificate()),
		"a CA that the hub's CA made":    sign(t, now, byOperationalKey, byOperational, pki.Operational.Certificate()),
		"a server without its issuer":    sign(t, now, server.Key, server.Leaf),
		"larger than any":                bytes.Repeat([]byte("a"), receipt.MaxSize+1),
		"a hub's name by a factory's CA": sign(t, now, device.Key, forgedHub(t, pki, device), pki.Factory.Certificate()),
	} {
		got, signer, err := receipt.Open(data, pki.Bundle())
		if !errors.Is(err, receipt.ErrInvalid) || got != nil || signer != nil || strings.Contains(err.Error(), "\n") || len(err.Error()) > 500 {
			t.Errorf("%s: %s by %v, %.600v", name, got, signer, err)
		}
	}
	if _, _, err := receipt.Open(good, nil); !errors.Is(err, receipt.ErrInvalid) {
		t.Errorf("without roots: %v", err)
	}
}

func TestSignWantsATimeAndASigner(t *testing.T) {
	t.Parallel()
	pki := certtest.New(t)
	chain := []*x509.Certificate{pki.Operational.Certificate()}
	for name, data := range map[string]string{"no time": `{}`, "no JSON": `x`, "no such time": `{"signed_at":"soon"}`} {
		if _, err := receipt.Sign([]byte(data), chain, pki.OperationalKey); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if _, err := receipt.Sign(payload(time.Now()), nil, pki.OperationalKey); err == nil {
		t.Error("signed by nobody")
	}
}

// subordinate is a CA that calls itself a hub's, made with a stolen key.
func subordinate(t *testing.T, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "hub", OrganizationalUnit: []string{string(identity.KindOperational)}},
		NotBefore: parent.NotBefore, NotAfter: parent.NotAfter, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1, 2, 3},
	}
	return create(t, template, parent, key.Public(), parentKey), key
}

// forgedHub is a hub's certificate as a stolen factory key could sign it.
func forgedHub(t *testing.T, pki *certtest.Fleet, device certtest.Credential) *x509.Certificate {
	t.Helper()
	template := *pki.Server().Leaf
	template.SerialNumber = big.NewInt(8)
	template.AuthorityKeyId, template.Raw, template.DNSNames = nil, nil, nil
	return create(t, &template, pki.Factory.Certificate(), device.Key.Public(), pki.FactoryKey)
}

func create(t *testing.T, template, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// FuzzOpen: only what a hub signed is ever accepted.
func FuzzOpen(f *testing.F) {
	pki := certtest.New(f)
	good := sign(f, time.Now(), pki.OperationalKey, pki.Operational.Certificate())
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("a.b.c"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, _, err := receipt.Open(data, pki.Bundle())
		want, _ := receipt.Payload(good)
		if err == nil && !bytes.Equal(got, want) {
			t.Fatalf("accepted %s", got)
		}
		if err != nil && !errors.Is(err, receipt.ErrInvalid) {
			t.Fatalf("error = %v", err)
		}
	})
}
