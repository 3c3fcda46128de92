package ticket

import (
	"crypto/tls"
	"encoding/binary"
	"slices"

	"golang.org/x/crypto/cryptobyte"
)

// sessionTypeServer is the SessionStateType of a server's session.
const sessionTypeServer = 1

// appendState appends the session in the encoding that tls.ParseSessionState
// documents, for a client that had presented leaf, or leaf and issuer, in DER.
func (s *session) appendState(b []byte, leaf, issuer []byte) []byte {
	certs := [...][]byte{leaf, issuer}
	size := 0
	for _, c := range certs[:s.kind.chain] {
		size += 3 + len(c) + 2
	}
	b = slices.Grow(b, 64+len(s.secret)+size)
	b = binary.BigEndian.AppendUint16(b, s.kind.version)
	b = append(b, sessionTypeServer)
	b = binary.BigEndian.AppendUint16(b, s.kind.suite)
	b = binary.BigEndian.AppendUint64(b, s.created)
	b = append(b, byte(len(s.secret)))
	b = append(b, s.secret...)
	b = append(b, 0, 0, 0) // extra: none
	if s.kind.ems {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = append(b, 0) // early data: none
	b = appendUint24(b, size)
	for _, c := range certs[:s.kind.chain] {
		b = appendUint24(b, len(c))
		b = append(b, c...)
		b = append(b, 0, 0) // extensions: neither staple nor timestamps
	}
	b = append(b, 0, 0, 0) // verified chains: certs/mtls verifies, crypto/tls does not
	if s.kind.version != tls.VersionTLS13 {
		b = binary.BigEndian.AppendUint16(b, uint16(s.kind.curve))
	}
	return b
}

func appendUint24(b []byte, n int) []byte {
	return append(b, byte(n>>16), byte(n>>8), byte(n))
}

// parseState reads of an encoded session what a compact ticket keeps. It does not
// look at the rest: the caller compares the whole with what it would rebuild.
func parseState(encoded []byte) (session, bool) {
	var s session
	var kind, ems, early uint8
	var secret, extra, certs, chains cryptobyte.String
	in := cryptobyte.String(encoded)
	ok := in.ReadUint16(&s.kind.version) && in.ReadUint8(&kind) && in.ReadUint16(&s.kind.suite) &&
		in.ReadUint64(&s.created) && in.ReadUint8LengthPrefixed(&secret) &&
		in.ReadUint24LengthPrefixed(&extra) && in.ReadUint8(&ems) && in.ReadUint8(&early) &&
		in.ReadUint24LengthPrefixed(&certs) && in.ReadUint24LengthPrefixed(&chains)
	if !ok || kind != sessionTypeServer || len(secret) != secret256 && len(secret) != secret384 {
		return s, false
	}
	switch s.kind.version {
	case tls.VersionTLS13:
	case tls.VersionTLS12:
		var curve uint16
		if !in.ReadUint16(&curve) {
			return s, false
		}
		s.kind.curve = tls.CurveID(curve)
	default:
		return s, false
	}
	s.kind.ems, s.secret = ems == 1, secret
	var leaf cryptobyte.String
	if certs.ReadUint24LengthPrefixed(&leaf) {
		s.leaf = leaf
	}
	return s, true
}
