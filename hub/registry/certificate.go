package registry

import (
	"crypto/x509"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
)

// Certificate is one certificate that was issued to a device.
type Certificate struct {
	Serial      string    `json:"serial"`      // identity.SerialString
	Fingerprint string    `json:"fingerprint"` // identity.Fingerprint
	Issuer      string    `json:"issuer"`      // the issuer's subject key identifier, lower-case hex
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Revoked     time.Time `json:"revoked,omitzero"`    // when it was revoked; zero if it wasn't
	Reason      string    `json:"reason,omitempty"`    // why it was revoked, RFC 5280 §5.3.1
	Superseded  time.Time `json:"superseded,omitzero"` // when another took its place; zero if none did

	// Renews is the Key of the certificate that the device presented to get this one;
	// empty for one that a station issued. That one stays usable until this one has
	// connected.
	Renews string `json:"renews,omitempty"`

	// DER is the certificate itself. A store leaves it out of pages of records.
	DER []byte `json:"der,omitempty"`

	// Standing is what the certificate is worth now, as whoever shows the record judges
	// it. It is never stored.
	Standing Standing `json:"standing,omitempty"`
}

// Protection returns what the certificate says of where its key is. Its DER is needed: one
// that can't be read says nothing.
func (c Certificate) Protection() identity.Protection {
	parsed, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return identity.ProtectionUnproven
	}
	return identity.ProtectionOf(parsed)
}

// Standing is what a certificate is worth at a moment, its device's state aside.
type Standing string

// The standings. Only a usable certificate is accepted.
const (
	StandingUsable      Standing = "usable"
	StandingRevoked     Standing = "revoked"
	StandingSuperseded  Standing = "superseded"
	StandingUntrusted   Standing = "issuer-not-trusted"
	StandingExpired     Standing = "expired"
	StandingNotYetValid Standing = "not-yet-valid"
)

// Usable reports whether the certificate may still be presented, as far as the
// registry knows. Its validity period is for the TLS handshake to check, and so is
// whether its issuer is still trusted.
func (c Certificate) Usable() bool { return c.Revoked.IsZero() && c.Superseded.IsZero() }

// StandingAt judges the certificate at a time, by what the registry knows and whether
// its issuer is trusted now.
func (c Certificate) StandingAt(now time.Time, issuerTrusted bool) Standing {
	switch {
	case !c.Revoked.IsZero():
		return StandingRevoked
	case !c.Superseded.IsZero():
		return StandingSuperseded
	case !issuerTrusted:
		return StandingUntrusted
	case now.After(c.NotAfter):
		return StandingExpired
	case now.Before(c.NotBefore):
		return StandingNotYetValid
	}
	return StandingUsable
}

// Key identifies a certificate among all issuers, as RFC 5280 §4.1.2.2 has it: the
// issuer and the serial number together.
func (c Certificate) Key() string { return c.Issuer + "/" + c.Serial }

// Ownership is what a store knows of a certificate by its issuer and serial number.
type Ownership struct {
	Issuer     string    `json:"issuer"` // subject key identifier, lower-case hex
	Serial     string    `json:"serial"`
	Device     string    `json:"device"`
	Revoked    time.Time `json:"revoked,omitzero"`
	Reason     string    `json:"reason,omitempty"` // RFC 5280 §5.3.1, if revoked
	Superseded bool      `json:"superseded,omitempty"`
}
