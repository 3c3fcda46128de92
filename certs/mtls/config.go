// Package mtls has the TLS policy of every connection Fleethub makes or accepts, and
// the verification of peers.
//
// TLS 1.3, or 1.2 with ephemeral ECDH, ECDSA certificates and an AEAD; P-256 or
// X25519; no renegotiation, no compression, no plain text. Both sides present a
// certificate. Every check of the peer runs in VerifyConnection, which crypto/tls
// calls on full and on resumed handshakes; VerifyPeerCertificate, which it skips on
// resumption, is not used.
package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"github.com/fleethub/fleethub/certs/identity"
)

// suites12 are the TLS 1.2 cipher suites; those of 1.3 are fixed and all good.
func suites12() []uint16 {
	return []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	}
}

// ServerOptions is what a hub's TLS listener needs.
type ServerOptions struct {
	// Certificate returns the server certificate at each handshake, so that a
	// reload needs no restart. See Reloader.
	Certificate func() (*tls.Certificate, error)

	// Verify decides about the peer, on full and resumed handshakes. Required.
	Verify func(tls.ConnectionState) error

	// NextProtos are the ALPN protocols offered; none, and a client's are ignored.
	NextProtos []string
}

// ServerConfig returns the TLS configuration of a hub's listener. A connection
// without a client certificate doesn't pass its handshake.
func ServerConfig(o ServerOptions) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS12,
		CipherSuites:     suites12(),
		CurvePreferences: []tls.CurveID{tls.CurveP256, tls.X25519},
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
}

// ClientConfig returns the TLS configuration of a device, service, operator or
// station. The hub's certificate must chain to Roots, have ServerName, and be a hub's:
// a device's certificate can't play the hub.
func ClientConfig(o ClientOptions) *tls.Config {
	roots := x509.NewCertPool()
	for _, r := range o.Roots {
		roots.AddCert(r)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		CipherSuites:       suites12(),
		CurvePreferences:   []tls.CurveID{tls.CurveP256},
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
				return fmt.Errorf("the server at %s presented a %s certificate, not a hub's", o.ServerName, id.Role)
			}
			return nil
		},
	}
}
