// Package issuance signs certificates.
//
// A Profile says everything a certificate of its kind may and may not be; a Request
// adds the identity, key and lifetime; an Issuer, any crypto.Signer with its CA
// certificate, turns both into a certificate or an error. Nothing of a certificate
// request reaches the certificate but its public key. An Issuer never signs outside
// its own validity, for a role its kind may not issue, or for a key that CheckKey
// refuses.
//
// A factory certificate may outlive its issuer: a station's authority is short, a
// board on a roof is not. Package mtls holds an issuer that the hub knows to its
// validity at the time of issuance.
package issuance

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
)

// ErrAuthority is in the chain when an issuer is asked for what it may not sign.
var ErrAuthority = errors.New("outside the issuer's authority")

// backdate lets a certificate work at a peer whose clock is somewhat slow.
const backdate = 5 * time.Minute

// Issuer signs certificates with a CA's key. It is immutable, and safe for
// concurrent use if its signer is (those of crypto/ecdsa and certs/tpm are).
type Issuer struct {
	cert *x509.Certificate
	kind identity.IssuerKind
	key  crypto.Signer
	now  func() time.Time

	publication Publication // of its leaves' status
}

// NewIssuer returns the issuer of that CA certificate and key, after checking that
// they belong together. A nil now is time.Now.
func NewIssuer(cert *x509.Certificate, key crypto.Signer, now func() time.Time) (*Issuer, error) {
	kind, err := identity.KindOf(cert)
	if err != nil {
		return nil, err
	}
	if !samePublicKey(cert.PublicKey, key.Public()) {
		return nil, fmt.Errorf("the private key does not belong to the CA certificate %q", cert.Subject)
	}
	if now == nil {
		now = time.Now
	}
	return &Issuer{cert: cert, kind: kind, key: key, now: now}, nil
}

// Certificate returns the CA certificate, which nobody may change.
func (i *Issuer) Certificate() *x509.Certificate { return i.cert }

// Kind returns what the issuer may sign.
func (i *Issuer) Kind() identity.IssuerKind { return i.kind }

// Request is what a leaf certificate is to say, beyond its profile.
type Request struct {
	Profile     Profile
	Identity    identity.Identity
	PublicKey   crypto.PublicKey
	Serial      *big.Int      // nil: a random one
	Valid       time.Duration // 0: the profile's; but for devices it ends with the issuer's at the latest
	DNSNames    []string      // server certificates only
	IPAddresses []net.IP      // server certificates only

	// Protection is what the device has proved of its key: written down if it is
	// identity.ProtectionTPM, and nothing otherwise. Devices' certificates only.
	Protection identity.Protection
}

// Issue signs a leaf certificate.
func (i *Issuer) Issue(r Request) (*x509.Certificate, error) {
	id := r.Identity
	if _, err := identity.New(id.TrustDomain, id.Role, id.ID); err != nil {
		return nil, err
	}
	if r.Profile.role != id.Role {
		return nil, fmt.Errorf("issue %s: profile %s is not for role %s", id, r.Profile.name, id.Role)
	}
	if !i.kind.MayIssue(id.Role) {
		return nil, fmt.Errorf("issue %s: %w: %q is a %s", id, ErrAuthority, i.cert.Subject.CommonName, i.kind)
	}
	if permitted := i.cert.PermittedURIDomains; len(permitted) > 0 && !slices.Contains(permitted, id.TrustDomain) {
		return nil, fmt.Errorf("issue %s: %w: %q signs for the trust domain %s only", id, ErrAuthority, i.cert.Subject.CommonName, permitted[0])
	}
	if r.Serial != nil && (r.Serial.Sign() <= 0 || r.Serial.BitLen() > 159) { // RFC 5280 §4.1.2.2
		return nil, fmt.Errorf("issue %s: the serial number must be positive and at most 20 octets", id)
	}
	if !r.Profile.serverNames && len(r.DNSNames)+len(r.IPAddresses) > 0 {
		return nil, fmt.Errorf("issue %s: profile %s has no host names", id, r.Profile.name)
	}
	proved := r.Protection == identity.ProtectionTPM
	if proved && id.Role != identity.RoleDevice {
		return nil, fmt.Errorf("issue %s: only a device's certificate says where its key is", id)
	}
	template := &x509.Certificate{
		SerialNumber: r.Serial,
		Subject:      pkix.Name{CommonName: id.ID, OrganizationalUnit: slices.Clone(id.OU), SerialNumber: id.BoardSerial},
		URIs:         []*url.URL{id.URI()},
		DNSNames:     r.DNSNames,
		IPAddresses:  r.IPAddresses,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  r.Profile.extKeyUsage,
		// A hub's certificate goes out in every full handshake, and has no more than it
		// must: without basic constraints it is no CA either (RFC 5280 §4.2.1.9). A
		// device's has a policy in their place.
		BasicConstraintsValid: id.Role != identity.RoleHub && !proved,
	}
	if proved {
		policy, err := x509.OIDFromASN1OID(identity.TPMPolicy())
		if err != nil {
			return nil, fmt.Errorf("issue %s: %w", id, err)
		}
		template.Policies = []x509.OID{policy}
	}
	i.publication.write(template)
	return i.sign(template, r.PublicKey, r.Profile.lifetime(r.Valid), id.String())
}

// CARequest is what an issuing CA's certificate is to say.
type CARequest struct {
	Kind        identity.IssuerKind // KindFactory or KindOperational
	Name        string              // the station's or hub's ID; becomes the common name
	TrustDomain string
	PublicKey   crypto.PublicKey
	Valid       time.Duration // 0: the profile's

	// MaxDevices is how many devices a station may make (see DeviceBudget). 0: nothing
	// is written, which means DefaultDevices.
	MaxDevices int
}

