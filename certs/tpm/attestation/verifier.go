package attestation

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"time"
)

// Config is what a Verifier trusts, and its limits.
type Config struct {
	// Roots are the TPM manufacturers' CAs that are trusted, Intermediates what may lead
	// to them. Without roots and without Allowed nothing is.
	Roots, Intermediates []*x509.Certificate

	// Allowed tells whether the endorsement key of that [EKHash] is trusted without a
	// certificate; nil allows none. It is called concurrently.
	Allowed func(ekHash [sha256.Size]byte) bool

	// Lifetime is how long a challenge can be answered; 0 is one minute. The slowest
	// TPMs take ten seconds.
	Lifetime time.Duration

	// Open is how many challenges are remembered at most; 0 is 1024. One endorsement key
	// has eight of them open at most.
	Open int

	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

const (
	defaultLifetime = time.Minute
	defaultOpen     = 1024

	// openPerEK leaves a board some attempts, and no flood of its requests the others none.
	openPerEK = 8
)

// Verifier challenges boards and judges their answers. It keeps its challenges in
// memory: losing them costs each board a second attempt. It is safe for concurrent use.
type Verifier struct {
	roots, intermediates *x509.CertPool
	allowed              func([sha256.Size]byte) bool
	now                  func() time.Time
	challenges           challenges
}

// NewVerifier returns a verifier without open challenges.
func NewVerifier(c Config) (*Verifier, error) {
	if len(c.Roots) == 0 && c.Allowed == nil {
		return nil, errors.New("a TPM verifier without manufacturers' roots and without an allow-list would refuse every board; configure one of them")
	}
	if c.Lifetime < 0 || c.Open < 0 {
		return nil, errors.New("the lifetime and number of challenges can't be negative")
	}
	v := &Verifier{roots: x509.NewCertPool(), intermediates: x509.NewCertPool(), allowed: c.Allowed, now: c.Now}
	for _, cert := range c.Roots {
		v.roots.AddCert(cert)
	}
	for _, cert := range c.Intermediates {
		v.intermediates.AddCert(cert)
	}
	if v.allowed == nil {
		v.allowed = func([sha256.Size]byte) bool { return false }
	}
	if v.now == nil {
		v.now = time.Now
	}
	v.challenges = challenges{lifetime: c.Lifetime, limit: c.Open, byID: make(map[string]*challenge), open: make(map[[sha256.Size]byte]int)}
	if c.Lifetime == 0 {
		v.challenges.lifetime = defaultLifetime
	}
	if c.Open == 0 {
		v.challenges.limit = defaultOpen
	}
	return v, nil
}

// Evidence is what is known of a board that has answered its challenge: CSR is for a
// key that was made in the TPM with that endorsement key and can't leave it.
type Evidence struct {
	// CSR's signature is verified; names and extensions in it are claims still.
	CSR *x509.CertificateRequest

	// EKHash is the TPM's name for life, see [EKHash]. That it stays with one device is
	// for the caller to see to.
	EKHash [sha256.Size]byte
	Trust  Trust

	// EKCertificate is nil if the board sent none. With ByAllowList nothing in it is
	// verified, and the three below are empty.
	EKCertificate                *x509.Certificate
	Manufacturer, Model, Version string

	// Firmware is the version of the TPM's firmware, as it says, in its maker's format.
	Firmware uint64
}

// EK returns EKHash in lower-case hex.
func (e Evidence) EK() string { return hex.EncodeToString(e.EKHash[:]) }

// Begin judges all of a request that can be judged by reading, and returns the
// challenge to what can't: that EK and AK are in one TPM, and that it is here now. The
// binding is what this end knows of the connection, see [NewAnswer].
func (v *Verifier) Begin(r Request, binding []byte) (Challenge, error) {
	if err := checkBinding(binding); err != nil {
		return Challenge{}, err
	}
	evidence, ek, ak, statement, err := v.read(&r)
	if err != nil {
		return Challenge{}, err
	}
	secret := make([]byte, sha256.Size)
	id := make([]byte, idSize/2)
	rand.Read(secret)
	rand.Read(id)
	idObject, encrypted, err := ek.credential(ak.name, secret)
	if err != nil {
		return Challenge{}, refuse(UntrustedEK, "nothing can be encrypted to the EK: %w", err)
	}
	c := &challenge{evidence: evidence, secret: secret, statement: statement, binding: bytes.Clone(binding)}
	expires, err := v.challenges.add(hex.EncodeToString(id), c, v.now())
	if err != nil {
		return Challenge{}, err
	}
	return Challenge{ID: hex.EncodeToString(id), Credential: idObject, Secret: encrypted, Expires: expires}, nil
}

// read judges the request without the TPM.
func (v *Verifier) read(r *Request) (evidence Evidence, ek *endorsement, ak *object, statement []byte, err error) {
	refused := func(err error) (Evidence, *endorsement, *object, []byte, error) {
		return Evidence{}, nil, nil, nil, err
	}
	if err := r.check(); err != nil {
		return refused(err)
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return refused(refuse(Malformed, "the certificate request can't be read: %w", err))
	}
	if ek, err = v.endorse(r); err != nil {
		return refused(err)
	}
	if ak, err = parseAK(r.AK); err != nil {
		return refused(err)
	}
	key, err := parseKey(r.Key)
	if err != nil {
		return refused(err)
	}
	said, firmware, err := certified(ak, key, r.Certification, r.Signature)
	if err != nil {
		return refused(err)
	}
	statement = Statement(ek.public, r.CSR)
	if !bytes.Equal(said, statement) {
		return refused(refuse(WrongStatement, "the attestation key certified for another EK or another certificate request"))
	}
	if !key.key.Equal(csr.PublicKey) {
		return refused(refuse(KeyMismatch, "the certificate request is for another key than the one in the TPM"))
	}
	if err := csr.CheckSignature(); err != nil {
		return refused(refuse(Malformed, "the certificate request isn't signed by its own key: %w", err))
	}
	return Evidence{
		CSR: csr, EKHash: ek.hash, Trust: ek.trust, EKCertificate: ek.certificate,
		Manufacturer: ek.manufacturer, Model: ek.model, Version: ek.version, Firmware: firmware,
	}, ek, ak, statement, nil
}

// Finish judges the answer to a challenge, which is spent by it whatever the answer is.
func (v *Verifier) Finish(a Answer, binding []byte) (Evidence, error) {
	if err := errors.Join(a.check(), checkBinding(binding)); err != nil {
		return Evidence{}, err
	}
	c, err := v.challenges.take(a.ID, v.now())
	if err != nil {
		return Evidence{}, err
	}
	defer clear(c.secret)
	if !hmac.Equal(a.Statement, c.statement) {
		return Evidence{}, refuse(MixedUp, "the answer is about another request than the challenge was made for")
	}
	if !hmac.Equal(a.Proof, proof(a.ID, c.secret, a.Statement, a.Binding)) {
		return Evidence{}, refuse(WrongProof, "the TPM that answered doesn't hold both the EK and the attestation key")
	}
	// After the proof: only now it is the TPM's owner who says on which connection it answered.
	if !hmac.Equal(a.Binding, binding) || !hmac.Equal(c.binding, binding) {
		return Evidence{}, refuse(Relayed, "the TPM answered on another connection than this one; somebody between board and station passes messages on")
	}
	return c.evidence, nil
}
