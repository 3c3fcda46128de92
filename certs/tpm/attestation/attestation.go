// Package attestation decides whether a key lives in a genuine TPM 2.0 (TCG "Trusted
// Platform Module Library", revision 1.59; "the Library" below), and holds the three
// messages in which a board and whoever enrols it talk about that:
//
//	board    Request     endorsement key (EK), attestation key (AK), device key, and the AK's certification of it
//	station  Challenge   a secret that only a TPM with that EK and that AK can open (Library Part 1, 24)
//	board    Answer      proof of the secret, bound to this request and this connection
//
// Package tpm is the board's end. A [Verifier] is the other, in pure Go, without a TPM.
package attestation

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"io"
	"time"
)

// MaxRequest, MaxChallenge and MaxAnswer bound the JSON of the messages in bytes, and
// MaxIntermediates the certificates between an EK's and a root. With those of 2 kB a
// request has about 15 kB.
const (
	MaxRequest       = 64 << 10
	MaxChallenge     = 2 << 10
	MaxAnswer        = 1 << 10
	MaxIntermediates = 4
)

const (
	maxDER       = 8 << 10 // a certificate or a certificate request
	maxStructure = 1 << 10 // a TPM's structure; ours have up to 150 bytes
	minBinding   = 16
	maxBinding   = 64
	idSize       = 32 // hex digits
)

// Request is what a board sends first. All of it are claims until the Challenge to it
// has been answered.
type Request struct {
	// CSR is the PKCS #10 request for the device key, DER.
	CSR []byte `json:"csr"`

	// EKCertificate is the EK's certificate by the TPM's manufacturer, DER, and
	// EKIntermediates lead from it towards a root. A board without one sends EKPublic,
	// the EK's SubjectPublicKeyInfo, DER. Exactly one of the two is there.
	EKCertificate   []byte   `json:"ekCertificate,omitempty"`
	EKIntermediates [][]byte `json:"ekIntermediates,omitempty"`
	EKPublic        []byte   `json:"ekPublic,omitempty"`

	// AK and Key are the public areas (TPMT_PUBLIC) of attestation and device key.
	AK  []byte `json:"ak"`
	Key []byte `json:"key"`

	// Certification is what TPM2_Certify said of the device key (TPMS_ATTEST), with the
	// Statement as qualifying data; Signature is the AK's under it (TPMT_SIGNATURE).
	Certification []byte `json:"certification"`
	Signature     []byte `json:"signature"`
}

// Challenge is the answer to a Request: a credential for TPM2_ActivateCredential.
type Challenge struct {
	ID         string    `json:"id"`
	Credential []byte    `json:"credential"` // TPMS_ID_OBJECT, without TPM2B_ID_OBJECT's size
	Secret     []byte    `json:"secret"`     // TPMU_ENCRYPTED_SECRET, without its size
	Expires    time.Time `json:"expires"`    // by the station's clock, for the log only
}

// Answer is a board's answer to a Challenge, see [NewAnswer].
type Answer struct {
	ID        string `json:"id"`
	Statement []byte `json:"statement"`
	Binding   []byte `json:"binding"`
	Proof     []byte `json:"proof"`
}

// Statement returns what the AK signs in its certification: for which EK
// (SubjectPublicKeyInfo, DER) and for which certificate request (DER) it is.
func Statement(ekPublic, csr []byte) []byte {
	digest := sha256.Sum256(transcript("fleethub tpm statement 1", ekPublic, csr))
	return digest[:]
}

// NewAnswer returns the answer to the challenge of that ID, once the TPM has opened its
// secret. The binding is what the board knows of its connection to the station and a
// relay could not make the same: RFC 9266's tls-exporter or RFC 5929's
// tls-server-end-point, of 16 to 64 bytes.
func NewAnswer(id string, secret, statement, binding []byte) Answer {
	return Answer{ID: id, Statement: statement, Binding: binding, Proof: proof(id, secret, statement, binding)}
}

