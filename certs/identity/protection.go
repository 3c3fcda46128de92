package identity

import (
	"crypto/x509"
	"encoding/asn1"
	"slices"
)

// Protection is what a device's certificate says of where its private key is kept. It is
// the issuer's word, under its signature: the device has proved it to the issuer.
type Protection string

// The protections that a certificate can tell apart. A key in a file and a key in a TPM
// that nobody asked for its word are alike to whoever reads a certificate.
const (
	ProtectionTPM      Protection = "tpm"      // in a TPM that has proved to hold it, for good
	ProtectionUnproven Protection = "unproven" // anywhere
)

// TPMPolicy is the certificate policy (RFC 5280 §4.2.1.4) of a key whose TPM has proved
// to the certificate's issuer that it made the key and will not let it go. Its absence
// means ProtectionUnproven: there is no policy for that, since every octet of a
// certificate is paid for in each full handshake. For that reason, too, the arc is a
// short one: below 2.25 are the UUIDs (ITU-T X.667), and no generator of UUIDs makes one
// of 21 bits. It means this in certificates by a fleet's own CAs only.
func TPMPolicy() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 25, 1462657} }

// ProtectionOf returns what a device's certificate says about its key. Whether the
// certificate is to be believed is the caller's to have verified.
func ProtectionOf(cert *x509.Certificate) Protection {
	if slices.ContainsFunc(cert.Policies, isTPMPolicy) {
		return ProtectionTPM
	}
	return ProtectionUnproven
}

func isTPMPolicy(policy x509.OID) bool { return policy.EqualASN1OID(TPMPolicy()) }
