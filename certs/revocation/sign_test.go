package revocation_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/revocation"
)

// issuing returns a CA's certificate by that key.
func issuing(t *testing.T, key crypto.Signer) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: moment.Add(-time.Hour), NotAfter: moment.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign, SubjectKeyId: []byte{1, 2, 3},
	}
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

// TestListIsWhatCryptoX509Makes, octet for octet but for the signature, by every kind of
// key and with everything that an entry can be.
func TestListIsWhatCryptoX509Makes(t *testing.T) {
	t.Parallel()
	keys := map[string]crypto.Signer{}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[curve.Params().Name] = key
	}
	var err error
	if keys["RSA"], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	full := list(1 << 40)
	for i, at := range []time.Time{
		moment, moment.Add(123 * time.Millisecond), moment.In(time.FixedZone("", 3600)),
		time.Date(1949, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(1950, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		for reason := revocation.Reason(0); reason <= 10; reason++ {
			serial := new(big.Int).Lsh(big.NewInt(int64(i+1)), uint(16*reason)) // some with their highest bit set
			full.Entries = append(full.Entries, revocation.Entry{Serial: serial.Sub(serial, big.NewInt(int64(i%2))), At: at, Reason: reason})
		}
	}
	for name, key := range keys {
		issuer := issuing(t, key)
		for _, l := range []revocation.List{list(1), list(2, full.Entries[0]), full} {
			template := &x509.RevocationList{Number: l.Number, ThisUpdate: l.ThisUpdate, NextUpdate: l.NextUpdate}
			for _, e := range l.Entries {
				template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: e.Serial, RevocationTime: e.At.UTC(), ReasonCode: int(e.Reason)})
			}
			der, err := x509.CreateRevocationList(rand.Reader, template, issuer, key)
			if err != nil {
				t.Fatal(err)
			}
			want, err := x509.ParseRevocationList(der)
			if err != nil {
				t.Fatal(err)
			}
			got, err := x509.ParseRevocationList(sign(t, l, issuer, key))
			if err != nil {
				t.Fatalf("%s, %d entries: %v", name, len(l.Entries), err)
			}
			if !bytes.Equal(got.RawTBSRevocationList, want.RawTBSRevocationList) || got.SignatureAlgorithm != want.SignatureAlgorithm {
				t.Errorf("%s, %d entries:\ngot  %x\nwant %x", name, len(l.Entries), got.RawTBSRevocationList, want.RawTBSRevocationList)
			}
			if err := got.CheckSignatureFrom(issuer); err != nil {
				t.Errorf("%s, %d entries: %v", name, len(l.Entries), err)
			}
		}
	}
}

// otherKey says that it is one key and signs with another, as a token with two keys of one
// label might.
type otherKey struct {
	*ecdsa.PrivateKey
	signs crypto.Signer
}

func (k otherKey) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.signs == nil {
		return nil, errors.New("the token is gone")
	}
	return k.signs.Sign(r, digest, opts)
}

func TestListThatCannotBeSignedIsNone(t *testing.T) {
	t.Parallel()
	pki := certtest.New(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	entry := revocation.Entry{Serial: big.NewInt(1), At: moment}
	leaf := pki.Device("pi-1").Leaf
	for name, tt := range map[string]struct {
		list   revocation.List
		issuer *x509.Certificate
		key    crypto.Signer
	}{
		"a key that signs as another": {list(1, entry), pki.Factory.Certificate(), otherKey{key, pki.FactoryKey}},
		"a key that doesn't sign":     {list(1, entry), pki.Factory.Certificate(), otherKey{key, nil}},
		"an issuer that may not":      {list(1, entry), leaf, key},
		"an entry without a number":   {list(1, revocation.Entry{At: moment}), pki.Factory.Certificate(), key},
		"an entry without a time":     {list(1, revocation.Entry{Serial: big.NewInt(1)}), pki.Factory.Certificate(), key},
		"an entry of the year 10000":  {list(1, revocation.Entry{Serial: big.NewInt(1), At: moment.AddDate(8000, 0, 0)}), pki.Factory.Certificate(), key},
		"a list without a number":     {revocation.List{ThisUpdate: moment, NextUpdate: moment, Entries: []revocation.Entry{entry}}, pki.Factory.Certificate(), key},
	} {
		if der, err := tt.list.Sign(tt.issuer, tt.key); err == nil {
			t.Errorf("%s: %d octets", name, len(der))
		}
	}
}
