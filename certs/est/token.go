package est

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base32"
	"fmt"
	"strings"
)

// Token is what lets a board enrol once: a secret, and by which key the board knows the
// station that made it, so that it tells the secret to nobody else.
type Token struct {
	Secret string // 26 characters, 128 bits
	Pin    Pin
}

// Pin is the beginning of the SHA-256 of a server's public key, as its
// SubjectPublicKeyInfo: 128 bits, of which nobody finds another key.
type Pin [16]byte

const tokenPrefix = "fh1"

// encoding is lower-case base32, which survives being read out and typed.
func encoding() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

// NewToken returns a fresh token of the server with that certificate.
func NewToken(server *x509.Certificate) Token {
	var secret [16]byte
	rand.Read(secret[:]) // never fails
	return Token{Secret: encoding().EncodeToString(secret[:]), Pin: PinOf(server)}
}

// String returns the token as a person hands it on: fh1.SECRET.PIN. It is secret.
func (t Token) String() string {
	return strings.Join([]string{tokenPrefix, t.Secret, t.Pin.String()}, ".")
}

// ParseToken reads what String returned, whatever its case. Its error doesn't repeat it.
func ParseToken(text string) (Token, error) {
	parts := strings.Split(strings.ToLower(strings.TrimSpace(text)), ".")
	if len(parts) != 3 || parts[0] != tokenPrefix {
		return Token{}, fmt.Errorf("%w: an enrolment token has the form %s.SECRET.PIN", ErrMalformed, tokenPrefix)
	}
	secret, err := encoding().DecodeString(parts[1])
	if err != nil || len(secret) != 16 || encoding().EncodeToString(secret) != parts[1] {
		return Token{}, fmt.Errorf("%w: the enrolment token's second part is mistyped or cut short", ErrMalformed)
	}
	pin, err := ParsePin(parts[2])
	if err != nil {
		return Token{}, fmt.Errorf("%w: the enrolment token's third part is mistyped or cut short", ErrMalformed)
	}
	return Token{Secret: parts[1], Pin: pin}, nil
}

// PinOf returns the pin of a server's certificate.
func PinOf(server *x509.Certificate) Pin {
	sum := sha256.Sum256(server.RawSubjectPublicKeyInfo)
	return Pin(sum[:16])
}

// ParsePin reads what Pin.String returned, whatever its case.
func ParsePin(text string) (Pin, error) {
	text = strings.ToLower(strings.TrimSpace(text))
	raw, err := encoding().DecodeString(text)
	if err != nil || len(raw) != len(Pin{}) || encoding().EncodeToString(raw) != text {
		return Pin{}, fmt.Errorf("%w: a station's pin has 26 letters and digits", ErrMalformed)
	}
	return Pin(raw), nil
}

// String returns 26 letters and digits.
func (p Pin) String() string { return encoding().EncodeToString(p[:]) }

// admits reports whether the certificate has the pinned key.
func (p Pin) admits(server *x509.Certificate) bool {
	other := PinOf(server)
	return subtle.ConstantTimeCompare(p[:], other[:]) == 1
}

// Binding returns the channel binding tls-server-end-point of a server with that
// certificate (RFC 5929 §4.1; ours are all signed with SHA-256 or stronger).
func Binding(server *x509.Certificate) []byte {
	sum := sha256.Sum256(server.Raw)
	return sum[:]
}
