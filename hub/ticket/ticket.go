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
// Layout (55 octets in TLS 1.3 with a SHA-256 suite, 71 otherwise), sealed with AES-SIV
// (RFC 5297) under a key of the ring:
//
//	kind (4 bits)  created (20 bits, Unix seconds modulo 2^20)  name (4 or 8)  secret (32 or 48)
//
// Every octet of a ticket travels twice in each reconnect, hence the care. AES-SIV has
// one synthetic IV of 16 octets in place of a nonce and a tag, 28 octets, and no nonce
// that a restored snapshot of the hub could use again; it is deterministic, which gives
// nothing away, for no two tickets have the same secret. No key is named: the few there
// are get tried. 2^20 seconds are 12 days, more than any ticket lives, because keys are
// not used for longer. The name has 4 octets where these tell the certificate from all
// others the hub knows, else 8.
package ticket

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/fleethub/fleethub/certs/identity"
)

// The sizes of a certificate's name: the first octets of the SHA-256 of its DER.
const (
	ShortName = 4
	LongName  = 8
)

// Certificates finds the certificate that a ticket names, in DER, and its issuer, which
// nobody changes. Resumable gets the first octets of the SHA-256 of a certificate's DER,
// ShortName or LongName of them. It returns false if these fit more than one certificate,
// and for one that may not be resumed with: unknown, revoked, suspended, replaced, or of an
// issuer that is no longer trusted. It is called in handshakes, concurrently, and doesn't
// wait.
type Certificates interface {
	Resumable(name []byte) (leaf []byte, issuer *x509.Certificate, ok bool)
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

	// alive holds on to the certificates of those who resumed last, by the leaf. For a
	// ticket, crypto/tls parses a certificate once for as long as somebody holds on to it, so
	// a board that comes back soon costs no parsing, nor another hash of what it presented.
	alive *lru.Cache[*x509.Certificate, presented]
}

// presented is a chain that was presented with a certificate, and that one's SHA-256.
type presented struct {
	fingerprint [sha256.Size]byte
	chain       []*x509.Certificate
}

// maxAlive bounds the certificates held, some 4 kB each.
const maxAlive = 16 << 10

// New returns a codec over that ring. A nil now is time.Now.
func New(ring *Ring, certs Certificates, now func() time.Time) *Codec {
	if now == nil {
		now = time.Now
	}
	alive, err := lru.New[*x509.Certificate, presented](maxAlive)
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
	kind    kind
	created uint64 // Unix seconds: of the full handshake, however often it was resumed since
	name    []byte // of the certificate
	leaf    []byte // its DER; only from parseState
	secret  []byte
}

// kind is what sessions have in common that were negotiated alike.
type kind struct {
	version uint16
	suite   uint16
	curve   tls.CurveID // TLS 1.2 only
	ems     bool        // extended master secret, RFC 7627
	chain   int         // certificates the client had presented: 1, or 2 with its issuer
}

// kinds are those that a compact ticket can say, by index; others are left to the
// fallback. Add at the end and never reorder: tickets outlive the hub that made them.
var kinds = []kind{
	{tls.VersionTLS13, tls.TLS_AES_128_GCM_SHA256, 0, false, 1},
	{tls.VersionTLS13, tls.TLS_AES_128_GCM_SHA256, 0, false, 2},
	{tls.VersionTLS13, tls.TLS_CHACHA20_POLY1305_SHA256, 0, false, 1},
	{tls.VersionTLS13, tls.TLS_CHACHA20_POLY1305_SHA256, 0, false, 2},
	{tls.VersionTLS13, tls.TLS_AES_256_GCM_SHA384, 0, false, 1},
	{tls.VersionTLS13, tls.TLS_AES_256_GCM_SHA384, 0, false, 2},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.CurveP256, true, 1},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.CurveP256, true, 2},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.X25519, true, 1},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.X25519, true, 2},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.CurveP256, true, 1},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.CurveP256, true, 2},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.CurveP256, true, 1},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.CurveP256, true, 2},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.X25519, true, 1},
	{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.X25519, true, 2},
}

