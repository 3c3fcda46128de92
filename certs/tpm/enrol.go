package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/fleethub/fleethub/certs/tpm/attestation"
)

// Enrolment is the board's end of one attestation. Its attestation key is made for it
// and forgotten with it. An Enrolment holds nothing in the TPM and can be dropped; it
// is for one goroutine at a time.
type Enrolment struct {
	tpm       *TPM
	kind      endorsementKind
	akPublic  []byte // TPMT_PUBLIC
	akPrivate []byte
	parent    []byte // name
	request   attestation.Request
	statement []byte
}

// Enrol has the key's TPM state that it holds the key, for that certificate request
// (PKCS #10, DER), which must be for the key. The key's PIN, if it has one, is needed.
func (k *Key) Enrol(csr []byte) (*Enrolment, error) { return k.enrol(csr, endorsementKinds()) }

func (k *Key) enrol(csr []byte, kinds []endorsementKind) (*Enrolment, error) {
	e := &Enrolment{tpm: k.tpm}
	err := k.with("attest a key with", func(c *conn, key *loadedKey) error {
		ek, kind, err := c.endorsement(kinds)
		if err != nil {
			return err
		}
		created, err := key.parent.create(akTemplate(), nil)
		if err != nil {
			return err
		}
		e.kind, e.akPublic, e.akPrivate = kind, created.OutPublic.Bytes(), created.OutPrivate.Buffer
		e.parent = key.parent.name.Buffer
		e.statement = attestation.Statement(ek.Public, csr)
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
		e.request = attestation.Request{
			CSR:           csr,
			AK:            e.akPublic,
			Key:           k.file.public,
			Certification: certified.CertifyInfo.Bytes(),
			Signature:     tpm2.Marshal(certified.Signature),
		}
		if e.request.EKCertificate, e.request.EKIntermediates = ek.Certificate, ek.Intermediates; ek.Certificate == nil {
			e.request.EKPublic = ek.Public
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Request returns what to send first. Nobody may change what it points to.
func (e *Enrolment) Request() attestation.Request { return e.request }

// Answer has the TPM open the challenge, for the connection of that binding, see
// [attestation.NewAnswer]. The error is ErrChallenge if it is for another TPM or request.
func (e *Enrolment) Answer(challenge attestation.Challenge, binding []byte) (attestation.Answer, error) {
	var answer attestation.Answer
	err := e.tpm.use("answer a challenge with", func(c *conn) error {
		secret, err := e.activate(c, challenge)
		if err != nil {
			return err
		}
		defer clear(secret)
		answer = attestation.NewAnswer(challenge.ID, secret, e.statement, binding)
		return nil
	})
	return answer, err
}

func (e *Enrolment) activate(c *conn, challenge attestation.Challenge) (secret []byte, err error) {
	parent, err := c.primary(e.parent)
	if err != nil {
		return nil, err
	}
	defer parent.flush()
	ak, err := parent.load(e.akPublic, e.akPrivate)
	if err != nil {
		return nil, err
	}
	defer c.flush(ak.ObjectHandle)
	ek, err := c.endorsementKey(e.kind)
	if err != nil {
		return nil, err
	}
	defer ek.flush()
	reply, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: parent.hidden(tpm2.AESEncryption(128, tpm2.EncryptOut))},
		KeyHandle:      tpm2.AuthHandle{Handle: ek.handle, Name: ek.name, Auth: endorsementAuth(ek)},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: challenge.Credential},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: challenge.Secret},
	}.Execute(c)
	if err != nil {
		if aboutParameter(err) && !errors.Is(err, tpm2.TPMRCHandle) {
			return nil, fmt.Errorf("%w: %w", ErrChallenge, err)
		}
		return nil, err
	}
	return reply.CertInfo.Buffer, nil
}

// endorsementAuth returns what lets us use an endorsement key: its own, empty password
// where the template allows that, else the policy of the other templates.
func endorsementAuth(ek *primary) tpm2.Session {
	if ek.public.ObjectAttributes.UserWithAuth {
		return tpm2.PasswordAuth(nil)
	}
	return tpm2.Policy(tpm2.TPMAlgSHA256, 16, endorsementPolicy)
}

// endorsementPolicy satisfies the policy of the TCG's low-range EK templates: whoever knows the
// endorsement hierarchy's password, mostly empty, may use the key.
func endorsementPolicy(t transport.TPM, handle tpm2.TPMISHPolicy, nonceTPM tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: handle,
		NonceTPM:      nonceTPM,
	}.Execute(t)
	return aboutEndorsement(err)
}

// akTemplate is a restricted signing key: it signs what its TPM made, and of other data
// only what can't be taken for that.
func akTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        true,
			NoDA:                true,
			Restricted:          true,
			SignEncrypt:         true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
		}),
	}
}
