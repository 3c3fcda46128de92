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
// Layout (63 octets in TLS 1.3 with a SHA-256 suite, 79 otherwise): key ID (2), then
// sealed with AES-SIV (RFC 5297) under that key, the key ID being the associated data:
//
//	flags (1)  created (4, Unix seconds)  fingerprint (8)  secret (32 or 48)
//
// AES-SIV because every octet of a ticket travels twice in each reconnect: its one
// synthetic IV of 16 octets stands for a nonce and a tag, 28 octets, and there is no
// nonce that a restored snapshot of the hub could use again. It is deterministic, which
// gives nothing away: no two tickets have the same secret.
package ticket

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// FingerprintSize is how many octets of the certificate's SHA-256 a ticket holds. The
// ticket is sealed, so this need only tell certificates of one fleet apart: among a
// million, two are alike with a chance of 1 in 37 million, and then the registry knows
// neither by it.
const FingerprintSize = 8

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

	// alive holds on to the certificates of those who got a ticket last. crypto/tls
	// parses a certificate once for as long as somebody holds on to it, so a board
	// that comes back soon costs no parsing.
	alive *lru.Cache[Fingerprint, []*x509.Certificate]
}

// maxAlive bounds the certificates held, some 4 kB each.
const maxAlive = 16 << 10

// New returns a codec over that ring. A nil now is time.Now.
func New(ring *Ring, certs Certificates, now func() time.Time) *Codec {
	if now == nil {
		now = time.Now
	}
	alive, err := lru.New[Fingerprint, []*x509.Certificate](maxAlive)
	if err != nil {
		panic(err) // only for a size below 1
	}
	c := &Codec{ring: ring, certs: certs, fallback: &tls.Config{}, now: now, alive: alive}
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
	fingerprint Fingerprint
	curve       tls.CurveID // TLS 1.2 only
	secret      []byte
}

// The flags: three bits for the suite, which says the version too, three for the curve
// of TLS 1.2, and one each for extended master secret and issuer.
const (
	flagEMS = 1 << 6 << iota
	flagIssuer
	indexBits = 3
	indexMask = 1<<indexBits - 1
)

// suites and curves are what a compact ticket can name, by index. Never reorder them.
var (
	suites = []uint16{
		tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	}
	curves = []tls.CurveID{0, tls.CurveP256, tls.X25519}
)

// suites13 is how many of suites are TLS 1.3's.
const suites13 = 3

const (
	headerSize = keyIDSize
	sivSize    = 16
	fixedSize  = 1 + 4 + FingerprintSize
	secret256  = 32 // of TLS 1.3 suites with SHA-256
	secret384  = 48 // of TLS 1.3 suites with SHA-384, and every TLS 1.2 master secret

	// MaxSize is the size of the largest compact ticket.
	MaxSize = headerSize + sivSize + fixedSize + secret384
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
	plain, ok := s.encode()
	if !ok {
		return nil, false
	}
	c.alive.Add(s.fingerprint, cs.PeerCertificates)
	sealed, err := c.ring.seal(plain)
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
	if !ok || !created.After(c.ring.dropped(issuer.SubjectKeyId)) {
		return nil, errTicket
	}
	return tls.ParseSessionState(s.state(leaf, issuer))
}

// encode returns the ticket's plain text, or false if a compact ticket can't say it.
func (s *session) encode() ([]byte, bool) {
	suite, curve := slices.Index(suites, s.suite), slices.Index(curves, s.curve)
	if suite < 0 || curve < 0 || (suite < suites13) != (s.version == tls.VersionTLS13) || s.created > math.MaxUint32 {
		return nil, false
	}
	flags := byte(suite) | byte(curve)<<indexBits
	if s.ems {
		flags |= flagEMS
	}
	if s.chain == 2 {
		flags |= flagIssuer
	}
	b := make([]byte, 0, fixedSize+len(s.secret))
	b = append(b, flags)
	b = binary.BigEndian.AppendUint32(b, uint32(s.created))
	b = append(b, s.fingerprint[:]...)
	return append(b, s.secret...), true
}

// decode is the inverse of encode; it refuses what encode can't have written.
func decode(b []byte) (session, error) {
	var s session
	if len(b) != fixedSize+secret256 && len(b) != fixedSize+secret384 {
		return s, errTicket
	}
	flags := b[0]
	suite, curve := int(flags&indexMask), int(flags>>indexBits&indexMask)
	if suite >= len(suites) || curve >= len(curves) {
		return s, errTicket
	}
	s.suite, s.curve = suites[suite], curves[curve]
	s.version, s.chain = tls.VersionTLS12, 1
	if suite < suites13 {
		s.version = tls.VersionTLS13
	}
	if flags&flagIssuer != 0 {
		s.chain = 2
	}
	s.ems = flags&flagEMS != 0
	s.created = uint64(binary.BigEndian.Uint32(b[1:]))
	s.fingerprint = Fingerprint(b[5:])
	s.secret = b[fixedSize:]
	return s, nil
}
