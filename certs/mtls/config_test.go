package mtls_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

func TestHubSpeaksModernTLSOnly(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	cert := fleet.Device("board-1").Certificate
	suite := func(ids ...uint16) func(*tls.Config) {
		return func(c *tls.Config) {
			c.MinVersion, c.MaxVersion, c.CipherSuites = tls.VersionTLS12, tls.VersionTLS12, ids
		}
	}
	version := func(v uint16) func(*tls.Config) { return func(c *tls.Config) { c.MinVersion, c.MaxVersion = v, v } }
	curve := func(ids ...tls.CurveID) func(*tls.Config) { return func(c *tls.Config) { c.CurvePreferences = ids } }
	for _, c := range []struct {
		name   string
		change func(*tls.Config)
		good   bool
	}{
		{"TLS 1.3", version(tls.VersionTLS13), true},
		{"TLS 1.2", version(tls.VersionTLS12), true},
		{"TLS 1.1", version(tls.VersionTLS11), false},
		{"TLS 1.0", version(tls.VersionTLS10), false},
		{"ECDHE-ECDSA AES-128-GCM", suite(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256), true},
		{"ECDHE-ECDSA AES-256-GCM", suite(tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384), true},
		{"ECDHE-ECDSA ChaCha20-Poly1305", suite(tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256), true},
		{"ECDHE-ECDSA with CBC", suite(tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256), false},
		{"ECDHE-ECDSA with RC4", suite(tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA), false},
		{"ECDHE-RSA", suite(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256), false},
		{"RSA key exchange", suite(tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_CBC_SHA), false},
		{"P-256", curve(tls.CurveP256), true},
		{"X25519", curve(tls.X25519), true},
		{"P-384 and P-521", curve(tls.CurveP384, tls.CurveP521), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t, fleet, fleet.Trust(), nil, identity.RoleDevice)
			// A client of somebody else's making, with no policy of its own.
			client := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: x509.NewCertPool(), ServerName: "127.0.0.1"}
			client.RootCAs.AddCert(fleet.Root.Certificate())
			c.change(client)
			o := connect(t, h.config, client)
			if good := o.serverErr == nil && o.clientErr == nil; good != c.good {
				t.Errorf("server %v, client %v; want good: %t", o.serverErr, o.clientErr, c.good)
			}
			if h.config.MinVersion != tls.VersionTLS12 { // today's suites exclude older ones as well
				t.Errorf("the hub's minimum is %#x", h.config.MinVersion)
			}
			if !c.good && h.calls > 0 {
				t.Error("the handshake got as far as the certificate")
			}
		})
	}
}

func TestBothEndsAgreeOnACurveWithoutARetry(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	h := newHub(t, fleet, fleet.Trust(), nil, identity.RoleDevice)
	o := connect(t, h.config, clientConfig(fleet, fleet.Device("board-1").Certificate, tls.VersionTLS13))
	if o.clientErr != nil || o.client.CurveID != tls.X25519 || o.client.HelloRetryRequest || o.server.HelloRetryRequest {
		t.Errorf("curve %s, retry %t, %v", o.client.CurveID, o.client.HelloRetryRequest, o.clientErr)
	}
}

func TestApplicationProtocolIsNegotiatedWhereOffered(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	for _, c := range []struct {
		server, client []string
		want           string
		good           bool
	}{
		{nil, nil, "", true},
		{nil, []string{"mqtt"}, "", true},
		{[]string{"mqtt"}, nil, "", true},
		{[]string{"mqtt"}, []string{"h2", "mqtt"}, "mqtt", true},
		{[]string{"mqtt"}, []string{"h2"}, "", false},
	} {
		h := newHub(t, fleet, fleet.Trust(), nil, identity.RoleDevice)
		cert := fleet.Server().Certificate
		server := mtls.ServerConfig(mtls.ServerOptions{
			Certificate: func() (*tls.Certificate, error) { return &cert, nil }, Verify: h.config.VerifyConnection, NextProtos: c.server,
		})
		device := fleet.Device("board-1")
		client := mtls.ClientConfig(mtls.ClientOptions{Certificate: device.Certificate, Roots: device.Roots, ServerName: "localhost", NextProtos: c.client})
		o := connect(t, server, client)
		if good := o.serverErr == nil && o.clientErr == nil; good != c.good || o.client.NegotiatedProtocol != c.want {
			t.Errorf("server %q, client %q: agreed on %q, %v, %v", c.server, c.client, o.client.NegotiatedProtocol, o.serverErr, o.clientErr)
		}
	}
}

