package attestation

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"

	x509ext "github.com/google/go-attestation/x509"
	"github.com/google/go-tpm/tpm2"
)

// Trust says why an endorsement key is believed to be a genuine TPM's.
type Trust string

// The two ways to be trusted.
const (
	ByCertificate Trust = "certificate" // its certificate leads to a configured root
	ByAllowList   Trust = "allow-list"  // its hash was allowed
)

// EKHash returns the name under which we know a TPM for life: the SHA-256 of its
// endorsement key's SubjectPublicKeyInfo, as in
//
//	tpm2_createek -G ecc -c ek.ctx -u ek.pem -f pem && openssl pkey -pubin -in ek.pem -outform der | sha256sum
func EKHash(ekPublic []byte) [sha256.Size]byte { return sha256.Sum256(ekPublic) }

// endorsement is an endorsement key that is trusted.
type endorsement struct {
	public       []byte // SubjectPublicKeyInfo
	key          crypto.PublicKey
	hash         [sha256.Size]byte
	trust        Trust
	certificate  *x509.Certificate // nil if there was none
	manufacturer string
	model        string
	version      string
}

// endorse returns the request's endorsement key if it is trusted.
func (v *Verifier) endorse(r *Request) (*endorsement, error) {
	e := &endorsement{public: r.EKPublic}
	var err error
	if len(r.EKCertificate) > 0 {
		if e.certificate, err = x509.ParseCertificate(r.EKCertificate); err != nil {
			return nil, refuse(Malformed, "the EK certificate can't be read: %w", err)
		}
		e.public = e.certificate.RawSubjectPublicKeyInfo
	}
	if e.key, err = x509.ParsePKIXPublicKey(e.public); err != nil {
		return nil, refuse(Malformed, "the EK can't be read: %w", err)
	}
	if canonical, err := x509.MarshalPKIXPublicKey(e.key); err != nil || !bytes.Equal(canonical, e.public) {
		return nil, refuse(Malformed, "the EK isn't encoded as DER wants it, so its hash would be another") // or one TPM would pass for many
	}
	if _, err := EKTemplate(e.key); err != nil {
		return nil, refuse(UntrustedEK, "%w", err)
	}
	e.hash = EKHash(e.public)
	var why error = errors.New("the board sent no EK certificate")
	if e.certificate != nil {
		if why = v.chain(e, r.EKIntermediates); why == nil {
			e.trust = ByCertificate
			return e, nil
		}
	}
	if v.allowed(e.hash) {
		e.trust = ByAllowList
		return e, nil
	}
	return nil, refuse(UntrustedEK, "the EK %s is not on the allow-list, and %w", hex.EncodeToString(e.hash[:]), why)
}

// maxRSA bounds the work that a stranger's intermediate certificate can make us do.
const maxRSA = 4096

// chain holds the EK certificate to the TCG EK Credential Profile and to our roots.
func (v *Verifier) chain(e *endorsement, intermediates [][]byte) error {
	ek, err := x509ext.ToEKCertificate(e.certificate) // and takes what it knows off the critical extensions
	if err != nil {
		return fmt.Errorf("its certificate isn't an EK's: %w", err)
	}
	if hasExtendedKeyUsage(e.certificate) && !ek.HasEkcExtendedKeyUsage {
		return errors.New("its certificate isn't an EK's: the extended key usage isn't tcg-kp-EKCertificate")
	}
	pool := v.intermediates.Clone()
	for _, der := range intermediates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("an intermediate certificate can't be read: %w", err)
		}
		if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSA {
			return fmt.Errorf("an intermediate certificate has an RSA key of %d bits, the most is %d", key.N.BitLen(), maxRSA)
		}
		pool.AddCert(c)
	}
	if _, err := e.certificate.Verify(x509.VerifyOptions{
		Roots:         v.roots,
		Intermediates: pool,
		CurrentTime:   v.now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // crypto/x509 has no name for the EK's, which is checked above
	}); err != nil {
		return fmt.Errorf("its certificate by %q leads to no configured manufacturer's root: %w", e.certificate.Issuer, err)
	}
	e.manufacturer, e.model, e.version = ek.TpmManufacturer, ek.TpmModel, ek.TpmVersion
	return nil
}

