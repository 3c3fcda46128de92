// Package identity says who a certificate names.
//
// An identity is a role and an ID inside a trust domain, written as a SPIFFE ID
// (spiffe://<trust-domain>/<role>/<id>) in the certificate's only URI subject
// alternative name. A certificate that carries one is a valid SPIFFE X509-SVID.
// The package does no I/O, holds no state, and is safe for concurrent use.
package identity

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Role is what the bearer of a certificate may act as. One role's certificate is
// never accepted for another's work.
type Role string

// The five roles.
const (
	RoleDevice   Role = "device"   // a board in the field: MQTT
	RoleService  Role = "service"  // a backend application: MQTT
	RoleOperator Role = "operator" // a person: the HTTPS API
	RoleStation  Role = "station"  // a factory station: manifest upload
	RoleHub      Role = "hub"      // a hub node: the server side of every connection
)

// Valid reports whether r is one of the five roles.
func (r Role) Valid() bool {
	switch r {
	case RoleDevice, RoleService, RoleOperator, RoleStation, RoleHub:
		return true
	}
	return false
}

// MaxIDLength is the longest ID in bytes. It is also the longest common name that
// X.509 allows (RFC 5280 appendix A, ub-common-name).
const MaxIDLength = 64

// maxTrustDomainLength is RFC 1035's limit for a host name, below SPIFFE's 255.
const maxTrustDomainLength = 253

// ErrInvalid is in the chain of every error this package returns.
var ErrInvalid = errors.New("invalid identity")

// Identity is who a certificate names. The zero value names nobody. Copies are
// independent but for the OU slice, which nobody may change.
type Identity struct {
	TrustDomain string
	Role        Role
	ID          string
	OU          []string // product or role attributes, from the subject
	BoardSerial string   // the subject's serialNumber: the maker's board serial, where known
}

// New returns the identity of that trust domain, role and ID, or an error that
// says which of them is not valid.
func New(trustDomain string, role Role, id string) (Identity, error) {
	if err := ValidTrustDomain(trustDomain); err != nil {
		return Identity{}, err
	}
	if !role.Valid() {
		return Identity{}, fmt.Errorf("%w: role %q is none of device, service, operator, station, hub", ErrInvalid, role)
	}
	if err := ValidID(id); err != nil {
		return Identity{}, err
	}
	return Identity{TrustDomain: trustDomain, Role: role, ID: id}, nil
}

// ValidID returns nil if id matches [A-Za-z0-9][A-Za-z0-9._-]{0,63}: safe as a
// topic level, a file name and a URI path segment alike.
func ValidID(id string) error {
	if id == "" {
		return fmt.Errorf("%w: the ID is empty", ErrInvalid)
	}
	if len(id) > MaxIDLength {
		return fmt.Errorf("%w: the ID has %d bytes, at most %d are allowed", ErrInvalid, len(id), MaxIDLength)
	}
	for i := range len(id) {
		if c := id[i]; alphanumeric(c) || i > 0 && (c == '.' || c == '_' || c == '-') {
			continue
		}
		return fmt.Errorf("%w: ID %.80q has a character that is not allowed at position %d (letters and digits, after the first also . _ -)", ErrInvalid, id, i+1)
	}
	return nil
}

// ValidTrustDomain returns nil if td is a lower-case host name as SPIFFE-ID §2.1
// allows it and URI name constraints can hold it: dot-separated labels of letters,
// digits and inner hyphens.
func ValidTrustDomain(td string) error {
	if td == "" || len(td) > maxTrustDomainLength {
		return fmt.Errorf("%w: trust domain %.80q must have 1 to %d characters", ErrInvalid, td, maxTrustDomainLength)
	}
	if _, err := netip.ParseAddr(td); err == nil {
		return fmt.Errorf("%w: trust domain %q is an IP address, a name is required", ErrInvalid, td)
	}
	for label := range strings.SplitSeq(td, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("%w: trust domain %q has a label that is empty, longer than 63 or bounded by a hyphen", ErrInvalid, td)
		}
		for i := range len(label) {
			if c := label[i]; alphanumeric(c) && (c < 'A' || c > 'Z') || c == '-' {
				continue
			}
			return fmt.Errorf("%w: trust domain %q may have lower-case letters, digits, hyphens and dots only", ErrInvalid, td)
		}
	}
	return nil
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// URI returns the SPIFFE ID. The caller owns the result.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: i.TrustDomain, Path: "/" + string(i.Role) + "/" + i.ID}
}

// String returns the SPIFFE ID, for logs and messages.
func (i Identity) String() string {
	return "spiffe://" + i.TrustDomain + "/" + string(i.Role) + "/" + i.ID
}

// Parse reads a SPIFFE ID of the form that String writes. Anything else, such as a
// port, a query, an escape or a further path segment, is an error.
func Parse(spiffeID string) (Identity, error) {
	rest, ok := strings.CutPrefix(spiffeID, "spiffe://")
	if !ok {
		return Identity{}, fmt.Errorf("%w: %.200q does not begin with spiffe://", ErrInvalid, spiffeID)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 3 {
		return Identity{}, fmt.Errorf("%w: %.200q is not spiffe://<trust-domain>/<role>/<id>", ErrInvalid, spiffeID)
	}
	return New(parts[0], Role(parts[1]), parts[2])
}

// FromCertificate returns the identity that a leaf certificate names. It demands
// exactly one URI subject alternative name, a SPIFFE ID, whose ID equals the only
// common name; a CA certificate names nobody. It does not verify the chain: that is
// for package mtls, before or after.
func FromCertificate(cert *x509.Certificate) (Identity, error) {
	if cert.IsCA {
		return Identity{}, fmt.Errorf("%w: a CA certificate names no device, service, operator, station or hub", ErrInvalid)
	}
	if len(cert.URIs) != 1 {
		return Identity{}, fmt.Errorf("%w: the certificate has %d URI names, exactly one SPIFFE ID is required", ErrInvalid, len(cert.URIs))
	}
	id, err := Parse(cert.URIs[0].String())
	if err != nil {
		return Identity{}, err
	}
	if n := commonNames(cert); n > 1 {
		return Identity{}, fmt.Errorf("%w: the certificate has %d common names, exactly one is required", ErrInvalid, n)
	}
	if cn := cert.Subject.CommonName; cn != id.ID {
		return Identity{}, fmt.Errorf("%w: common name %.80q differs from the ID in %s", ErrInvalid, cn, id)
	}
	id.OU = slices.Clone(cert.Subject.OrganizationalUnit)
	id.BoardSerial = cert.Subject.SerialNumber
	return id, nil
}

// commonNames counts the common names of a parsed certificate's subject, of which
// crypto/x509 shows the last.
func commonNames(cert *x509.Certificate) (n int) {
	for _, name := range cert.Subject.Names {
		if name.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) {
			n++
		}
	}
	return n
}
