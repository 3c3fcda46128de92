package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
)

// Two boards of one manufacturer, crossed in every way.
func TestCrossedTPMsAreRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	one, two := b.enrol(b.one), b.enrol(b.two)
	mixed := func(change func(*attestation.Request)) attestation.Request {
		r := one.Request()
		change(&r)
		return r
	}
	software, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	softwareCSR := csrFor(t, software)
	otherEK, err := b.two.tpm.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		request attestation.Request
		reason  attestation.Reason
	}{
		"EK of one, AK and key of the other": {mixed(func(r *attestation.Request) {
			r.EKCertificate = otherEK.Certificate
		}), attestation.WrongStatement},
		"AK of another": {mixed(func(r *attestation.Request) {
			r.AK = two.Request().AK
		}), attestation.BadCertification},
		"key of another": {mixed(func(r *attestation.Request) {
			r.Key = two.Request().Key
		}), attestation.BadCertification},
		"certification of another's key": {mixed(func(r *attestation.Request) {
			r.Certification, r.Signature = two.Request().Certification, two.Request().Signature
		}), attestation.BadCertification},
		"request of another": {mixed(func(r *attestation.Request) {
			r.CSR = two.Request().CSR
		}), attestation.WrongStatement},
		"software key under a TPM's certification": {mixed(func(r *attestation.Request) {
			r.CSR = softwareCSR
		}), attestation.WrongStatement},
	} {
		_, err := b.verifier.Begin(tt.request, channelBinding)
		wantRefused(t, name, err, tt.reason)
	}

	// An owner who has its TPM state what isn't so, about itself.
	for name, tt := range map[string]struct {
		csr    []byte
		reason attestation.Reason
	}{
		"request for a software key": {softwareCSR, attestation.KeyMismatch},
		"request for another's key":  {b.two.csr, attestation.KeyMismatch},
		"no request":                 {[]byte("no request"), attestation.Malformed},
	} {
		e, err := b.one.key.Enrol(tt.csr)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.verifier.Begin(e.Request(), channelBinding)
		wantRefused(t, name, err, tt.reason)
	}
	// Its AK states that it goes with the other's EK, so only the activation tells.
	liar := b.lie(b.one, otherEK)
	challenge, err := b.verifier.Begin(liar.Request(), channelBinding)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := liar.Answer(challenge, channelBinding); !errors.Is(err, ErrChallenge) {
		t.Errorf("AK's TPM answers: %v", err)
	}
	if _, err := two.Answer(challenge, channelBinding); !errors.Is(err, ErrChallenge) {
		t.Errorf("EK's TPM answers: %v", err)
	}
	guess := attestation.NewAnswer(challenge.ID, make([]byte, 32), liar.statement, channelBinding)
	_, err = b.verifier.Finish(guess, channelBinding)
	wantRefused(t, "guessed", err, attestation.WrongProof)
}

// lie has the AK of a board state that it is in the TPM of another EK.
func (b *bench) lie(of *board, ek Endorsement) *Enrolment {
	b.t.Helper()
	e := b.enrol(of)
	e.statement = attestation.Statement(ek.Public, of.csr)
	err := of.key.with("lie with", func(c *conn, key *loadedKey) error {
		ak, err := key.parent.load(e.akPublic, e.akPrivate)
		if err != nil {
			return err
		}
		defer c.flush(ak.ObjectHandle)
		certified, err := tpm2.Certify{
			ObjectHandle:   key.as(),
			SignHandle:     tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
			QualifyingData: tpm2.TPM2BData{Buffer: e.statement},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		}.Execute(c)
		if err != nil {
			return err
		}
		e.request.EKCertificate = ek.Certificate
		e.request.Certification, e.request.Signature = certified.CertifyInfo.Bytes(), tpm2.Marshal(certified.Signature)
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

// A software AK and a software key that claim all that a TPM's have, under the EK of a
// real TPM: only that nobody can open the challenge tells.
func TestSoftwareKeysUnderARealEKAreRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ak, key := must(issuance.NewKey()), must(issuance.NewKey())
	r := b.enrol(b.one).Request()
	r.CSR = csrFor(t, key)
	r.AK, r.Key = withPoint(akTemplate(), ak), withPoint(keyTemplate(false), key)
	ek := must(x509.ParseCertificate(r.EKCertificate))
	statement := attestation.Statement(ek.RawSubjectPublicKeyInfo, r.CSR)
	r.Certification = tpm2.Marshal(tpm2.TPMSAttest{
		Magic:     tpm2.TPMGeneratedValue,
		Type:      tpm2.TPMSTAttestCertify,
		ExtraData: tpm2.TPM2BData{Buffer: statement},
		Attested:  tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: tpm2.TPM2BName{Buffer: nameOf(r.Key)}}),
	})
	digest := sha256.Sum256(r.Certification)
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(must(ak.Sign(rand.Reader, digest[:], crypto.SHA256)), &rs); err != nil {
		t.Fatal(err)
	}
	r.Signature = tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: rs.R.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: rs.S.Bytes()},
	})})
	challenge, err := b.verifier.Begin(r, channelBinding)
	if err != nil {
		t.Fatal(err)
	}
	// The EK's own TPM, with any AK that it really has.
	if _, err := b.enrol(b.one).Answer(challenge, channelBinding); !errors.Is(err, ErrChallenge) {
		t.Errorf("%v", err)
	}
	_, err = b.verifier.Finish(attestation.NewAnswer(challenge.ID, challenge.Credential, statement, channelBinding), channelBinding)
	wantRefused(t, "guessed", err, attestation.WrongProof)
}

