package manifest_test

import (
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/manifest"
)

func sample(fleet *certtest.Fleet) manifest.Manifest {
	return manifest.Manifest{
		Version: manifest.Version, TrustDomain: certtest.TrustDomain, Station: certtest.StationName, Number: 7,
		CreatedAt: time.Date(2030, 3, 1, 12, 0, 0, 123456789, time.UTC),
		Devices: []manifest.Entry{
			{Certificate: fleet.Device("board-1").Leaf.Raw, Model: "pump <&> ü", Labels: map[string]string{"site": "a", "line": "2"}, Protection: "tpm"},
			{Certificate: fleet.Device("board-2").Leaf.Raw, Protection: "software", Supersedes: "0abc"},
		},
	}
}

func sign(t testing.TB, m manifest.Manifest, chain []*x509.Certificate, key crypto.Signer) []byte {
	t.Helper()
	data, err := manifest.Sign(m, chain, key)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func chainOf(fleet *certtest.Fleet) []*x509.Certificate {
	return []*x509.Certificate{fleet.Factory.Certificate(), fleet.Root.Certificate()}
}

func rootsOf(fleet *certtest.Fleet) []*x509.Certificate {
	return []*x509.Certificate{fleet.Root.Certificate()}
}

// wantRefused fails the test unless Open refuses data for that reason, in a sentence.
func wantRefused(t testing.TB, data []byte, roots []*x509.Certificate, now time.Time, because string) {
	t.Helper()
	m, issuer, err := manifest.Open(data, roots, now)
	switch {
	case err == nil:
		t.Errorf("the manifest was accepted: %+v", m)
	case !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), because):
		t.Errorf("%v; want ErrInvalid with %q", err, because)
	case strings.Contains(err.Error(), "\n") || len(err.Error()) > 500:
		t.Errorf("no sentence: %.600v", err)
	}
	if issuer != nil || !reflect.DeepEqual(m, manifest.Manifest{}) {
		t.Errorf("Open returned %+v and the issuer %v beside its error", m, issuer)
	}
}

func TestManifestReadsBackAsSigned(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	want := sample(fleet)
	for name, chain := range map[string][]*x509.Certificate{"with the root": chainOf(fleet), "without the root": chainOf(fleet)[:1]} {
		data := sign(t, want, chain, fleet.FactoryKey)
		if strings.Count(string(data), "\n") != 1 || data[len(data)-1] != '\n' {
			t.Errorf("%s: it is not one line", name)
		}
		for _, text := range []string{string(data), strings.TrimSpace(string(data)), "\r\n " + string(data) + "\r\n"} {
			got, issuer, err := manifest.Open([]byte(text), rootsOf(fleet), time.Now())
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !reflect.DeepEqual(got, want) || !issuer.Equal(fleet.Factory.Certificate()) {
				t.Errorf("%s: read back as %+v, signed by %s", name, got, issuer.Subject)
			}
		}
	}
}

func TestSignFillsInTheVersionAndNothingElse(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	m := manifest.Manifest{Version: 99, TrustDomain: certtest.TrustDomain, Station: certtest.StationName, Number: 1}
	got, _, err := manifest.Open(sign(t, m, chainOf(fleet), fleet.FactoryKey), rootsOf(fleet), time.Now())
	m.Version = manifest.Version
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("an empty manifest reads back as %+v, %v", got, err)
	}
}

