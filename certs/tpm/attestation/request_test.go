package attestation

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

func wantReason(t *testing.T, what string, err error, reason Reason, says string) {
	t.Helper()
	var refusal *Refusal
	switch {
	case reason == "" && err != nil:
		t.Errorf("%s: %v", what, err)
	case reason != "" && (!errors.As(err, &refusal) || refusal.Reason != reason || !errors.Is(err, reason) || !strings.Contains(refusal.Detail, says)):
		t.Errorf("%s: %v; want %s that says %q", what, err, reason, says)
	}
}

// The forger holds to all rules here, so the verifier challenges it: that it isn't a
// TPM, the activation tells.
func TestWellFormedRequestIsChallenged(t *testing.T) {
	for name, change := range map[string]func(*forger){
		"P-256 EK":         func(*forger) {},
		"P-384 EK":         func(f *forger) { f.ek = newKey(f.t, elliptic.P384()) },
		"RSA EK":           func(f *forger) { f.ek = must(rsa.GenerateKey(rand.Reader, 2048)) },
		"P-384 device key": p384Key,
		"no EKU": func(f *forger) {
			f.ekCertificate = func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }
		},
	} {
		f := newForger(t)
		change(f)
		_, err := f.verifier(nil).Begin(f.request(), binding)
		wantReason(t, name, err, "", "")
	}
}

func p384Key(f *forger) {
	f.key = newKey(f.t, elliptic.P384())
	f.keyTemplate.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP384})
}

func TestKeysThatCouldLeaveTheTPMAreRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*forger)
		reason Reason
		says   string
	}{
		"exportable key":            {func(f *forger) { f.keyTemplate.ObjectAttributes.FixedTPM = false }, BadKey, "fixedTPM"},
		"movable key":               {func(f *forger) { f.keyTemplate.ObjectAttributes.FixedParent = false }, BadKey, "fixedParent"},
		"imported key":              {func(f *forger) { f.keyTemplate.ObjectAttributes.SensitiveDataOrigin = false }, BadKey, "sensitiveDataOrigin"},
		"key that can't sign":       {func(f *forger) { f.keyTemplate.ObjectAttributes.SignEncrypt = false }, BadKey, "sign isn't set"},
		"restricted key":            {func(f *forger) { f.keyTemplate.ObjectAttributes.Restricted = true }, BadKey, "restricted"},
		"key that decrypts":         {func(f *forger) { f.keyTemplate.ObjectAttributes.Decrypt = true }, BadKey, "decrypt"},
		"key for duplication":       {func(f *forger) { f.keyTemplate.ObjectAttributes.EncryptedDuplication = true }, BadKey, "encryptedDuplication"},
		"P-521 key":                 {p521Key, BadKey, "curve"},
		"key named by SHA-1":        {func(f *forger) { f.keyTemplate.NameAlg = tpm2.TPMAlgSHA1 }, BadKey, "SHA-256"},
		"exportable AK":             {func(f *forger) { f.akTemplate.ObjectAttributes.FixedTPM = false }, BadAK, "fixedTPM"},
		"movable AK":                {func(f *forger) { f.akTemplate.ObjectAttributes.FixedParent = false }, BadAK, "fixedParent"},
		"imported AK":               {func(f *forger) { f.akTemplate.ObjectAttributes.SensitiveDataOrigin = false }, BadAK, "sensitiveDataOrigin"},
		"unrestricted AK":           {func(f *forger) { f.akTemplate.ObjectAttributes.Restricted = false }, BadAK, "restricted"},
		"AK that can't sign":        {func(f *forger) { f.akTemplate.ObjectAttributes.SignEncrypt = false }, BadAK, "sign isn't set"},
		"AK that decrypts":          {func(f *forger) { f.akTemplate.ObjectAttributes.Decrypt = true }, BadAK, "decrypt"},
		"AK without a fixed scheme": {func(f *forger) { f.akTemplate.Parameters = f.keyTemplate.Parameters }, BadAK, "ECDSA on P-256"},
	} {
		f := newForger(t)
		tt.change(f)
		_, err := f.verifier(nil).Begin(f.request(), binding)
		wantReason(t, name, err, tt.reason, tt.says)
	}
}

func p521Key(f *forger) {
	f.key = newKey(f.t, elliptic.P521())
	f.keyTemplate.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP521})
}

func TestCertificationsThatAreNoTPMsAreRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*forger)
		says   string
	}{
		"no TPM's magic":   {func(f *forger) { f.attest = func(a *tpm2.TPMSAttest) { a.Magic = 0x12345678 } }, "TPM_GENERATED"},
		"a quote":          {func(f *forger) { f.attest = quote }, "something else"},
		"about a creation": {func(f *forger) { f.attest = creation }, "something else"},
		"of no key": {func(f *forger) {
			f.attest = func(a *tpm2.TPMSAttest) {
				a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{})
			}
		}, "another key"},
		"of another key": {func(f *forger) {
			f.attest = func(a *tpm2.TPMSAttest) {
				a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: tpm2.TPM2BName{Buffer: nameOf([]byte("other"))}})
			}
		}, "another key"},
		"by another AK":      {func(f *forger) { f.signature = byAnother(f) }, "this attestation key"},
		"RSA signature":      {func(f *forger) { f.signature = rsaSignature }, "ECDSA"},
		"HMAC for signature": {func(f *forger) { f.signature = hmacSignature }, "ECDSA"},
		"signature of zeros": {func(f *forger) { f.signature = zeroSignature }, "this attestation key"},
		"signed with SHA-1": {func(f *forger) {
			f.signature = func(s *tpm2.TPMTSignature) { must(s.Signature.ECDSA()).Hash = tpm2.TPMAlgSHA1 }
		}, "SHA-256"},
	} {
		f := newForger(t)
		tt.change(f)
		_, err := f.verifier(nil).Begin(f.request(), binding)
		wantReason(t, name, err, BadCertification, tt.says)
	}
}

func quote(a *tpm2.TPMSAttest) {
	a.Type = tpm2.TPMSTAttestQuote
	a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{PCRDigest: tpm2.TPM2BDigest{Buffer: make([]byte, 32)}})
}

func creation(a *tpm2.TPMSAttest) {
	a.Type = tpm2.TPMSTAttestCreation
	a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCreation, &tpm2.TPMSCreationInfo{})
}

func byAnother(f *forger) func(*tpm2.TPMTSignature) {
	return func(s *tpm2.TPMTSignature) {
		r, q := must2(ecdsa.Sign(rand.Reader, newKey(f.t, elliptic.P256()), make([]byte, 32)))
		rs := must(s.Signature.ECDSA())
		rs.SignatureR.Buffer, rs.SignatureS.Buffer = r, q
	}
}

func must2[N interface{ Bytes() []byte }](r, s N, err error) (a, b []byte) {
	if err != nil {
		panic(err)
	}
	return r.Bytes(), s.Bytes()
}

func rsaSignature(s *tpm2.TPMTSignature) {
	*s = tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA, &tpm2.TPMSSignatureRSA{
		Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: make([]byte, 256)},
	})}
}

func hmacSignature(s *tpm2.TPMTSignature) {
	*s = tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgHMAC, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgHMAC, &tpm2.TPMTHA{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)})}
}

func zeroSignature(s *tpm2.TPMTSignature) {
	rs := must(s.Signature.ECDSA())
	rs.SignatureR.Buffer, rs.SignatureS.Buffer = nil, make([]byte, 32)
}

func TestEndorsementKeysWithoutAGoodCertificateAreRefused(t *testing.T) {
	emptyEKU := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: []byte{0x30, 0}}
	for name, tt := range map[string]struct {
		change func(*x509.Certificate)
		says   string
	}{
		"AK certificate with an empty EKU": {func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtraExtensions = nil, append(c.ExtraExtensions, emptyEKU)
		}, "tcg-kp-EKCertificate"},
		"AK certificate": {func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}}
		}, "tcg-kp-EKCertificate"},
		"TLS certificate": {func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}, "tcg-kp-EKCertificate"},
		"for signatures": {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }, "KeyUsageKeyAgreement"},
		"a CA's":         {func(c *x509.Certificate) { c.IsCA = true }, "CA"},
		"of no TPM":      {func(c *x509.Certificate) { c.ExtraExtensions = nil }, "SubjectAltName"},
		"of no maker":    {func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{tpmName("", "model", "version")} }, "Manufacturer"},
		"expired": {func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = testTime.AddDate(-2, 0, 0), testTime.AddDate(-1, 0, 0)
		}, "expired"},
		"not begun": {func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = testTime.AddDate(1, 0, 0), testTime.AddDate(2, 0, 0)
		}, "not yet valid"},
		"unknown critical extension": {func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
		}, "unhandled critical extension"},
	} {
		f := newForger(t)
		f.ekCertificate = tt.change
		_, err := f.verifier(nil).Begin(f.request(), binding)
		wantReason(t, name, err, UntrustedEK, tt.says)
	}
	foreign := newForger(t)
	_, err := newForger(t).verifier(nil).Begin(foreign.request(), binding)
	wantReason(t, "of another manufacturer", err, UntrustedEK, "no configured manufacturer's root")

	for name, key := range map[string]func(f *forger){
		"RSA of 1024 bits": func(f *forger) { f.ek = must(rsa.GenerateKey(rand.Reader, 1024)) },
		"RSA of 3072 bits": func(f *forger) { f.ek = must(rsa.GenerateKey(rand.Reader, 3072)) },
		"P-521":            func(f *forger) { f.ek = newKey(f.t, elliptic.P521()) },
	} {
		f := newForger(t)
		key(f)
		_, err := f.verifier(func(c *Config) { c.Allowed = func([32]byte) bool { return true } }).Begin(f.request(), binding)
		wantReason(t, name, err, UntrustedEK, "the EK is")
	}
}