func TestClientTalksToAHubOnly(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	operational, operationalKey := fleet.IssuingCA(identity.KindOperational, "other")
	// server is the template of a certificate good for TLS servers at the address that the client dials.
	server := func(role identity.Role, id string) x509.Certificate {
		return x509.Certificate{
			Subject:     pkix.Name{CommonName: id},
			URIs:        []*url.URL{{Scheme: "spiffe", Host: certtest.TrustDomain, Path: "/" + string(role) + "/" + id}},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}
	}
	chained := func(cert tls.Certificate, issuer *x509.Certificate) tls.Certificate {
		cert.Certificate = append(cert.Certificate, issuer.Raw)
		return cert
	}
	forged := func(template x509.Certificate) tls.Certificate {
		return chained(forge(t, operational.Certificate(), operationalKey, template), operational.Certificate())
	}
	nameless := server(identity.RoleHub, "hub")
	nameless.URIs = nil
	elsewhere := server(identity.RoleHub, "hub")
	elsewhere.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)}
	own := newKey(t)
	for _, c := range []struct {
		name    string
		cert    tls.Certificate
		because string // "": accepted
	}{
		{"the hub", fleet.Server().Certificate, ""},
		{"a hub of a further operational CA", forged(server(identity.RoleHub, "hub")), ""},
		{"a device", fleet.Device("board-1").Certificate, "certificate"},
		{"a service", fleet.Service("collector").Certificate, "certificate"},
		{"a device with everything a server needs", forged(server(identity.RoleDevice, "board-1")), "the certificate of another role (device)"},
		{"a service with everything a server needs", forged(server(identity.RoleService, "collector")), "the certificate of another role (service)"},
		{"a hub signed by a factory", chained(forge(t, fleet.Factory.Certificate(), fleet.FactoryKey, server(identity.RoleHub, "hub")), fleet.Factory.Certificate()), "x509: "},
		{"a server without an identity", forged(nameless), "is no hub"},
		{"a hub of another address", forged(elsewhere), "10.0.0.1"},
		{"another fleet's hub", fleet.Foreign().Server().Certificate, "x509: "},
		{"a self-signed hub", forge(t, nil, own, server(identity.RoleHub, "hub")), "x509: "},
		{"a hub that leaves out its issuer", forge(t, operational.Certificate(), operationalKey, server(identity.RoleHub, "hub")), "x509: "},
	} {
		for name, version := range versions {
			t.Run(c.name+" over "+name, func(t *testing.T) {
				t.Parallel()
				cert := c.cert
				config := mtls.ServerConfig(mtls.ServerOptions{
					Certificate: func() (*tls.Certificate, error) { return &cert, nil },
					Verify:      func(tls.ConnectionState) error { return nil },
				})
				o := connect(t, config, clientConfig(fleet, fleet.Device("board-1").Certificate, version))
				if c.because == "" && (o.clientErr != nil || o.serverErr != nil) || c.because != "" && (o.clientErr == nil || !strings.Contains(o.clientErr.Error(), c.because)) {
					t.Errorf("client %v, server %v; want %q", o.clientErr, o.serverErr, c.because)
				}
			})
		}
	}
}

func TestClientSpeaksModernTLSOnly(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	cert := fleet.Server().Certificate
	device := fleet.Device("board-1")
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.1": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 },
		"CBC": func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		},
		"P-521": func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP521} },
	} {
		server := &tls.Config{Certificates: []tls.Certificate{cert}}
		change(server)
		if o := connect(t, server, device.ClientConfig()); o.clientErr == nil {
			t.Errorf("%s: the client went along", name)
		}
	}
}
