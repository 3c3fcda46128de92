package mtls_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/mtls"
)

const day = 24 * time.Hour

func TestPeersOfTheRightRoleAreAccepted(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	foreign := fleet.Foreign().Device("junk").Certificate
	with := func(cert tls.Certificate, more ...[]byte) tls.Certificate {
		cert.Certificate = append(cert.Certificate[:1:1], more...)
		return cert
	}
	device := fleet.Device("board-1", certtest.WithOU("pump")).Certificate
	for _, c := range []struct {
		name   string
		cert   tls.Certificate
		want   string
		issuer *x509.Certificate
	}{
		{"device by the factory", device, "spiffe://fleet.example/device/board-1", fleet.Factory.Certificate()},
		{"leaf-only chain", with(device), "spiffe://fleet.example/device/board-1", fleet.Factory.Certificate()},
		{"chain with the root", with(device, fleet.Factory.Certificate().Raw, fleet.Root.Certificate().Raw), "spiffe://fleet.example/device/board-1", fleet.Factory.Certificate()},
		{"chain with another fleet's", with(device, foreign.Certificate...), "spiffe://fleet.example/device/board-1", fleet.Factory.Certificate()},
		{"device by the operational CA", fleet.Device("board-2", certtest.WithIssuer(fleet.Operational)).Certificate, "spiffe://fleet.example/device/board-2", fleet.Operational.Certificate()},
		{"service", fleet.Service("collector").Certificate, "spiffe://fleet.example/service/collector", fleet.Operational.Certificate()},
	} {
		for name, version := range versions {
			t.Run(c.name+" over "+name, func(t *testing.T) {
				t.Parallel()
				h := newHub(t, fleet, fleet.Trust(), nil, identity.RoleDevice, identity.RoleService)
				o := connect(t, h.config, clientConfig(fleet, c.cert, version))
				if err := errors.Join(o.serverErr, o.clientErr); err != nil {
					t.Fatal(err)
				}
				if h.peer.Identity.String() != c.want || !h.peer.Issuer.Equal(c.issuer) || !h.peer.Certificate.Equal(c.cert.Leaf) || h.peer.Resumed {
					t.Errorf("the peer is %+v", h.peer)
				}
				if o.client.Version != version || h.calls != 1 {
					t.Errorf("TLS %#x, verified %d times", o.client.Version, h.calls)
				}
			})
		}
	}
}