func TestAllowListTakesEKsWithoutGoodCertificate(t *testing.T) {
	f := newForger(t)
	f.ekCertificate = func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}} }
	r := f.request()
	public := must(x509.MarshalPKIXPublicKey(f.ek.Public()))
	v := f.verifier(func(c *Config) {
		c.Roots, c.Allowed = nil, func(hash [32]byte) bool { return hash == EKHash(public) }
	})
	_, err := v.Begin(r, binding)
	wantReason(t, "allowed", err, "", "")
	r.EKCertificate, r.EKPublic = nil, public
	_, err = v.Begin(r, binding)
	wantReason(t, "allowed, and no certificate", err, "", "")
	_, err = v.Begin(newForger(t).request(), binding)
	wantReason(t, "another", err, UntrustedEK, "allow-list")

	// The same key, spelled otherwise, would have another hash.
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(public, &spki); err != nil {
		t.Fatal(err)
	}
	point := must(f.ek.Public().(*ecdsa.PublicKey).Bytes())
	compressed := append([]byte{2 + point[64]&1}, point[1:33]...)
	spki.Key = asn1.BitString{Bytes: compressed, BitLength: 8 * len(compressed)}
	r.EKPublic = must(asn1.Marshal(spki))
	_, err = v.Begin(r, binding)
	wantReason(t, "compressed", err, Malformed, "")
	r.EKPublic = append(bytes.Clone(public), 0)
	_, err = v.Begin(r, binding)
	wantReason(t, "trailing", err, Malformed, "")
}

func TestVerifierThatTrustsNobodyIsNotMade(t *testing.T) {
	if _, err := NewVerifier(Config{}); err == nil {
		t.Error("made")
	}
	for _, c := range []Config{{Lifetime: -1}, {Open: -1}} {
		c.Allowed = func([32]byte) bool { return true }
		if _, err := NewVerifier(c); err == nil {
			t.Errorf("%+v", c)
		}
	}
}

