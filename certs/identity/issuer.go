package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
)

// IssuerKind is what a CA certificate may sign. It is written as the organizational
// unit of the CA's own subject, under its issuer's signature, so a holder of a
// factory key can't promote itself. The words are short because every leaf repeats
// its issuer's subject, in every full handshake.
type IssuerKind string

// The three kinds of CA.
const (
	KindRoot        IssuerKind = "root"
	KindFactory     IssuerKind = "factory" // issuing CA of one station: devices only
	KindOperational IssuerKind = "hub"     // the operational issuing CA, at the hub: every role
)

// KindOf returns what ca may sign, from its subject. ca's own signature is the
// caller's to verify.
func KindOf(ca *x509.Certificate) (IssuerKind, error) {
	if !ca.IsCA || !ca.BasicConstraintsValid {
		return "", fmt.Errorf("%w: %q is not a CA certificate", ErrInvalid, ca.Subject)
	}
	if len(ca.Subject.OrganizationalUnit) != 1 {
		return "", fmt.Errorf("%w: CA %q must have exactly one organizational unit, its kind", ErrInvalid, ca.Subject)
	}
	switch kind := IssuerKind(ca.Subject.OrganizationalUnit[0]); kind {
	case KindRoot, KindFactory, KindOperational:
		return kind, nil
	default:
		return "", fmt.Errorf("%w: CA %q is of the unknown kind %.80q", ErrInvalid, ca.Subject, kind)
	}
}

// MayIssue reports whether a CA of this kind may sign a leaf of that role. URI name
// constraints end at the host (RFC 5280 §4.2.1.10), so they can't say this.
func (k IssuerKind) MayIssue(role Role) bool {
	switch k {
	case KindFactory:
		return role == RoleDevice
	case KindOperational:
		return role.Valid()
	default: // the root signs issuing CAs only
		return false
	}
}

// Fingerprint returns the SHA-256 of the certificate's DER in lower-case hex.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// SerialString returns a serial number in lower-case hex with an even number of
// digits, as openssl and browsers show it but for the case.
func SerialString(serial *big.Int) string {
	return hex.EncodeToString(serial.Bytes())
}

// KeyFingerprint returns the SHA-256 of a public key, as its SubjectPublicKeyInfo, in
// lower-case hex: what two people compare before one certifies the other's key.
func KeyFingerprint(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}
