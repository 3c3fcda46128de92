// Package mtls has the TLS policy of every connection Fleethub makes or accepts, and
// the verification of peers.
//
// TLS 1.3, or 1.2 with ephemeral ECDH, ECDSA certificates and an AEAD; no
// renegotiation, no compression, no plain text: see Profile for the details. Both
// sides present a certificate. Every check of the peer runs in VerifyConnection, which crypto/tls
// calls on full and on resumed handshakes; VerifyPeerCertificate, which it skips on
// resumption, is not used.
package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"github.com/fleethub/fleethub/certs/identity"
)

// ServerOptions is what a hub's TLS listener needs.
type ServerOptions struct {
	// Certificate returns the server certificate at each handshake, so that a
	// reload needs no restart. See Reloader.
	Certificate func() (*tls.Certificate, error)

	// Verify decides about the peer, on full and resumed handshakes. Required.
	Verify func(tls.ConnectionState) error

	// NextProtos are the ALPN protocols offered; none, and a client's are ignored.
	NextProtos []string

	Profile Profile // "": ProfileDefault
}

// ServerConfig returns the TLS configuration of a hub's listener. A connection
// without a client certificate doesn't pass its handshake.
func ServerConfig(o ServerOptions) *tls.Config {
	p := o.Profile.policy()
	return &tls.Config{
		MinVersion:       tls.VersionTLS12,
		CipherSuites:     p.suites,
		CurvePreferences: p.accepted,
		NextProtos:       o.NextProtos,
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return o.Certificate() },
		// Chains are built by Verifier, from the issuers the hub knows, and not by
		// crypto/tls, which would do it on full handshakes only.
		ClientAuth:       tls.RequireAnyClientCert,
		VerifyConnection: o.Verify,
	}
}

// ClientOptions is what a client of the hub needs.
type ClientOptions struct {
	Certificate tls.Certificate
	Roots       []*x509.Certificate    // the trust bundle; system roots are never used
	ServerName  string                 // the host name dialled; the hub's certificate must have it
	Sessions    tls.ClientSessionCache // nil: no resumption
	NextProtos  []string
	Profile     Profile // "": ProfileDefault
}

// ClientConfig returns the TLS configuration of a device, service, operator or
// station. The hub's certificate must chain to Roots, have ServerName, and be a hub's:
// a device's certificate can't play the hub.
func ClientConfig(o ClientOptions) *tls.Config {
	roots := x509.NewCertPool()
	for _, r := range o.Roots {
		roots.AddCert(r)
	}
	p := o.Profile.policy()
	return &tls.Config{
		MinVersion:         p.clientMinimum,
		CipherSuites:       p.suites,
		CurvePreferences:   p.offered,
		Certificates:       []tls.Certificate{o.Certificate},
		RootCAs:            roots,
		ServerName:         o.ServerName,
		ClientSessionCache: o.Sessions,
		NextProtos:         o.NextProtos,
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := identity.FromCertificate(cs.PeerCertificates[0])
			if err != nil {
				return fmt.Errorf("the server at %s is no hub: %w", o.ServerName, err)
			}
			if id.Role != identity.RoleHub {
				return fmt.Errorf("the server at %s presented the certificate of another role (%s), not a hub's", o.ServerName, id.Role)
			}
			return requireIssuerOf(id, cs.VerifiedChains)
		},
	}
}

// requireIssuerOf refuses an identity whose role its issuer may not sign: a stolen
// factory key makes no hub.
func requireIssuerOf(id identity.Identity, chains [][]*x509.Certificate) error {
	for _, chain := range chains {
		if len(chain) < 2 {
			continue
		}
		if kind, err := identity.KindOf(chain[1]); err == nil && kind.MayIssue(id.Role) {
			return nil
		}
	}
	return fmt.Errorf("%s is signed by no CA that may sign that role", id)
}