func TestP384StationSignsToo(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	key := newKey(t, elliptic.P384())
	cert, err := fleet.Root.IssueCA(issuance.CARequest{Kind: identity.KindFactory, Name: certtest.StationName, TrustDomain: certtest.TrustDomain, PublicKey: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	data := sign(t, sample(fleet), []*x509.Certificate{cert}, key)
	if _, issuer, err := manifest.Open(data, rootsOf(fleet), time.Now()); err != nil || !issuer.Equal(cert) {
		t.Errorf("Open: %v", err)
	}
}

func TestSignNeedsAnECDSAIssuer(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	if _, err := manifest.Sign(sample(fleet), nil, fleet.FactoryKey); err == nil {
		t.Error("a manifest without an issuer was signed")
	}
	for name, cert := range map[string]*x509.Certificate{"P-521": selfSigned(t, newKey(t, elliptic.P521())), "RSA": selfSigned(t, newRSAKey(t))} {
		if _, err := manifest.Sign(sample(fleet), []*x509.Certificate{cert}, fleet.FactoryKey); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%s issuer: %v", name, err)
		}
	}
}

func TestOnlyAFactoryIssuerUnderTheRootSigns(t *testing.T) {
	t.Parallel()
	fleet, now := certtest.New(t), time.Now()
	m := sample(fleet)
	foreign := fleet.Foreign()
	operational, operationalKey := fleet.IssuingCA(identity.KindOperational, certtest.StationName)
	other, otherKey := fleet.IssuingCA(identity.KindFactory, "bench-2")
	rootKey := newKey(t, elliptic.P256())
	root, err := issuance.NewRoot(certtest.TrustDomain, rootKey, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	device := fleet.Device(certtest.StationName)
	// CAs that a stolen issuing CA's key makes: path length 0 doesn't count the last certificate of a chain.
	byFactory, byFactoryKey := subordinate(t, fleet.Factory.Certificate(), fleet.FactoryKey, certtest.StationName)
	byOperational, byOperationalKey := subordinate(t, operational.Certificate(), operationalKey, certtest.StationName)

	for _, c := range []struct {
		name    string
		data    []byte
		roots   []*x509.Certificate
		because string
	}{
		{"another fleet's factory", sign(t, m, chainOf(foreign), foreign.FactoryKey), rootsOf(fleet), "not signed by this hub's root"},
		{"no roots", sign(t, m, chainOf(fleet), fleet.FactoryKey), nil, "not signed by this hub's root"},
		{"operational CA", sign(t, m, []*x509.Certificate{operational.Certificate()}, operationalKey), rootsOf(fleet), "a factory issuing CA is required"},
		{"root", sign(t, m, []*x509.Certificate{root}, rootKey), []*x509.Certificate{root}, "a factory issuing CA is required"},
		{"device", sign(t, m, []*x509.Certificate{device.Leaf, device.Issuer}, device.Key), rootsOf(fleet), "not signed by this hub's root"},
		{"self-signed", sign(t, m, []*x509.Certificate{selfSigned(t, rootKey)}, rootKey), rootsOf(fleet), "not signed by this hub's root"},
		{"CA by the factory", sign(t, m, append([]*x509.Certificate{byFactory}, chainOf(fleet)...), byFactoryKey), rootsOf(fleet), "not signed by this hub's root"},
		{"CA by the operational CA", sign(t, m, []*x509.Certificate{byOperational, operational.Certificate()}, byOperationalKey), rootsOf(fleet), "not signed by this hub's root"},
		{"another station", sign(t, m, []*x509.Certificate{other.Certificate()}, otherKey), rootsOf(fleet), `names station "bench-1" but is signed by "bench-2"`},
		{"another's key", sign(t, m, chainOf(fleet), otherKey), rootsOf(fleet), "changed after signing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			wantRefused(t, c.data, c.roots, now, c.because)
		})
	}
}

func TestStationSignsWithinItsValidityOnly(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	data, cert := sign(t, sample(fleet), chainOf(fleet), fleet.FactoryKey), fleet.Factory.Certificate()
	for _, now := range []time.Time{cert.NotBefore, cert.NotAfter} {
		if _, _, err := manifest.Open(data, rootsOf(fleet), now); err != nil {
			t.Errorf("opened on %s: %v", now, err)
		}
	}
	wantRefused(t, data, rootsOf(fleet), cert.NotBefore.Add(-time.Second), "not valid now")
	wantRefused(t, data, rootsOf(fleet), cert.NotAfter.Add(time.Second), "not valid now")
}

func TestManifestOverTheSizeLimitIsNotRead(t *testing.T) {
	t.Parallel()
	wantRefused(t, make([]byte, manifest.MaxSize+1), nil, time.Now(), "67108865 bytes")
}

// Whoever changes a signed manifest gets an error or the same manifest.
func FuzzOpen(f *testing.F) {
	fleet, now := certtest.New(f), time.Now()
	want := sample(fleet)
	want.Devices = nil // short inputs fuzz faster
	data := sign(f, want, chainOf(fleet)[:1], fleet.FactoryKey)
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add([]byte(""))
	f.Add([]byte("e30.e30.e30"))
	f.Add([]byte("..."))
	f.Add([]byte(`{"payload":"e30","protected":"e30","signature":""}`))
	for _, header := range []string{`{"alg":"none","typ":"fleethub-manifest+jws"}`, `{"alg":"ES256","typ":"fleethub-manifest+jws","x5c":["AA=="]}`} {
		f.Add([]byte(compact(header, `{"version":1,"number":1}`, make([]byte, 64))))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, issuer, err := manifest.Open(data, rootsOf(fleet), now)
		if err != nil {
			if !errors.Is(err, manifest.ErrInvalid) {
				t.Fatalf("%v is no ErrInvalid", err)
			}
			return
		}
		if !reflect.DeepEqual(got, want) || !issuer.Equal(fleet.Factory.Certificate()) {
			t.Fatalf("what nobody signed was accepted: %+v", got)
		}
	})
}

// A station that signs nonsense gets an error, or what was read is a manifest that it may sign.
func FuzzOpenOfSignedContents(f *testing.F) {
	fleet, now := certtest.New(f), time.Now()
	good := parts(f, sign(f, manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: certtest.StationName, Number: 1}, chainOf(fleet)[:1], fleet.FactoryKey))
	header := base64url(good[0])
	f.Add(string(good[1]))
	f.Add(string(good[1]) + "{}")
	f.Add(`{"version":1,"trust_domain":"fleet.example","station":"bench-1","number":18446744073709551615,"created_at":"2030-03-01T12:00:00Z","devices":[{"certificate":"AA==","labels":{"":""}}]}`)
	f.Add(`{"version":1,"station":"bench-1","number":1,"number":2,"STATION":"bench-2"}`)
	f.Add(`{"version":1,"station":"bench-1","number":1e0}`)
	f.Add("null")
	f.Add("[[[[")
	f.Fuzz(func(t *testing.T, contents string) {
		input := header + "." + base64url([]byte(contents))
		m, _, err := manifest.Open([]byte(input+"."+base64url(es256(fleet.FactoryKey)(t, []byte(input)))), rootsOf(fleet), now)
		if err != nil {
			if !errors.Is(err, manifest.ErrInvalid) {
				t.Fatalf("%v is no ErrInvalid", err)
			}
			return
		}
		if m.Version != manifest.Version || m.Station != certtest.StationName || m.Number == 0 {
			t.Fatalf("%q was accepted as %+v", contents, m)
		}
	})
}