const (
	createdBits = 20 // below the kind's four, in three octets
	createdMask = 1<<createdBits - 1

	sivSize   = 16
	headSize  = 3
	secret256 = 32 // of TLS 1.3 suites with SHA-256
	secret384 = 48 // of TLS 1.3 suites with SHA-384, and every TLS 1.2 master secret

	// MaxSize is the size of the largest compact ticket.
	MaxSize = sivSize + headSize + LongName + secret384
)

// clockSkew is how far in the future a ticket may have been made.
const clockSkew = time.Minute

// Wrap is a tls.Config.WrapSession. A session that a compact ticket can't stand for is
// left to crypto/tls, under keys of the same ring.
//
// On a resumed connection the new ticket is as old as the one it came by, if state.Extra
// has what Unwrap put into the session's: a chain of resumptions ends a ticket's
// lifetime after the full handshake that began it, and needs the device's key then.
func (c *Codec) Wrap(cs tls.ConnectionState, state *tls.SessionState) ([]byte, error) {
	if sealed, ok := c.compact(cs, state); ok {
		c.Stats.Minted.Add(1)
		return sealed, nil
	}
	c.Stats.Fallback.Add(1)
	return c.fallback.EncryptTicket(cs, state)
}

func (c *Codec) compact(cs tls.ConnectionState, state *tls.SessionState) ([]byte, bool) {
	began, carried := beganAt(state.Extra)
	if carried {
		defer func(extra [][]byte) { state.Extra = extra }(state.Extra) // for the fallback
		state.Extra = nil
	}
	encoded, err := state.Bytes()
	if err != nil || len(cs.PeerCertificates) == 0 || len(cs.PeerCertificates) > 2 {
		return nil, false
	}
	s, ok := parseState(encoded)
	if !ok {
		return nil, false
	}
	s.kind.chain = len(cs.PeerCertificates)
	known, seen := c.alive.Get(cs.PeerCertificates[0])
	if !seen {
		known = presented{sha256.Sum256(cs.PeerCertificates[0].Raw), cs.PeerCertificates}
	}
	s.name = known.fingerprint[:ShortName]
	leaf, issuer, ok := c.certs.Resumable(s.name)
	if !ok {
		s.name = known.fingerprint[:LongName]
		leaf, issuer, ok = c.certs.Resumable(s.name)
	}
	if !ok {
		return nil, false
	}
	// What will be rebuilt must be what crypto/tls would have stored, to the octet: a
	// Go version that stores more makes us fall back, not lose something.
	var rebuilt [2 << 10]byte
	if !bytes.Equal(s.appendState(rebuilt[:0], leaf, issuer.Raw), encoded) {
		return nil, false
	}
	if carried {
		s.created = began
	}
	plain, ok := s.encode()
	if !ok {
		return nil, false
	}
	if !seen && cs.DidResume { // what a full handshake parses, no other connection will get to see
		c.alive.Add(cs.PeerCertificates[0], known)
	}
	sealed, err := c.ring.seal(plain)
	return sealed, err == nil
}

// Unwrap is a tls.Config.UnwrapSession. It returns nil, and so a full handshake
// follows, for whatever it doesn't take; it never fails a connection.
func (c *Codec) Unwrap(sealed []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	open := c.open
	if len(sealed) > MaxSize {
		open = func(sealed []byte) (*tls.SessionState, error) { return c.openFallback(sealed, cs) }
	}
	state, err := open(sealed)
	if err != nil {
		c.Stats.Rejected.Add(1)
		return nil, nil
	}
	c.Stats.Accepted.Add(1)
	return state, nil
}

var errTicket = errors.New("ticket not accepted")

