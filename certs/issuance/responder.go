package issuance

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"

	"github.com/fleethub/fleethub/certs/identity"
)

// oidNoCheck is id-pkix-ocsp-nocheck, RFC 6960 §4.2.2.2.1: nobody asks about the signer
// of the answers, which is replaced often instead.
var oidNoCheck = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}

// responderValid is how long a delegated OCSP signer lives.
const responderValid = 30 * day

// IssueResponder signs the certificate of a delegated OCSP signer (RFC 6960 §4.2.2.2),
// 30 days and no longer than the issuer. It names nobody: package identity finds no role
// in it, so it opens no door. Only an issuing CA can have one, for its own certificates.
//
// The issuing CA's extended key usages don't have OCSP signing, on purpose: a CA
// certificate that has it is a delegated signer of the root's. Verifiers that nest
// extended key usages in OCSP (openssl and golang.org/x/crypto/ocsp do not) refuse the signer.
func (i *Issuer) IssueResponder(pub crypto.PublicKey) (*x509.Certificate, error) {
	if i.kind == identity.KindRoot {
		return nil, fmt.Errorf("issue OCSP signer: %w: %q signs issuing CAs only", ErrAuthority, i.cert.Subject.CommonName)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: i.cert.Subject.CommonName + " OCSP"},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		BasicConstraintsValid: true,
		ExtraExtensions:       []pkix.Extension{{Id: oidNoCheck, Value: asn1.NullBytes}},
	}
	return i.sign(template, pub, responderValid, "OCSP signer of "+i.cert.Subject.CommonName)
}

// Publication is where the status of an issuer's certificates can be looked up. Empty
// members are left out of certificates.
type Publication struct {
	List string // URL of the CRL, RFC 5280 §4.2.1.13
	OCSP string // URL of the responder, RFC 5280 §4.2.2.1
}

// Publishing returns the same issuer, whose leaf certificates say where their status is
// published. That costs some 100 bytes in each full handshake.
func (i *Issuer) Publishing(p Publication) *Issuer {
	next := *i
	next.publication = p
	return &next
}

// write puts the places into a certificate.
func (p Publication) write(template *x509.Certificate) {
	if p.List != "" {
		template.CRLDistributionPoints = []string{p.List}
	}
	if p.OCSP != "" {
		template.OCSPServer = []string{p.OCSP}
	}
}