// proof shows knowledge of the secret without telling it, for this answer only.
func proof(id string, secret, statement, binding []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write(transcript("fleethub tpm answer 1", []byte(id), statement, binding))
	return mac.Sum(nil)
}

// transcript joins the parts so that no two lists of parts give the same bytes.
func transcript(label string, parts ...[]byte) []byte {
	out := append([]byte(label), 0)
	for _, part := range parts {
		out = binary.BigEndian.AppendUint32(out, uint32(len(part)))
		out = append(out, part...)
	}
	return out
}

// EKHash returns the [EKHash] of the endorsement key that the request names, as a claim:
// for who wants to know whose TPM it would be before the work of [Verifier.Begin].
func (r *Request) EKHash() ([sha256.Size]byte, error) {
	if len(r.EKCertificate) == 0 {
		return EKHash(r.EKPublic), nil
	}
	cert, err := x509.ParseCertificate(r.EKCertificate)
	if err != nil {
		return [sha256.Size]byte{}, refuse(Malformed, "the EK certificate can't be read: %w", err)
	}
	return EKHash(cert.RawSubjectPublicKeyInfo), nil
}

// ParseRequest decodes a board's request. Unknown fields, trailing data and sizes
// beyond every TPM's are refused as Malformed.
func ParseRequest(data []byte) (Request, error) {
	var r Request
	if err := decode(data, MaxRequest, &r); err != nil {
		return Request{}, err
	}
	return r, r.check()
}

// ParseAnswer is ParseRequest for an answer.
func ParseAnswer(data []byte) (Answer, error) {
	var a Answer
	if err := decode(data, MaxAnswer, &a); err != nil {
		return Answer{}, err
	}
	return a, a.check()
}

// ParseChallenge is ParseRequest for a challenge, at the board.
func ParseChallenge(data []byte) (Challenge, error) {
	var c Challenge
	if err := decode(data, MaxChallenge, &c); err != nil {
		return Challenge{}, err
	}
	return c, c.check()
}

func decode(data []byte, limit int, into any) error {
	if len(data) > limit {
		return refuse(Malformed, "the message has more than %d bytes", limit)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return refuse(Malformed, "the message isn't the JSON it should be: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return refuse(Malformed, "the message goes on after its end")
	}
	return nil
}

func (r *Request) check() error {
	if (len(r.EKCertificate) == 0) == (len(r.EKPublic) == 0) {
		return refuse(Malformed, "exactly one of ekCertificate and ekPublic must be there")
	}
	if len(r.EKIntermediates) > MaxIntermediates {
		return refuse(Malformed, "%d intermediate certificates are more than the %d that are looked at", len(r.EKIntermediates), MaxIntermediates)
	}
	for _, der := range append([][]byte{r.EKCertificate, r.EKPublic, r.CSR}, r.EKIntermediates...) {
		if len(der) > maxDER {
			return refuse(Malformed, "a certificate or request of %d bytes; the most is %d", len(der), maxDER)
		}
	}
	for name, part := range map[string][]byte{"ak": r.AK, "key": r.Key, "certification": r.Certification, "signature": r.Signature} {
		if len(part) == 0 || len(part) > maxStructure {
			return refuse(Malformed, "%s has %d bytes; 1 to %d are expected", name, len(part), maxStructure)
		}
	}
	return nil
}

func (a *Answer) check() error {
	if len(a.ID) != idSize || len(a.Statement) != sha256.Size || len(a.Proof) != sha256.Size {
		return refuse(Malformed, "id, statement and proof must have %d, %d and %d bytes", idSize, sha256.Size, sha256.Size)
	}
	return checkBinding(a.Binding)
}

func (c *Challenge) check() error {
	if len(c.ID) != idSize || len(c.Credential) == 0 || len(c.Secret) == 0 {
		return refuse(Malformed, "the challenge lacks its id, credential or secret")
	}
	return nil
}

func checkBinding(binding []byte) error {
	if len(binding) < minBinding || len(binding) > maxBinding {
		return refuse(Malformed, "a channel binding of %d bytes; %d to %d are expected", len(binding), minBinding, maxBinding)
	}
	return nil
}