// hasExtendedKeyUsage also sees an empty one, which crypto/x509 takes for none.
func hasExtendedKeyUsage(c *x509.Certificate) bool {
	for _, ext := range c.Extensions {
		if ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 37}) {
			return true
		}
	}
	return false
}

// EKTemplate returns the public area of the endorsement key with that key, by the TCG's
// templates (EK Credential Profile 2.6, B.3 and B.4): L-1 for RSA-2048, L-2 for P-256 and
// H-3 for P-384, or an error for any other key. H-1 and H-2, of the first two sizes, are
// alike in all that the encryption of a credential depends on.
func EKTemplate(key crypto.PublicKey) (tpm2.TPMTPublic, error) {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		var public tpm2.TPMTPublic
		switch key.Curve {
		case elliptic.P256():
			public = tpm2.ECCEKTemplate
		case elliptic.P384():
			public = P384EKTemplate()
		default:
			return public, fmt.Errorf("the EK is on %s, not on P-256 or P-384", key.Curve.Params().Name)
		}
		point, err := key.Bytes()
		if err != nil {
			return public, fmt.Errorf("the EK's point isn't on its curve: %w", err)
		}
		size := len(point) / 2
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+size]},
			Y: tpm2.TPM2BECCParameter{Buffer: point[1+size:]},
		})
		return public, nil
	case *rsa.PublicKey:
		public := tpm2.RSAEKTemplate
		if key.N.BitLen() != 2048 || key.E != 65537 {
			return public, fmt.Errorf("the EK is an RSA key of %d bits with the exponent %d, not of 2048 with 65537", key.N.BitLen(), key.E)
		}
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
		return public, nil
	}
	return tpm2.TPMTPublic{}, fmt.Errorf("the EK is a %T, neither RSA nor ECC", key)
}

// P384EKTemplate returns the template H-3, with PolicyB of SHA-384 (EK Credential
// Profile 2.6, B.4.5 and B.6.5), which go-tpm lacks.
func P384EKTemplate() tpm2.TPMTPublic {
	public := tpm2.ECCEKTemplate
	public.NameAlg = tpm2.TPMAlgSHA384
	public.ObjectAttributes.UserWithAuth = true
	public.AuthPolicy = tpm2.TPM2BDigest{Buffer: []byte{
		0xB2, 0x6E, 0x7D, 0x28, 0xD1, 0x1A, 0x50, 0xBC, 0x53, 0xD8, 0x82, 0xBC, 0xF5, 0xFD, 0x3A, 0x1A,
		0x07, 0x41, 0x48, 0xBB, 0x35, 0xD3, 0xB4, 0xE4, 0xCB, 0x1C, 0x0A, 0xD9, 0xBD, 0xE4, 0x19, 0xCA,
		0xCB, 0x47, 0xBA, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0F, 0x9F, 0xC0, 0x00, 0xF3, 0xF8, 0x0E, 0x12,
	}}
	public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Symmetric: tpm2.TPMTSymDefObject{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
		CurveID: tpm2.TPMECCNistP384,
	})
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return public
}

// credential encrypts secret so that only a TPM that holds both the endorsement key and
// the object of that name can open it (TPM2_MakeCredential, Library Part 1, 24.4).
func (e *endorsement) credential(name, secret []byte) (idObject, encryptedSecret []byte, err error) {
	public, err := EKTemplate(e.key)
	if err != nil {
		return nil, nil, err
	}
	key, err := tpm2.ImportEncapsulationKey(&public)
	if err != nil {
		return nil, nil, err
	}
	return tpm2.CreateCredential(rand.Reader, key, name, secret)
}
