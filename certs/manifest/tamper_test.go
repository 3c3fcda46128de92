package manifest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/manifest"
)

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSAKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// certify signs a CA certificate that says it is a factory's, whoever signs it.
func certify(t testing.TB, parent *x509.Certificate, parentKey crypto.Signer, pub crypto.PublicKey, name string) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		Subject: pkix.Name{CommonName: name, OrganizationalUnit: []string{string(identity.KindFactory)}},
		IsCA:    true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func selfSigned(t testing.TB, key crypto.Signer) *x509.Certificate {
	t.Helper()
	return certify(t, nil, key, key.Public(), certtest.StationName)
}

func subordinate(t testing.TB, parent *x509.Certificate, parentKey crypto.Signer, name string) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := newKey(t, elliptic.P256())
	return certify(t, parent, parentKey, key.Public(), name), key
}

func base64url(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

func compact(header, payload string, signature []byte) string {
	return base64url([]byte(header)) + "." + base64url([]byte(payload)) + "." + base64url(signature)
}

// parts decodes the three parts of a manifest.
func parts(t testing.TB, data []byte) (decoded [3][]byte) {
	t.Helper()
	for i, part := range strings.Split(strings.TrimSpace(string(data)), ".") {
		var err error
		if decoded[i], err = base64.RawURLEncoding.DecodeString(part); err != nil {
			t.Fatal(err)
		}
	}
	return decoded
}

func TestEveryByteOfAManifestIsProtected(t *testing.T) {
	t.Parallel()
	fleet, now := certtest.New(t), time.Now()
	good := parts(t, sign(t, sample(fleet), chainOf(fleet), fleet.FactoryKey))
	for part, name := range []string{"header", "payload", "signature"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for i := range good[part] {
				changed := good
				changed[part] = append([]byte(nil), good[part]...)
				changed[part][i] ^= 1 << (i % 8)
				wantRefused(t, []byte(base64url(changed[0])+"."+base64url(changed[1])+"."+base64url(changed[2])), rootsOf(fleet), now, "")
			}
		})
	}
}

func TestManifestCutShortIsRefused(t *testing.T) {
	t.Parallel()
	fleet, now := certtest.New(t), time.Now()
	text := strings.TrimSpace(string(sign(t, sample(fleet), chainOf(fleet), fleet.FactoryKey)))
	for end := 0; end < len(text); end += 1 + len(text)/500 {
		wantRefused(t, []byte(text[:end]), rootsOf(fleet), now, "")
	}
	wantRefused(t, []byte(text[:len(text)-1]), rootsOf(fleet), now, "")
	for _, changed := range []string{text + "A", text + ".", text + "." + text, text + "\n" + text, "." + text, text[1:], strings.ReplaceAll(text, ".", "=.")} {
		wantRefused(t, []byte(changed), rootsOf(fleet), now, "")
	}
}

// forgery is a manifest whose header and payload are as wanted, under a good signature where there is a key to make one.
type forgery struct {
	name    string
	header  func(map[string]any)
	payload func(map[string]any)
	raw     string // the payload as it is
	sign    func(t *testing.T, input []byte) []byte
	because string
}

func es256(key crypto.Signer) func(*testing.T, []byte) []byte {
	return func(t *testing.T, input []byte) []byte {
		t.Helper()
		sum := sha256.Sum256(input)
		return rs(t, key, sum[:])
	}
}

// rs signs in the format of JWS: both numbers at their full length (RFC 7518 §3.4).
func rs(t *testing.T, key crypto.Signer, sum []byte) []byte {
	t.Helper()
	private := key.(*ecdsa.PrivateKey)
	r, s, err := ecdsa.Sign(rand.Reader, private, sum)
	if err != nil {
		t.Fatal(err)
	}
	size := (private.Params().BitSize + 7) / 8
	return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
}

func set(key string, value any) func(map[string]any) {
	return func(m map[string]any) { m[key] = value }
}
func without(key string) func(map[string]any) { return func(m map[string]any) { delete(m, key) } }
func noSignature(*testing.T, []byte) []byte   { return nil }
func hs256(secret []byte) func(*testing.T, []byte) []byte {
	return func(_ *testing.T, input []byte) []byte {
		mac := hmac.New(sha256.New, secret)
		mac.Write(input)
		return mac.Sum(nil)
	}
}

