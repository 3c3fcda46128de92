// Package ticket makes TLS session tickets that are small, survive a restart of the
// hub, and stop working the moment their device does.
//
// crypto/tls puts the client's whole chain into a ticket, which a board then sends
// back at every reconnect. Ours names the certificate by fingerprint; the certificate
// comes from the hub's registry when the ticket is presented, which is also where a
// revoked, suspended or replaced one is not found any more. What a ticket proves is
// exactly what it proved when it was made: that its bearer held the key of that
// certificate then. Every check of the certificate is repeated by the listener's
// VerifyConnection on the resumed handshake.
//
// Layout (80 to 108 octets): key ID (4), nonce (12), then sealed with AES-256-GCM under
// that key, the first 16 octets being the additional data:
//
//	flags (1)  cipher suite (2)  created (5, Unix seconds)  epoch (2)
//	fingerprint (16)  curve (2, TLS 1.2 only)  secret (32 or 48)
package ticket

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"
)

// FingerprintSize is how many octets of the certificate's SHA-256 a ticket holds. The
// ticket is sealed, so this need only tell certificates of one fleet apart.
const FingerprintSize = 16

// Fingerprint is the beginning of the SHA-256 of a certificate's DER.
type Fingerprint [FingerprintSize]byte

// FingerprintOf returns the fingerprint of a certificate.
func FingerprintOf(cert *x509.Certificate) Fingerprint {
	sum := sha256.Sum256(cert.Raw)
	return Fingerprint(sum[:FingerprintSize])
}

// Certificates finds the certificate that a ticket names, and its issuer. It returns
// false for one that may not be resumed with: unknown, revoked, suspended, replaced,
// or of an issuer that is no longer trusted. It is called in handshakes, concurrently,
// and does no I/O.
type Certificates interface {
	Resumable(Fingerprint) (leaf, issuer *x509.Certificate, ok bool)
}

// Stats counts what became of tickets. All fields may be read at any time.
type Stats struct {
	Minted   atomic.Uint64 // compact tickets made
	Fallback atomic.Uint64 // tickets that crypto/tls made, because ours would not rebuild their session
	Accepted atomic.Uint64 // compact tickets turned back into a session
	Rejected atomic.Uint64 // presented and worth nothing: a full handshake followed
}

// Codec turns sessions into tickets and back. Set it up with New; it is safe for
// concurrent use.
type Codec struct {
	Stats Stats

	ring     *Ring
	certs    Certificates
	fallback *tls.Config // its ticket keys follow the ring's
	now      func() time.Time
}

// New returns a codec over that ring. A nil now is time.Now.
func New(ring *Ring, certs Certificates, now func() time.Time) *Codec {
	if now == nil {
		now = time.Now
	}
	c := &Codec{ring: ring, certs: certs, fallback: &tls.Config{}, now: now}
	ring.onChange(func(keys [][32]byte) { c.fallback.SetSessionTicketKeys(keys) })
	return c
}

// Install has config use the codec's tickets.
func (c *Codec) Install(config *tls.Config) {
	config.WrapSession = c.Wrap
	config.UnwrapSession = c.Unwrap
}

// session is what a compact ticket says.
type session struct {
	version     uint16
	suite       uint16
	created     uint64 // Unix seconds
	ems         bool   // extended master secret, RFC 7627
	chain       int    // certificates the client had presented: 1, or 2 with its issuer
	epoch       uint16 // of the issuer
	fingerprint Fingerprint
	curve       uint16 // TLS 1.2 only
	secret      []byte
}

const (
	flagTLS13 = 1 << iota
	flagEMS
	flagIssuer
	flagsKnown = flagTLS13 | flagEMS | flagIssuer
)

const (
	headerSize = keyIDSize + nonceSize
	fixedSize  = 1 + 2 + 5 + 2 + FingerprintSize
	secret256  = 32 // of suites with SHA-256
	secret384  = 48 // of suites with SHA-384, and every TLS 1.2 master secret
	tagSize    = 16

	// MaxSize is the size of the largest compact ticket.
	MaxSize = headerSize + fixedSize + 2 + secret384 + tagSize
)

// clockSkew is how far in the future a ticket may have been made.
const clockSkew = time.Minute

// Wrap is a tls.Config.WrapSession. A session that a compact ticket can't stand for is
// left to crypto/tls, under keys of the same ring.
func (c *Codec) Wrap(cs tls.ConnectionState, state *tls.SessionState) ([]byte, error) {
	if sealed, ok := c.compact(cs, state); ok {
		c.Stats.Minted.Add(1)
		return sealed, nil
	}
	c.Stats.Fallback.Add(1)
	return c.fallback.EncryptTicket(cs, state)
}