// IssueCA signs an issuing CA. Only a root can. The CA may sign leaves only (path
// length 0), in its trust domain only (RFC 5280 §4.2.1.10), and, if of the factory
// kind, no server certificates. Host names are not excluded: OpenSSL would hold a
// device's ID with a dot in it, as common name, against that.
func (i *Issuer) IssueCA(r CARequest) (*x509.Certificate, error) {
	if i.kind != identity.KindRoot {
		return nil, fmt.Errorf("issue CA %s: %w: %q is a %s", r.Name, ErrAuthority, i.cert.Subject.CommonName, i.kind)
	}
	if err := errors.Join(identity.ValidID(r.Name), identity.ValidTrustDomain(r.TrustDomain)); err != nil {
		return nil, err
	}
	var profile Profile
	switch r.Kind {
	case identity.KindFactory:
		profile = FactoryIssuerProfile()
	case identity.KindOperational:
		profile = OperationalIssuerProfile()
	default:
		return nil, fmt.Errorf("issue CA %s: kind %q is neither factory nor operational", r.Name, r.Kind)
	}
	template := caTemplate(r.Kind, r.Name)
	template.MaxPathLenZero = true
	template.ExtKeyUsage = profile.extKeyUsage
	template.PermittedDNSDomainsCritical = true // the whole extension is critical
	template.PermittedURIDomains = []string{r.TrustDomain}
	if r.Kind == identity.KindFactory {
		template.ExcludedIPRanges = []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		}
	}
	if r.MaxDevices != 0 {
		if r.Kind != identity.KindFactory {
			return nil, fmt.Errorf("issue CA %s: a device budget is for a station, not for a %s", r.Name, r.Kind)
		}
		extension, err := budget(r.MaxDevices)
		if err != nil {
			return nil, fmt.Errorf("issue CA %s: %w", r.Name, err)
		}
		template.ExtraExtensions = []pkix.Extension{extension}
	}
	return i.sign(template, r.PublicKey, profile.lifetime(r.Valid), r.Name)
}

// NewRoot returns a self-signed root, path length 1. A zero valid is the profile's,
// a nil now is time.Now.
func NewRoot(trustDomain string, key crypto.Signer, valid time.Duration, now func() time.Time) (*x509.Certificate, error) {
	if err := identity.ValidTrustDomain(trustDomain); err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	template := caTemplate(identity.KindRoot, trustDomain)
	template.MaxPathLen = 1
	root := &Issuer{cert: template, kind: identity.KindRoot, key: key, now: now}
	template.NotBefore, template.NotAfter = root.window(RootProfile().lifetime(valid))
	return root.sign(template, key.Public(), RootProfile().lifetime(valid), "root of "+trustDomain)
}

func caTemplate(kind identity.IssuerKind, name string) *x509.Certificate {
	return &x509.Certificate{
		// No organization: every leaf repeats this name, and the trust domain is in its SPIFFE ID.
		Subject: pkix.Name{OrganizationalUnit: []string{string(kind)}, CommonName: name},
		// A CA's key also signs manifests and, later, receipts.
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

func (i *Issuer) window(valid time.Duration) (notBefore, notAfter time.Time) {
	now := i.now().UTC().Truncate(time.Second)
	return now.Add(-backdate), now.Add(valid)
}

// sign fills in serial number and validity, signs, and reads the result back.
func (i *Issuer) sign(template *x509.Certificate, pub crypto.PublicKey, valid time.Duration, what string) (*x509.Certificate, error) {
	if err := CheckKey(pub); err != nil {
		return nil, fmt.Errorf("issue %s: %w", what, err)
	}
	if valid <= 0 {
		return nil, fmt.Errorf("issue %s: the lifetime %s is not positive", what, valid)
	}
	if now := i.now(); now.Before(i.cert.NotBefore) || now.After(i.cert.NotAfter) {
		return nil, fmt.Errorf("issue %s: %w: the clock says %s, %q is valid from %s to %s; set the clock or renew the issuer",
			what, ErrAuthority, now.UTC().Format(time.RFC3339), i.cert.Subject.CommonName,
			i.cert.NotBefore.Format(time.RFC3339), i.cert.NotAfter.Format(time.RFC3339))
	}
	template.NotBefore, template.NotAfter = i.window(valid)
	if template.NotBefore.Before(i.cert.NotBefore) {
		template.NotBefore = i.cert.NotBefore
	}
	if template.NotAfter.After(i.cert.NotAfter) && i.kind != identity.KindFactory {
		template.NotAfter = i.cert.NotAfter
	}
	if template.SerialNumber == nil {
		serial, err := NewSerial()
		if err != nil {
			return nil, err
		}
		template.SerialNumber = serial
	}
	if template.IsCA {
		id, err := keyIdentifier(pub)
		if err != nil {
			return nil, fmt.Errorf("issue %s: %w", what, err)
		}
		template.SubjectKeyId = id
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, pub, i.key)
	if err != nil {
		return nil, fmt.Errorf("issue %s: %w", what, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue %s: what was signed can't be read back: %w", what, err)
	}
	return cert, nil
}

// keyIdentifier returns the first four octets of the SHA-256 of the public key (RFC
// 7093 §2 method 1, cut shorter: RFC 5280 §4.2.1.2 leaves the method to the CA). It
// tells the CAs of a fleet apart, and every leaf repeats it. Should two be alike,
// package mtls tries both.
func keyIdentifier(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:4], nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// At returns the same issuer with another clock, for issuing as of a given time.
func (i *Issuer) At(now func() time.Time) *Issuer {
	next := *i
	next.now = now
	return &next
}