func TestEveryRefusalNamesItsReason(t *testing.T) {
	t.Parallel()
	fleet, now := certtest.New(t), time.Now()
	trust := fleet.Trust()
	factory, factoryKey := fleet.Factory.Certificate(), fleet.FactoryKey
	operational, operationalKey := fleet.IssuingCA(identity.KindOperational, "other")
	trust.Issuers = append(trust.Issuers, operational.Certificate())
	unlisted, _ := fleet.IssuingCA(identity.KindFactory, "other")
	const domain = certtest.TrustDomain
	device := named(domain, identity.RoleDevice, "board-1")
	changed := func(change func(*x509.Certificate)) x509.Certificate {
		template := device
		change(&template)
		return template
	}
	own := newKey(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	impostor := *factory // of its name and key identifier, with another key
	impostor.PublicKey = own.Public()
	ca := forge(t, factory, factoryKey, x509.Certificate{
		Subject: pkix.Name{CommonName: "bench-2", OrganizationalUnit: []string{string(identity.KindOperational)}},
		IsCA:    true, KeyUsage: x509.KeyUsageCertSign,
	})
	belowCA := forge(t, ca.Leaf, ca.PrivateKey.(crypto.Signer), device)
	belowCA.Certificate = append(belowCA.Certificate, ca.Certificate[0], factory.Raw)

	for _, c := range []struct {
		name   string
		cert   tls.Certificate
		reason mtls.Reason
		names  string // the identity that the refusal names, if any
	}{
		{"another fleet's device", fleet.Foreign().Device("board-1").Certificate, mtls.ReasonUnknownIssuer, ""},
		{"self-signed with a device's name", forge(t, nil, own, device), mtls.ReasonUnknownIssuer, ""},
		{"self-signed with no name", forge(t, nil, own, x509.Certificate{}), mtls.ReasonUnknownIssuer, ""},
		{"self-signed RSA", forgeFor(t, nil, rsaKey, device, rsaKey), mtls.ReasonUnknownIssuer, ""},
		{"issuer that the hub does not list", fleet.Device("board-1", certtest.WithIssuer(unlisted)).Certificate, mtls.ReasonUnknownIssuer, ""},
		{"CA that the factory made", belowCA, mtls.ReasonUnknownIssuer, ""},
		{"name and key identifier of our issuer", forge(t, &impostor, own, device), mtls.ReasonChain, "board-1"},
		{"expired", fleet.Device("board-1", certtest.WithValidity(now.Add(-2*time.Hour), time.Hour)).Certificate, mtls.ReasonExpired, "board-1"},
		{"not yet valid", fleet.Device("board-1", certtest.WithValidity(now.Add(time.Hour), time.Hour)).Certificate, mtls.ReasonNotYetValid, "board-1"},
		{"server certificate", fleet.Server("hub.fleet.example").Certificate, mtls.ReasonUsage, "hub"},
		{"no extended key usage for TLS clients", forge(t, factory, factoryKey, changed(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} })), mtls.ReasonUsage, "board-1"},
		{"no SPIFFE ID", forge(t, factory, factoryKey, changed(func(c *x509.Certificate) { c.URIs = nil })), mtls.ReasonIdentity, ""},
		{"two SPIFFE IDs", forge(t, factory, factoryKey, changed(func(c *x509.Certificate) { c.URIs = append(c.URIs[:1:1], c.URIs...) })), mtls.ReasonIdentity, ""},
		{"another's common name", forge(t, factory, factoryKey, changed(func(c *x509.Certificate) { c.Subject.CommonName = "board-2" })), mtls.ReasonIdentity, ""},
		{"issuing CA as a client", tls.Certificate{Certificate: [][]byte{factory.Raw}, PrivateKey: factoryKey}, mtls.ReasonUnknownIssuer, ""},
		{"trust domain below ours", forge(t, factory, factoryKey, named("evil.fleet.example", identity.RoleDevice, "board-1")), mtls.ReasonTrustDomain, "board-1"},
		{"another trust domain", forge(t, factory, factoryKey, named("other.example", identity.RoleDevice, "board-1")), mtls.ReasonChain, "board-1"},
		{"operator", fleet.Operator("alice").Certificate, mtls.ReasonRole, "alice"},
		{"operator signed by a factory", forge(t, factory, factoryKey, named(domain, identity.RoleOperator, "alice")), mtls.ReasonRole, "alice"},
		{"service signed by a factory", forge(t, factory, factoryKey, named(domain, identity.RoleService, "collector")), mtls.ReasonRole, "collector"},
		{"station", forge(t, operational.Certificate(), operationalKey, named(domain, identity.RoleStation, "bench-1")), mtls.ReasonRole, "bench-1"},
		{"hub as a client", forge(t, operational.Certificate(), operationalKey, named(domain, identity.RoleHub, "hub")), mtls.ReasonRole, "hub"},
	} {
		for name, version := range versions {
			t.Run(c.name+" over "+name, func(t *testing.T) {
				t.Parallel()
				h := newHub(t, fleet, trust, nil, identity.RoleDevice, identity.RoleService)
				refusal := wantRefusal(t, connect(t, h.config, clientConfig(fleet, c.cert, version)), c.reason)
				if refusal == nil {
					return
				}
				if refusal.Identity.ID != c.names || !strings.HasPrefix(refusal.Error(), string(c.reason)+": ") || strings.Contains(refusal.Error(), "\n") {
					t.Errorf("the refusal of %+v says %q", refusal.Identity, refusal.Error())
				}
				if h.peer.Certificate != nil || h.peer.Identity.ID != "" {
					t.Errorf("a peer came with the refusal: %+v", h.peer)
				}
			})
		}
	}
}