func (c *Codec) compact(cs tls.ConnectionState, state *tls.SessionState) ([]byte, bool) {
	encoded, err := state.Bytes()
	if err != nil || len(cs.PeerCertificates) == 0 || len(cs.PeerCertificates) > 2 {
		return nil, false
	}
	s, ok := parseState(encoded)
	if !ok {
		return nil, false
	}
	s.chain = len(cs.PeerCertificates)
	s.fingerprint = FingerprintOf(cs.PeerCertificates[0])
	leaf, issuer, ok := c.certs.Resumable(s.fingerprint)
	if !ok {
		return nil, false
	}
	// What will be rebuilt must be what crypto/tls would have stored, to the octet: a
	// Go version that stores more makes us fall back, not lose something.
	if string(s.state(leaf, issuer)) != string(encoded) {
		return nil, false
	}
	s.epoch = c.ring.Epoch(issuer.SubjectKeyId)
	sealed, err := c.ring.seal(s.encode())
	return sealed, err == nil
}

// Unwrap is a tls.Config.UnwrapSession. It returns nil, and so a full handshake
// follows, for whatever it doesn't take; it never fails a connection.
func (c *Codec) Unwrap(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	if len(identity) > MaxSize {
		state, err := c.fallback.DecryptTicket(identity, cs)
		if state == nil {
			c.Stats.Rejected.Add(1)
		}
		return state, err
	}
	state, err := c.open(identity)
	if err != nil {
		c.Stats.Rejected.Add(1)
		return nil, nil
	}
	c.Stats.Accepted.Add(1)
	return state, nil
}

var errTicket = errors.New("ticket not accepted")

func (c *Codec) open(identity []byte) (*tls.SessionState, error) {
	plain, err := c.ring.open(identity)
	if err != nil {
		return nil, err
	}
	s, err := decode(plain)
	if err != nil {
		return nil, err
	}
	now, created := c.now(), time.Unix(int64(s.created), 0)
	if now.Sub(created) > c.ring.Lifetime() || created.Sub(now) > clockSkew {
		return nil, errTicket
	}
	leaf, issuer, ok := c.certs.Resumable(s.fingerprint)
	if !ok || s.epoch != c.ring.Epoch(issuer.SubjectKeyId) {
		return nil, errTicket
	}
	return tls.ParseSessionState(s.state(leaf, issuer))
}

// encode returns the ticket's plain text.
func (s *session) encode() []byte {
	b := make([]byte, 0, fixedSize+2+len(s.secret))
	var flags byte
	if s.version == tls.VersionTLS13 {
		flags |= flagTLS13
	}
	if s.ems {
		flags |= flagEMS
	}
	if s.chain == 2 {
		flags |= flagIssuer
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint16(b, s.suite)
	b = append(b, byte(s.created>>32))
	b = binary.BigEndian.AppendUint32(b, uint32(s.created))
	b = binary.BigEndian.AppendUint16(b, s.epoch)
	b = append(b, s.fingerprint[:]...)
	if s.version != tls.VersionTLS13 {
		b = binary.BigEndian.AppendUint16(b, s.curve)
	}
	return append(b, s.secret...)
}

// decode is the inverse of encode; it refuses what encode can't have written.
func decode(b []byte) (session, error) {
	var s session
	if len(b) < fixedSize {
		return s, errTicket
	}
	flags := b[0]
	if flags&^flagsKnown != 0 {
		return s, errTicket
	}
	s.version, s.chain = tls.VersionTLS12, 1
	if flags&flagTLS13 != 0 {
		s.version = tls.VersionTLS13
	}
	if flags&flagIssuer != 0 {
		s.chain = 2
	}
	s.ems = flags&flagEMS != 0
	s.suite = binary.BigEndian.Uint16(b[1:])
	s.created = uint64(b[3])<<32 | uint64(binary.BigEndian.Uint32(b[4:]))
	s.epoch = binary.BigEndian.Uint16(b[8:])
	s.fingerprint = Fingerprint(b[10:])
	rest := b[fixedSize:]
	if s.version == tls.VersionTLS12 {
		if len(rest) < 2 {
			return s, errTicket
		}
		s.curve = binary.BigEndian.Uint16(rest)
		rest = rest[2:]
	}
	if len(rest) != secret256 && len(rest) != secret384 {
		return s, errTicket
	}
	s.secret = rest
	return s, nil
}

// newNonce returns a random nonce: a key seals at most a day's tickets, far below the
// 2^32 at which 96 random bits would wear out (NIST SP 800-38D §8.3).
func newNonce() ([nonceSize]byte, error) {
	var n [nonceSize]byte
	_, err := rand.Read(n[:])
	return n, err
}