func TestRequestsForAnotherKeyOrStatementAreRefused(t *testing.T) {
	f := newForger(t)
	good := f.request()
	v := f.verifier(nil)
	other := newForger(t)
	soft := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, newKey(t, elliptic.P256())))
	rsaCSR := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, must(rsa.GenerateKey(rand.Reader, 2048))))
	unsigned := bytes.Clone(good.CSR)
	unsigned[len(unsigned)-1] ^= 1
	changed := func(change func(*Request)) Request {
		r := good
		change(&r)
		return r
	}
	for name, tt := range map[string]struct {
		request Request
		reason  Reason
	}{
		"software key in the request":          {f.requestFor(soft), KeyMismatch},
		"RSA key in the request":               {f.requestFor(rsaCSR), KeyMismatch},
		"software key under old certification": {changed(func(r *Request) { r.CSR = soft }), WrongStatement},
		"request not signed by its key":        {f.requestFor(unsigned), Malformed},
		"no request":                           {f.requestFor([]byte{0x30, 0}), Malformed},
		"statement about another EK":           {changed(func(r *Request) { f.certify(r, Statement([]byte("other"), r.CSR)) }), WrongStatement},
		"no statement":                         {changed(func(r *Request) { f.certify(r, nil) }), WrongStatement},
		"AK of another":                        {changed(func(r *Request) { r.AK = other.request().AK }), BadCertification},
		"key of another":                       {changed(func(r *Request) { r.Key = other.request().Key }), BadCertification},
		"EK certificate and key":               {changed(func(r *Request) { r.EKPublic = []byte{1} }), Malformed},
		"neither":                              {changed(func(r *Request) { r.EKCertificate = nil }), Malformed},
		"EK certificate of nothing":            {changed(func(r *Request) { r.EKCertificate = []byte{0x30, 0} }), Malformed},
		"no AK":                                {changed(func(r *Request) { r.AK = nil }), Malformed},
		"large AK":                             {changed(func(r *Request) { r.AK = make([]byte, maxStructure+1) }), Malformed},
		"trailing byte after the AK":           {changed(func(r *Request) { r.AK = append(bytes.Clone(r.AK), 0) }), BadAK},
		"trailing byte after the key":          {changed(func(r *Request) { r.Key = append(bytes.Clone(r.Key), 0) }), BadKey},
		"trailing byte after the signature":    {changed(func(r *Request) { r.Signature = append(bytes.Clone(r.Signature), 0) }), BadCertification},
		"AK cut short":                         {changed(func(r *Request) { r.AK = r.AK[:20] }), BadAK},
		"point off the curve":                  {changed(func(r *Request) { r.Key = bytes.Clone(r.Key); r.Key[len(r.Key)-1] ^= 1 }), BadKey},
		"large request":                        {changed(func(r *Request) { r.CSR = make([]byte, maxDER+1) }), Malformed},
		"five intermediates":                   {changed(func(r *Request) { r.EKIntermediates = make([][]byte, 5) }), Malformed},
		"intermediate of nothing":              {changed(func(r *Request) { r.EKIntermediates = [][]byte{{1}} }), UntrustedEK},
		"intermediate with a huge key":         {changed(func(r *Request) { r.EKIntermediates = [][]byte{hugeIntermediate(f)} }), UntrustedEK},
	} {
		_, err := v.Begin(tt.request, binding)
		wantReason(t, name, err, tt.reason, "")
	}
	for _, bad := range [][]byte{nil, make([]byte, 15), make([]byte, 65)} {
		_, err := v.Begin(good, bad)
		wantReason(t, "binding", err, Malformed, "channel binding")
	}
	_, err := v.Begin(good, binding)
	wantReason(t, "undisturbed", err, "", "")
}

// hugeIntermediate is a certificate whose key would cost us much to verify with.
func hugeIntermediate(f *forger) []byte {
	key := must(rsa.GenerateKey(rand.Reader, 2048)).PublicKey
	key.N = key.N.Lsh(key.N, 8192)
	key.N.SetBit(key.N, 0, 1)
	return f.certificate(&x509.Certificate{IsCA: true, BasicConstraintsValid: true}, &key).Raw
}

func TestMessagesAreDecodedStrictly(t *testing.T) {
	f := newForger(t)
	good := must(json.Marshal(f.request()))
	if _, err := ParseRequest(good); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty":          nil,
		"null":           []byte("null"),
		"array":          []byte("[]"),
		"unknown field":  bytes.Replace(good, []byte(`"csr"`), []byte(`"x":1,"csr"`), 1),
		"after its end":  append(bytes.Clone(good), '1'),
		"no base64":      []byte(`{"csr":"!"}`),
		"more than fits": append(bytes.Repeat([]byte(" "), MaxRequest), good...),
	} {
		_, err := ParseRequest(data)
		wantReason(t, name, err, Malformed, "")
		_, err = ParseAnswer(data)
		wantReason(t, name, err, Malformed, "")
		_, err = ParseChallenge(data)
		wantReason(t, name, err, Malformed, "")
	}
	answer := NewAnswer(strings.Repeat("a", idSize), make([]byte, 32), make([]byte, 32), binding)
	if _, err := ParseAnswer(must(json.Marshal(answer))); err != nil {
		t.Error(err)
	}
	answer.Binding = nil
	_, err := ParseAnswer(must(json.Marshal(answer)))
	wantReason(t, "no binding", err, Malformed, "channel binding")
	challenge := must(f.verifier(nil).Begin(f.request(), binding))
	parsed, err := ParseChallenge(must(json.Marshal(challenge)))
	if err != nil || !parsed.Expires.Equal(testTime.Add(time.Minute)) {
		t.Errorf("%v, %v", parsed, err)
	}
}