func withPoint(public tpm2.TPMTPublic, key *ecdsa.PrivateKey) []byte {
	point := must(key.PublicKey.Bytes())
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]},
		Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	return tpm2.Marshal(public)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestChallengeIsForOneTPMOneRequestAndOneAnswer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	one, two := b.enrol(b.one), b.enrol(b.two)

	c1, c2 := b.begin(one), b.begin(two)
	if _, err := two.Answer(c1, channelBinding); !errors.Is(err, ErrChallenge) {
		t.Errorf("activation answered by the other TPM: %v", err)
	}
	a1, a2 := b.answer(one, c1), b.answer(two, c2)
	mixedUp := a2
	mixedUp.ID = a1.ID
	_, err := b.verifier.Finish(mixedUp, channelBinding)
	wantRefused(t, "answer of the other board", err, attestation.MixedUp)
	_, err = b.verifier.Finish(a1, channelBinding)
	wantRefused(t, "after a wrong answer", err, attestation.Answered)

	if _, err := b.verifier.Finish(a2, channelBinding); err != nil {
		t.Errorf("the other board, undisturbed: %v", err)
	}
	_, err = b.verifier.Finish(a2, channelBinding)
	wantRefused(t, "answered twice", err, attestation.Answered)

	reused := b.answer(one, b.begin(one))
	reused.ID = b.begin(one).ID
	_, err = b.verifier.Finish(reused, channelBinding)
	wantRefused(t, "another challenge's answer", err, attestation.WrongProof)

	late := b.answer(one, b.begin(one))
	b.now = b.now.Add(time.Minute)
	_, err = b.verifier.Finish(late, channelBinding)
	wantRefused(t, "expired", err, attestation.Expired)

	// Somebody between board and station has a connection to each.
	relayed, err := one.Answer(b.begin(one), bytes.Repeat([]byte("d"), 32))
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.verifier.Finish(relayed, channelBinding)
	wantRefused(t, "relayed", err, attestation.Relayed)
	relayed = b.answer(one, b.begin(one))
	relayed.Binding = bytes.Repeat([]byte("d"), 32)
	_, err = b.verifier.Finish(relayed, relayed.Binding)
	wantRefused(t, "relayed, with the binding altered", err, attestation.WrongProof)

	stranger := b.answer(one, b.begin(one))
	_, err = b.newVerifier(attestation.Config{Roots: []*x509.Certificate{b.maker.Root}}).Finish(stranger, channelBinding)
	wantRefused(t, "answered to another station", err, attestation.UnknownChallenge)
}

func TestForeignManufacturerIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	other := tpmtest.NewManufacturer(t)
	stranger := newBoard(t, other.Start(t))
	_, err := b.verifier.Begin(b.enrol(stranger).Request(), channelBinding)
	wantRefused(t, "foreign manufacturer", err, attestation.UntrustedEK)
	b.verifier = b.newVerifier(attestation.Config{Roots: []*x509.Certificate{other.Root}})
	r := b.enrol(stranger).Request()
	_, err = b.verifier.Begin(r, channelBinding)
	wantRefused(t, "without the intermediate", err, attestation.UntrustedEK)
	r.EKIntermediates = [][]byte{other.Intermediate.Raw}
	if _, err = b.verifier.Begin(r, channelBinding); err != nil {
		t.Errorf("with the intermediate from the board: %v", err)
	}
}

// What the AK signs of others' making never looks like a TPM's statement.
func TestRealAKDoesNotSignForgedStatements(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	e := b.enrol(b.one)
	forged := bytes.Clone(e.Request().Certification)
	forged[len(forged)-1] ^= 1
	digest := sha256.Sum256(forged)
	err := b.one.tpm.use("forge with", func(c *conn) error {
		parent, err := c.primary(nil)
		if err != nil {
			return err
		}
		ak, err := parent.load(e.akPublic, e.akPrivate)
		if err != nil {
			return err
		}
		defer c.flush(ak.ObjectHandle)
		_, err = tpm2.Sign{
			KeyHandle:  tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
			Digest:     tpm2.TPM2BDigest{Buffer: digest[:]},
			InScheme:   ecdsaSHA256(),
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
		}.Execute(c)
		return err
	})
	if !errors.Is(err, tpm2.TPMRCTicket) {
		t.Errorf("%v", err)
	}
}