func (f forgery) make(t *testing.T, good [3][]byte) []byte {
	t.Helper()
	var header, payload map[string]any
	for i, m := range []*map[string]any{&header, &payload} {
		if err := json.Unmarshal(good[i], m); err != nil {
			t.Fatal(err)
		}
	}
	if f.header != nil {
		f.header(header)
	}
	if f.payload != nil {
		f.payload(payload)
	}
	headerText, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	payloadText, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	if f.raw != "" {
		payloadText = []byte(f.raw)
	}
	input := base64url(headerText) + "." + base64url(payloadText)
	return []byte(input + "." + base64url(f.sign(t, []byte(input))))
}

func TestForgedManifestsAreRefused(t *testing.T) {
	t.Parallel()
	fleet, now := certtest.New(t), time.Now()
	good := parts(t, sign(t, sample(fleet), chainOf(fleet), fleet.FactoryKey))
	station := es256(fleet.FactoryKey)
	x5c := func(certs ...*x509.Certificate) []any {
		var all []any
		for _, c := range certs {
			all = append(all, base64.StdEncoding.EncodeToString(c.Raw))
		}
		return all
	}
	factory, root := fleet.Factory.Certificate(), fleet.Root.Certificate()
	public, err := x509.MarshalPKIXPublicKey(factory.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	own := newKey(t, elliptic.P256())
	point, err := own.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	jwk := map[string]any{"kty": "EC", "crv": "P-256", "x": base64url(point[1:33]), "y": base64url(point[33:])}
	other, _ := fleet.IssuingCA(identity.KindFactory, "bench-2")
	p384Key := newKey(t, elliptic.P384())
	p384, err := fleet.Root.IssueCA(issuance.CARequest{Kind: identity.KindFactory, Name: certtest.StationName, TrustDomain: certtest.TrustDomain, PublicKey: p384Key.Public()})
	if err != nil {
		t.Fatal(err)
	}

	// The way forgeries are made makes good manifests where nothing is changed.
	es384 := func(t *testing.T, input []byte) []byte {
		sum := sha512.Sum384(input)
		return rs(t, p384Key, sum[:])
	}
	for _, f := range []forgery{{sign: station}, {header: func(m map[string]any) { m["alg"], m["x5c"] = "ES384", x5c(p384) }, sign: es384}} {
		if _, _, err := manifest.Open(f.make(t, good), rootsOf(fleet), now); err != nil {
			t.Fatal(err)
		}
	}

	for _, f := range []forgery{
		{name: "alg none", header: set("alg", "none"), sign: noSignature, because: "not a signed manifest"},
		{name: "alg None", header: set("alg", "None"), sign: noSignature, because: "not a signed manifest"},
		{name: "no alg", header: without("alg"), sign: station, because: "not a signed manifest"},
		{name: "no signature", sign: noSignature},
		{name: "HS256 keyed with the public key", header: set("alg", "HS256"), sign: hs256(public), because: "not a signed manifest"},
		{name: "HS256 keyed with the public key as PEM", header: set("alg", "HS256"), sign: hs256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})), because: "not a signed manifest"},
		{name: "HS256 keyed with the certificate", header: set("alg", "HS256"), sign: hs256(factory.Raw), because: "not a signed manifest"},
		{name: "HS256 under the name ES256", sign: hs256(public)},
		{name: "ES384 for a P-256 key", header: set("alg", "ES384"), sign: station, because: "does not fit"},
		{name: "ES256 for a P-384 key", header: set("x5c", x5c(p384)), sign: es256(p384Key), because: "does not fit"},
		{name: "RS256", header: set("alg", "RS256"), sign: station, because: "not a signed manifest"},
		{name: "all zero signature", sign: func(*testing.T, []byte) []byte { return make([]byte, 64) }, because: "changed after signing"},

		{name: "no typ", header: without("typ"), sign: station, because: "not a manifest"},
		{name: "typ of a token", header: set("typ", "JWT"), sign: station, because: `a signed "JWT"`},
		{name: "typ is no string", header: set("typ", 7), sign: station, because: "not a manifest"},

		{name: "no x5c", header: without("x5c"), sign: station},
		{name: "empty x5c", header: set("x5c", []any{}), sign: station},
		{name: "x5c of noise", header: set("x5c", []any{"bm9pc2U="}), sign: station},
		{name: "x5c is no list", header: set("x5c", x5c(factory)[0]), sign: station},
		{name: "x5c in the wrong order", header: set("x5c", x5c(root, factory)), sign: station, because: "a factory issuing CA is required"},
		{name: "x5c of another station", header: set("x5c", x5c(other.Certificate())), sign: station, because: "changed after signing"},
		{name: "x5c of another fleet", header: set("x5c", x5c(chainOf(fleet.Foreign())...)), sign: station, because: "not signed by this hub's root"},
		{name: "own key under the station's x5c", sign: es256(own), because: "changed after signing"},
		{name: "own key in jwk", header: set("jwk", jwk), sign: es256(own), because: "changed after signing"},
		{name: "own key in jwk alone", header: func(m map[string]any) { delete(m, "x5c"); m["jwk"] = jwk }, sign: es256(own)},
		{name: "unknown critical header", header: func(m map[string]any) { m["crit"], m["exp"] = []string{"exp"}, 1 }, sign: station},

		{name: "another station's name", payload: set("station", "bench-2"), sign: station, because: "names station"},
		{name: "station in another case", payload: set("station", "BENCH-1"), sign: station, because: "names station"},
		{name: "no station", payload: without("station"), sign: station, because: "names station"},
		{name: "unknown field", payload: set("revoke", true), sign: station, because: "unknown field"},
		{name: "unknown field of a megabyte", payload: set(strings.Repeat("x", 1<<20), true), sign: station, because: "unknown field"},
		{name: "unknown field in an entry", payload: set("devices", []any{map[string]any{"certificate": "AA==", "admin": true}}), sign: station, because: "unknown field"},
		{name: "certificate is not base64", payload: set("devices", []any{map[string]any{"certificate": "*"}}), sign: station, because: "malformed"},
		{name: "version 0", payload: set("version", 0), sign: station, because: "format version 0"},
		{name: "version 2", payload: set("version", 2), sign: station, because: "format version 2"},
		{name: "no number", payload: without("number"), sign: station, because: "no number"},
		{name: "negative number", payload: set("number", -1), sign: station, because: "malformed"},
		{name: "fractional number", payload: set("number", 1.5), sign: station, because: "malformed"},
		{name: "bad time", payload: set("created_at", "yesterday"), sign: station, because: "malformed"},
		{name: "contents of null", raw: "null", sign: station, because: "format version 0"},
		{name: "contents of a list", raw: "[]", sign: station, because: "malformed"},
		{name: "no contents", raw: " ", sign: station, because: "malformed"},
		{name: "contents cut short", raw: string(good[1][:len(good[1])-1]), sign: station, because: "malformed"},
		{name: "a second manifest behind", raw: string(good[1]) + string(good[1]), sign: station, because: "something follows"},
		{name: "text behind", raw: string(good[1]) + "x", sign: station, because: "something follows"},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			wantRefused(t, f.make(t, good), rootsOf(fleet), now, f.because)
		})
	}
}

// JWS has other serializations, with unprotected headers and several signatures: none is a manifest.
func TestOtherSerializationsAreRefused(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	part := strings.Split(strings.TrimSpace(string(sign(t, sample(fleet), chainOf(fleet), fleet.FactoryKey))), ".")
	flat := map[string]any{"protected": part[0], "payload": part[1], "signature": part[2]}
	general := map[string]any{"payload": part[1], "signatures": []any{map[string]any{"protected": part[0], "signature": part[2]}}}
	unprotected := maps.Clone(flat)
	unprotected["header"] = map[string]any{"typ": "fleethub-manifest+jws"}
	for _, form := range []any{flat, general, unprotected} {
		data, err := json.Marshal(form)
		if err != nil {
			t.Fatal(err)
		}
		wantRefused(t, data, rootsOf(fleet), time.Now(), "not a signed manifest")
	}
	detached := part[0] + ".." + part[2]
	wantRefused(t, []byte(detached), rootsOf(fleet), time.Now(), "")
}
