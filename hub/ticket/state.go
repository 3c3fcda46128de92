package ticket

import (
	"crypto/tls"
	"crypto/x509"

	"golang.org/x/crypto/cryptobyte"
)

// sessionTypeServer is the SessionStateType of a server's session.
const sessionTypeServer = 1

// state returns the session in the encoding that tls.ParseSessionState documents,
// for a client that had presented leaf, or leaf and issuer.
func (s *session) state(leaf, issuer *x509.Certificate) []byte {
	var certs [][]byte
	for _, c := range []*x509.Certificate{leaf, issuer}[:s.chain] {
		certs = append(certs, c.Raw)
	}
	size := 64 + len(s.secret)
	for _, c := range certs {
		size += len(c) + 5
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, size))
	b.AddUint16(s.version)
	b.AddUint8(sessionTypeServer)
	b.AddUint16(s.suite)
	b.AddUint64(s.created)
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(s.secret) })
	b.AddUint24(0) // extra
	if s.ems {
		b.AddUint8(1)
	} else {
		b.AddUint8(0)
	}
	b.AddUint8(0) // early data
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, c := range certs {
			b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(c) })
			b.AddUint16(0) // extensions: neither staple nor timestamps
		}
	})
	b.AddUint24(0) // verified chains: certs/mtls verifies, crypto/tls does not
	if s.version != tls.VersionTLS13 {
		b.AddUint16(uint16(s.curve))
	}
	return b.BytesOrPanic() // every length fits: certificates were parsed from a TLS message
}

// parseState reads of an encoded session what a compact ticket keeps. It does not
// look at the rest: the caller compares the whole with what it would rebuild.
func parseState(encoded []byte) (session, bool) {
	var s session
	var kind, ems, early uint8
	var secret, extra, certs, chains cryptobyte.String
	in := cryptobyte.String(encoded)
	ok := in.ReadUint16(&s.version) && in.ReadUint8(&kind) && in.ReadUint16(&s.suite) &&
		in.ReadUint64(&s.created) && in.ReadUint8LengthPrefixed(&secret) &&
		in.ReadUint24LengthPrefixed(&extra) && in.ReadUint8(&ems) && in.ReadUint8(&early) &&
		in.ReadUint24LengthPrefixed(&certs) && in.ReadUint24LengthPrefixed(&chains)
	if !ok || kind != sessionTypeServer || len(secret) != secret256 && len(secret) != secret384 {
		return s, false
	}
	switch s.version {
	case tls.VersionTLS13:
	case tls.VersionTLS12:
		var curve uint16
		if !in.ReadUint16(&curve) {
			return s, false
		}
		s.curve = tls.CurveID(curve)
	default:
		return s, false
	}
	s.ems, s.secret = ems == 1, secret
	return s, true
}
