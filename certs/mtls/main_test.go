package mtls_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// versions are both that a hub speaks.
var versions = map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13}

// timeout ends a handshake that hangs; a good one takes milliseconds.
const timeout = 30 * time.Second

// outcome is how a connection went, as each side saw it.
type outcome struct {
	server, client       tls.ConnectionState
	serverErr, clientErr error
}

// connect has a client and a server shake hands over loopback and exchange a byte each way, so that in TLS 1.3 the client
// learns whether it was refused, and has its session tickets.
func connect(t testing.TB, server, client *tls.Config) outcome {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var o outcome
	served := make(chan struct{})
	go func() {
		defer close(served)
		raw, err := listener.Accept()
		if err != nil {
			o.serverErr = err
			return
		}
		o.server, o.serverErr = exchange(tls.Server(raw, server), (*tls.Conn).Write, (*tls.Conn).Read)
	}()
	raw, err := net.DialTimeout("tcp", listener.Addr().String(), timeout)
	if err != nil {
		t.Fatal(err)
	}
	o.client, o.clientErr = exchange(tls.Client(raw, client), (*tls.Conn).Read, (*tls.Conn).Write)
	<-served
	return o
}

func exchange(conn *tls.Conn, steps ...func(*tls.Conn, []byte) (int, error)) (tls.ConnectionState, error) {
	defer conn.Close()
	err := errors.Join(conn.SetDeadline(time.Now().Add(timeout)), conn.Handshake())
	for _, step := range steps {
		if err == nil {
			var n int
			if n, err = step(conn, []byte{0}); n == 1 {
				err = nil // the byte may come with the end of the connection
			}
		}
	}
	return conn.ConnectionState(), err
}

// hub is the server side of these tests: what a hub's listener is made of.
type hub struct {
	config   *tls.Config
	verifier *mtls.Verifier
	peer     mtls.Peer // the last that Verify let in
	err      error     // and what it said
	calls    int
}

// newHub returns a hub with a fleet's server certificate that takes those roles. It serves one connection at a time.
func newHub(t testing.TB, fleet *certtest.Fleet, trust mtls.Trust, now func() time.Time, roles ...identity.Role) *hub {
	t.Helper()
	h := &hub{}
	var err error
	if h.verifier, err = mtls.NewVerifier(trust, now); err != nil {
		t.Fatal(err)
	}
	cert := fleet.Server("hub.fleet.example").Certificate
	h.config = mtls.ServerConfig(mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
		Verify: func(cs tls.ConnectionState) error {
			h.calls++
			h.peer, h.err = h.verifier.Verify(cs, roles...)
			return h.err
		},
	})
	return h
}

// clientConfig is what a client of this fleet dials with, at that version of TLS.
func clientConfig(fleet *certtest.Fleet, cert tls.Certificate, version uint16) *tls.Config {
	config := mtls.ClientConfig(mtls.ClientOptions{Certificate: cert, Roots: []*x509.Certificate{fleet.Root.Certificate()}, ServerName: "127.0.0.1"})
	config.MinVersion, config.MaxVersion = version, version
	return config
}

// wantRefusal fails the test unless both sides saw the connection end, for that reason.
func wantRefusal(t testing.TB, o outcome, reason mtls.Reason) *mtls.Refusal {
	t.Helper()
	refusal, ok := errors.AsType[*mtls.Refusal](o.serverErr)
	if !ok || refusal.Reason != reason || refusal.Detail == "" {
		t.Errorf("the server says %v; want the reason %s", o.serverErr, reason)
	}
	if o.clientErr == nil {
		t.Error("the client didn't notice")
	}
	return refusal
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// forge signs whatever the template says with an issuing CA's key, as somebody who stole it can.
func forge(t testing.TB, by *x509.Certificate, byKey crypto.Signer, template x509.Certificate) tls.Certificate {
	t.Helper()
	key := newKey(t)
	return forgeFor(t, by, byKey, template, key)
}

func forgeFor(t testing.TB, by *x509.Certificate, byKey crypto.Signer, template x509.Certificate, key crypto.Signer) tls.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(666)
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	template.BasicConstraintsValid = true
	template.KeyUsage |= x509.KeyUsageDigitalSignature
	if by == nil {
		by = &template
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, by, key.Public(), byKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// named is the template of a client certificate for an identity.
func named(domain string, role identity.Role, id string) x509.Certificate {
	return x509.Certificate{
		Subject:     pkix.Name{CommonName: id},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: domain, Path: "/" + string(role) + "/" + id}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}