func TestClientWithoutACertificateIsRefused(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	for name, version := range versions {
		h := newHub(t, fleet, fleet.Trust(), nil, identity.RoleDevice)
		client := clientConfig(fleet, tls.Certificate{}, version)
		client.Certificates = nil
		if o := connect(t, h.config, client); o.serverErr == nil || o.clientErr == nil {
			t.Errorf("%s: server %v, client %v", name, o.serverErr, o.clientErr)
		}
		_, err := h.verifier.Verify(tls.ConnectionState{}, identity.RoleDevice)
		if refusal, ok := errors.AsType[*mtls.Refusal](err); !ok || refusal.Reason != mtls.ReasonNoCertificate {
			t.Errorf("Verify of a connection without a certificate: %v", err)
		}
	}
}

func TestEachRoleIsRefusedWhereAnotherIsWanted(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	certs := map[identity.Role]*x509.Certificate{
		identity.RoleDevice: fleet.Device("a").Leaf, identity.RoleService: fleet.Service("a").Leaf, identity.RoleOperator: fleet.Operator("a").Leaf,
	}
	verifier, err := mtls.NewVerifier(fleet.Trust(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for role, cert := range certs {
		for wanted := range certs {
			_, err := verifier.VerifyCertificate(cert, x509.ExtKeyUsageClientAuth, wanted)
			if (err == nil) != (role == wanted) {
				t.Errorf("a %s where a %s is wanted: %v", role, wanted, err)
			}
		}
		if _, err := verifier.VerifyCertificate(cert, x509.ExtKeyUsageClientAuth); err == nil {
			t.Errorf("a %s where nobody is wanted is accepted", role)
		}
	}
}

func TestLeafIsValidToItsLastSecond(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	leaf := fleet.Device("a").Leaf
	for _, c := range []struct {
		now    time.Time
		reason mtls.Reason
	}{
		{leaf.NotBefore.Add(-time.Nanosecond), mtls.ReasonNotYetValid},
		{leaf.NotBefore, ""},
		{leaf.NotAfter, ""},
		{leaf.NotAfter.Add(time.Nanosecond), mtls.ReasonExpired},
	} {
		verifier, err := mtls.NewVerifier(fleet.Trust(), func() time.Time { return c.now })
		if err != nil {
			t.Fatal(err)
		}
		_, err = verifier.VerifyCertificate(leaf, x509.ExtKeyUsageClientAuth, identity.RoleDevice)
		refusal, _ := errors.AsType[*mtls.Refusal](err)
		if (err == nil) != (c.reason == "") || refusal != nil && refusal.Reason != c.reason {
			t.Errorf("at %s: %v, want %q", c.now, err, c.reason)
		}
	}
}

// authority returns a station's issuing CA for that key and time.
func authority(t *testing.T, fleet *certtest.Fleet, key crypto.Signer, from time.Time, valid time.Duration) *issuance.Issuer {
	t.Helper()
	cert, err := fleet.Root.At(func() time.Time { return from }).IssueCA(issuance.CARequest{
		Kind: identity.KindFactory, Name: "bench-9", TrustDomain: certtest.TrustDomain, PublicKey: key.Public(), Valid: valid,
	})
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := issuance.NewIssuer(cert, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}

func TestDeviceOutlivesItsFactoryIssuer(t *testing.T) {
	t.Parallel()
	fleet, key, start := certtest.New(t), newKey(t), time.Now().Add(-100*day)
	ended := authority(t, fleet, key, start, 30*day)
	good := fleet.Device("board-1", certtest.WithIssuer(ended), certtest.WithValidity(start.Add(day), 300*day)).Certificate
	template := named(certtest.TrustDomain, identity.RoleDevice, "board-2")
	template.NotBefore, template.NotAfter = start.Add(31*day), start.Add(300*day)
	late := forge(t, ended.Certificate(), key, template)
	trust := fleet.Trust()
	trust.Issuers = append(trust.Issuers, ended.Certificate())
	for name, version := range versions {
		h := newHub(t, fleet, trust, nil, identity.RoleDevice)
		if o := connect(t, h.config, clientConfig(fleet, good, version)); o.serverErr != nil || o.clientErr != nil {
			t.Errorf("%s: a device whose issuer has expired since: server %v, client %v", name, o.serverErr, o.clientErr)
		}
		if refusal := wantRefusal(t, connect(t, h.config, clientConfig(fleet, late, version)), mtls.ReasonChain); refusal == nil || !strings.Contains(refusal.Detail, "expired") {
			t.Errorf("%s: a device signed after the end of its issuer: %v", name, refusal)
		}
	}
}

// A station's authority is renewed for the same key, and the hub has the new one, the old one or both.
func TestRenewedAuthorityKeepsTheDevicesOfTheOldOne(t *testing.T) {
	t.Parallel()
	fleet, key, start := certtest.New(t), newKey(t), time.Now().Add(-100*day)
	before, after := authority(t, fleet, key, start, 30*day), authority(t, fleet, key, start.Add(40*day), 30*day)
	first := fleet.Device("board-1", certtest.WithIssuer(before), certtest.WithValidity(start.Add(day), 300*day)).Leaf
	second := fleet.Device("board-2", certtest.WithIssuer(after), certtest.WithValidity(start.Add(41*day), 300*day)).Leaf
	template := named(certtest.TrustDomain, identity.RoleDevice, "board-3")
	template.NotBefore, template.NotAfter = start.Add(80*day), start.Add(300*day)
	late := forge(t, after.Certificate(), key, template).Leaf
	for _, c := range []struct {
		name                string
		issuers             []*issuance.Issuer
		first, second, late bool
	}{
		{"the old one", []*issuance.Issuer{before}, true, false, false},
		{"the new one", []*issuance.Issuer{after}, true, true, false},
		{"both", []*issuance.Issuer{before, after}, true, true, false},
		{"both, newest first", []*issuance.Issuer{after, before}, true, true, false},
	} {
		trust := fleet.Trust()
		for _, i := range c.issuers {
			trust.Issuers = append(trust.Issuers, i.Certificate())
		}
		verifier, err := mtls.NewVerifier(trust, nil)
		if err != nil {
			t.Fatal(err)
		}
		for leaf, good := range map[*x509.Certificate]bool{first: c.first, second: c.second, late: c.late} {
			if _, err := verifier.VerifyCertificate(leaf, x509.ExtKeyUsageClientAuth, identity.RoleDevice); (err == nil) != good {
				t.Errorf("the hub has %s: %s: %v, want good: %t", c.name, leaf.Subject.CommonName, err, good)
			}
		}
	}
}

// Two CAs may claim one key identifier: it is theirs to choose. The signature tells them apart.
func TestIssuersOfOneKeyIdentifierAreToldApartByTheirSignature(t *testing.T) {
	t.Parallel()
	rootKey := newKey(t)
	root, err := issuance.NewRoot(certtest.TrustDomain, rootKey, 0, func() time.Time { return time.Now().Add(-day) })
	if err != nil {
		t.Fatal(err)
	}
	trust := mtls.Trust{TrustDomain: certtest.TrustDomain, Roots: []*x509.Certificate{root}}
	var leaves []*x509.Certificate
	for _, name := range []string{"bench-1", "bench-2"} {
		ca := forge(t, root, rootKey, x509.Certificate{
			Subject: pkix.Name{CommonName: name, OrganizationalUnit: []string{string(identity.KindFactory)}},
			IsCA:    true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte("the same"),
		})
		trust.Issuers = append(trust.Issuers, ca.Leaf)
		leaves = append(leaves, forge(t, ca.Leaf, ca.PrivateKey.(crypto.Signer), named(certtest.TrustDomain, identity.RoleDevice, "of-"+name)).Leaf)
	}
	verifier, err := mtls.NewVerifier(trust, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, leaf := range leaves {
		if peer, err := verifier.VerifyCertificate(leaf, x509.ExtKeyUsageClientAuth, identity.RoleDevice); err != nil || !peer.Issuer.Equal(trust.Issuers[i]) {
			t.Errorf("%s: %v, %v", leaf.Subject, peer.Issuer, err)
		}
	}
	stranger := named(certtest.TrustDomain, identity.RoleDevice, "of-nobody")
	impostor := *trust.Issuers[0]
	own := newKey(t)
	impostor.PublicKey = own.Public()
	_, err = verifier.VerifyCertificate(forge(t, &impostor, own, stranger).Leaf, x509.ExtKeyUsageClientAuth, identity.RoleDevice)
	if refusal, ok := errors.AsType[*mtls.Refusal](err); !ok || refusal.Reason != mtls.ReasonUnknownIssuer {
		t.Errorf("signed by neither: %v", err)
	}
}

func TestOnlyIssuingCAsUnderTheRootAreTrusted(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	verifier, err := mtls.NewVerifier(fleet.Trust(), nil)
	if err != nil {
		t.Fatal(err)
	}
	below := func(kind identity.IssuerKind, serial string) x509.Certificate {
		return x509.Certificate{
			Subject: pkix.Name{CommonName: serial, OrganizationalUnit: []string{string(kind)}},
			IsCA:    true, KeyUsage: x509.KeyUsageCertSign,
		}
	}
	device := fleet.Device("board-1").Leaf
	for name, issuer := range map[string]*x509.Certificate{
		"root":                   fleet.Root.Certificate(),
		"another fleet's":        fleet.Foreign().Factory.Certificate(),
		"CA the factory made":    forge(t, fleet.Factory.Certificate(), fleet.FactoryKey, below(identity.KindFactory, "bench-2")).Leaf,
		"promoted by itself":     forge(t, fleet.Factory.Certificate(), fleet.FactoryKey, below(identity.KindOperational, "bench-1")).Leaf,
		"self-signed":            forge(t, nil, newKey(t), below(identity.KindFactory, "bench-2")).Leaf,
		"of no kind":             forge(t, fleet.Factory.Certificate(), fleet.FactoryKey, below("", "bench-2")).Leaf,
		"leaf":                   device,
		"without key identifier": {IsCA: true, BasicConstraintsValid: true, Subject: pkix.Name{OrganizationalUnit: []string{string(identity.KindFactory)}}},
	} {
		trust := fleet.Trust()
		trust.Issuers = append(trust.Issuers, issuer)
		if _, err := mtls.NewVerifier(trust, nil); err == nil {
			t.Errorf("%s: a verifier was made", name)
		}
		if err := verifier.SetTrust(trust); err == nil {
			t.Errorf("%s: it became trusted", name)
		}
		if got := verifier.Trust(); len(got.Issuers) != 2 {
			t.Errorf("%s: the refused trust is in force: %d issuers", name, len(got.Issuers))
		}
		if _, err := verifier.VerifyCertificate(device, x509.ExtKeyUsageClientAuth, identity.RoleDevice); err != nil {
			t.Errorf("%s: after the refused SetTrust: %v", name, err)
		}
	}
}

func TestTrustMayChangeWhilePeersAreVerified(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	leaf, full := fleet.Device("board-1").Leaf, fleet.Trust()
	without := full
	without.Issuers = full.Issuers[:1]
	verifier, err := mtls.NewVerifier(full, nil)
	if err != nil {
		t.Fatal(err)
	}
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for range 50 {
				_, err := verifier.VerifyCertificate(leaf, x509.ExtKeyUsageClientAuth, identity.RoleDevice)
				if refusal, ok := errors.AsType[*mtls.Refusal](err); err != nil && (!ok || refusal.Reason != mtls.ReasonUnknownIssuer) {
					t.Errorf("while the trust changes: %v", err)
				}
			}
		})
	}
	for range 50 {
		if err := errors.Join(verifier.SetTrust(without), verifier.SetTrust(full)); err != nil {
			t.Error(err)
		}
	}
	workers.Wait()
}
