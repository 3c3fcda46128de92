package mtls

import (
	"crypto/tls"
	"fmt"
)

// Profile is a named TLS policy. Every profile is ephemeral ECDH with ECDSA
// certificates and an AEAD: RSA key exchange, static DH, CBC, SHA-1 signatures,
// TLS below 1.2, renegotiation and compression are in none of them.
//
// A server of any profile takes the key share that a client of any profile sends
// first, so no pair of ours pays a HelloRetryRequest (300 bytes and a round trip).
type Profile string

// The profiles.
const (
	// ProfileDefault is TLS 1.3 and 1.2 with P-256 or X25519. A client offers X25519,
	// whose key shares are 66 bytes shorter in both directions together; in crypto/tls
	// on amd64 it costs the hub 26 µs more than P-256.
	ProfileDefault Profile = "default"

	// ProfileConstrained is for boards whose fast curve is P-256, in hardware or in
	// assembly: a client speaks TLS 1.3 only, offers P-256 only, and lists nothing it
	// doesn't need. A server takes AES-128-GCM and ChaCha20-Poly1305 in
	// TLS 1.2; in TLS 1.3 crypto/tls doesn't let itself be restricted.
	ProfileConstrained Profile = "constrained"

	// ProfilePQ adds X25519MLKEM768, a hybrid with a post-quantum key encapsulation
	// (some 2.3 kB more per full handshake), against traffic recorded today.
	ProfilePQ Profile = "pq"
)

// ParseProfile returns the profile of that name.
func ParseProfile(name string) (Profile, error) {
	switch p := Profile(name); p {
	case ProfileDefault, ProfileConstrained, ProfilePQ:
		return p, nil
	}
	return "", fmt.Errorf("TLS profile %.40q is not one of default, constrained, pq", name)
}

// policy is what a profile means in the terms of crypto/tls.
type policy struct {
	suites        []uint16 // of TLS 1.2; those of 1.3 are fixed and all good
	accepted      []tls.CurveID
	offered       []tls.CurveID
	clientMinimum uint16
}

func (p Profile) policy() policy {
	const (
		aes128   = tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
		aes256   = tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
		chacha20 = tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
	)
	switch p {
	case ProfileConstrained:
		return policy{
			suites:        []uint16{aes128, chacha20},
			accepted:      []tls.CurveID{tls.CurveP256, tls.X25519},
			offered:       []tls.CurveID{tls.CurveP256},
			clientMinimum: tls.VersionTLS13,
		}
	case ProfilePQ:
		return policy{
			suites:        []uint16{aes128, aes256, chacha20},
			accepted:      []tls.CurveID{tls.X25519MLKEM768, tls.CurveP256, tls.X25519},
			offered:       []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
			clientMinimum: tls.VersionTLS12,
		}
	default:
		return policy{
			suites:        []uint16{aes128, aes256, chacha20},
			accepted:      []tls.CurveID{tls.CurveP256, tls.X25519},
			offered:       []tls.CurveID{tls.X25519},
			clientMinimum: tls.VersionTLS12,
		}
	}
}