func (c *Codec) open(sealed []byte) (*tls.SessionState, error) {
	plain, err := c.ring.open(sealed)
	if err != nil {
		return nil, err
	}
	now := c.now()
	s, err := decode(plain, now)
	if err != nil {
		return nil, err
	}
	leaf, issuer, ok := c.certs.Resumable(s.name)
	if !ok || !c.inTime(s.created, issuer.SubjectKeyId) {
		return nil, errTicket
	}
	state, err := tls.ParseSessionState(s.appendState(nil, leaf, issuer.Raw))
	if err != nil {
		return nil, err
	}
	state.Extra = append(state.Extra, extraBegan(s.created))
	return state, nil
}

// openFallback opens a ticket of crypto/tls's own making and holds it to what a compact
// one is held to.
func (c *Codec) openFallback(sealed []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	state, err := c.fallback.DecryptTicket(sealed, cs)
	if err != nil || state == nil {
		return nil, errTicket
	}
	encoded, err := state.Bytes()
	if err != nil {
		return nil, err
	}
	s, ok := parseState(encoded)
	if !ok || len(s.leaf) == 0 {
		return nil, errTicket
	}
	began, carried := beganAt(state.Extra)
	if !carried {
		began = s.created
		state.Extra = append(state.Extra, extraBegan(began))
	}
	leaf, err := x509.ParseCertificate(s.leaf)
	if err != nil {
		return nil, err
	}
	id, err := identity.FromCertificate(leaf)
	if err != nil || !c.inTime(began, leaf.AuthorityKeyId) {
		return nil, errTicket
	}
	if id.Role == identity.RoleDevice {
		name := sha256.Sum256(leaf.Raw)
		if _, _, ok := c.certs.Resumable(name[:LongName]); !ok {
			return nil, errTicket
		}
	}
	return state, nil
}

// inTime reports whether a session that began then is still good by its age, and was
// not dropped with its issuer's.
func (c *Codec) inTime(began uint64, issuer []byte) bool {
	at, now := time.Unix(int64(began), 0), c.now()
	return now.Sub(at) <= c.ring.Lifetime() && at.Sub(now) <= clockSkew && at.After(c.ring.dropped(issuer))
}

// extraID begins the entry of SessionState.Extra that tells when the full handshake was.
const extraID = "fleethub began "

func extraBegan(created uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(extraID), created)
}

func beganAt(extra [][]byte) (created uint64, ok bool) {
	for _, e := range extra {
		if rest, found := bytes.CutPrefix(e, []byte(extraID)); found && len(rest) == 8 {
			return binary.BigEndian.Uint64(rest), true
		}
	}
	return 0, false
}

// encode returns the ticket's plain text, or false if a compact ticket can't say it.
func (s *session) encode() ([]byte, bool) {
	index := slices.Index(kinds, s.kind)
	if index < 0 {
		return nil, false
	}
	b := make([]byte, 0, headSize+len(s.name)+len(s.secret))
	b = appendUint24(b, index<<createdBits|int(s.created&createdMask))
	b = append(b, s.name...)
	return append(b, s.secret...), true
}

// decode is the inverse of encode for a ticket that was made within 12 days before, and
// clockSkew after, now. It refuses what encode can't have written.
func decode(b []byte, now time.Time) (session, error) {
	var s session
	var name int
	switch len(b) {
	case headSize + ShortName + secret256, headSize + ShortName + secret384:
		name = ShortName
	case headSize + LongName + secret256, headSize + LongName + secret384:
		name = LongName
	default:
		return s, errTicket
	}
	head := uint64(b[0])<<16 | uint64(b[1])<<8 | uint64(b[2])
	s.kind = kinds[head>>createdBits]
	latest := uint64(now.Add(clockSkew).Unix())
	s.created = latest - (latest-head)&createdMask
	s.name, s.secret = b[headSize:headSize+name], b[headSize+name:]
	return s, nil
}
