package attestation

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// now is the tests' clock, which stands still.
var testTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var binding = make([]byte, 32)

// forger is a board whose TPM is software: it can state whatever it likes. What it can't
// is to have a manufacturer's CA certify its endorsement key, but for our tests' CA.
type forger struct {
	t             testing.TB
	root          *x509.Certificate
	rootKey       *ecdsa.PrivateKey
	ek            crypto.Signer
	ak, key       *ecdsa.PrivateKey
	akTemplate    tpm2.TPMTPublic // with the point to be filled in
	keyTemplate   tpm2.TPMTPublic
	ekCertificate func(*x509.Certificate)   // changes the template
	attest        func(*tpm2.TPMSAttest)    // changes what is signed
	signature     func(*tpm2.TPMTSignature) // changes the signature
}

func newForger(t testing.TB) *forger {
	t.Helper()
	f := &forger{
		t: t, rootKey: newKey(t, elliptic.P256()), ek: newKey(t, elliptic.P256()), ak: newKey(t, elliptic.P256()), key: newKey(t, elliptic.P256()),
		akTemplate: template(tpm2.TPMTECCScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
		}),
		keyTemplate:   template(tpm2.TPMTECCScheme{}),
		ekCertificate: func(*x509.Certificate) {},
		attest:        func(*tpm2.TPMSAttest) {},
		signature:     func(*tpm2.TPMTSignature) {},
	}
	f.akTemplate.ObjectAttributes.Restricted = true
	f.root = f.certificate(&x509.Certificate{
		Subject: pkix.Name{CommonName: "manufacturer"}, KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}, f.rootKey.Public())
	return f
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func template(scheme tpm2.TPMTECCScheme) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: scheme}),
	}
}

// certificate signs what the template says, by the manufacturer.
func (f *forger) certificate(template *x509.Certificate, key crypto.PublicKey) *x509.Certificate {
	f.t.Helper()
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(7)
	}
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = testTime.AddDate(-1, 0, 0), testTime.AddDate(1, 0, 0)
	}
	parent := f.root
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, f.rootKey)
	if err != nil {
		f.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		f.t.Fatal(err)
	}
	return cert
}

// ekTemplate is an EK certificate as the TCG's profile has it.
func ekTemplate(key crypto.PublicKey) *x509.Certificate {
	usage := x509.KeyUsageKeyAgreement
	if _, ok := key.(*rsa.PublicKey); ok {
		usage = x509.KeyUsageKeyEncipherment
	}
	return &x509.Certificate{
		KeyUsage:              usage,
		BasicConstraintsValid: true,
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions:       []pkix.Extension{tpmName("id:00001014", "forged", "id:0001")},
	}
}

// tpmName is the subject alternative name that names a TPM's maker, model and version.
func tpmName(values ...string) pkix.Extension {
	var name pkix.RDNSequence
	for i, value := range values {
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, i + 1}, Value: value}})
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: sequence(tagged(4, must(asn1.Marshal(name))))}
}

func tagged(tag int, contents []byte) []byte {
	return must(asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: true, Bytes: contents}))
}

func sequence(contents []byte) []byte {
	return must(asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: contents}))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func withPoint(public tpm2.TPMTPublic, key *ecdsa.PublicKey) []byte {
	point := must(key.Bytes())
	size := len(point) / 2
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+size]},
		Y: tpm2.TPM2BECCParameter{Buffer: point[1+size:]},
	})
	return tpm2.Marshal(public)
}

// request returns what the forger sends, for a request that its own key has signed.
func (f *forger) request() Request {
	f.t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "board"}}, f.key)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.requestFor(csr)
}

func (f *forger) requestFor(csr []byte) Request {
	f.t.Helper()
	cert := ekTemplate(f.ek.Public())
	f.ekCertificate(cert)
	ek := f.certificate(cert, f.ek.Public())
	r := Request{
		CSR:           csr,
		EKCertificate: ek.Raw,
		AK:            withPoint(f.akTemplate, &f.ak.PublicKey),
		Key:           withPoint(f.keyTemplate, &f.key.PublicKey),
	}
	f.certify(&r, Statement(ek.RawSubjectPublicKeyInfo, csr))
	return r
}

// certify signs what the AK is to have said of the key.
func (f *forger) certify(r *Request, statement []byte) {
	f.t.Helper()
	attest := tpm2.TPMSAttest{
		Magic:           tpm2.TPMGeneratedValue,
		Type:            tpm2.TPMSTAttestCertify,
		ExtraData:       tpm2.TPM2BData{Buffer: statement},
		FirmwareVersion: 0x20191023,
		Attested:        tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: tpm2.TPM2BName{Buffer: nameOf(r.Key)}}),
	}
	f.attest(&attest)
	r.Certification = tpm2.Marshal(attest)
	r.Signature = f.sign(r.Certification)
}

func (f *forger) sign(certification []byte) []byte {
	f.t.Helper()
	digest := sha256.Sum256(certification)
	der, err := f.ak.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		f.t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		f.t.Fatal(err)
	}
	signature := tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: rs.R.Bytes()},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: rs.S.Bytes()},
		}),
	}
	f.signature(&signature)
	return tpm2.Marshal(signature)
}

// verifier trusts the forger's manufacturer, and that alone.
func (f *forger) verifier(change func(*Config)) *Verifier {
	f.t.Helper()
	c := Config{Roots: []*x509.Certificate{f.root}, Now: func() time.Time { return testTime }}
	if change != nil {
		change(&c)
	}
	v, err := NewVerifier(c)
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}
