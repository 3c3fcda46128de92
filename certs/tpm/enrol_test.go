package tpm

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
)

// bench is a station's bench: two boards by one manufacturer, and who judges them.
type bench struct {
	t        *testing.T
	maker    *tpmtest.Manufacturer
	one, two *board
	verifier *attestation.Verifier
	now      time.Time
}

// board is a board with a key in its TPM.
type board struct {
	tpm *TPM
	key *Key
	csr []byte
}

var channelBinding = bytes.Repeat([]byte("c"), 32)

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, maker: tpmtest.NewManufacturer(t), now: time.Now().Add(time.Hour)} // after the certificates' beginning
	b.one, b.two = newBoard(t, b.maker.Start(t)), newBoard(t, b.maker.Start(t))
	b.verifier = b.newVerifier(attestation.Config{Roots: []*x509.Certificate{b.maker.Root}, Intermediates: []*x509.Certificate{b.maker.Intermediate}})
	return b
}

func (b *bench) newVerifier(c attestation.Config) *attestation.Verifier {
	b.t.Helper()
	c.Now = func() time.Time { return b.now }
	v, err := attestation.NewVerifier(c)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

func newBoard(t *testing.T, e *tpmtest.Emulator) *board {
	t.Helper()
	d := openAt(t, e)
	k := mustCreateKey(t, d, nil)
	return &board{tpm: d, key: k, csr: csrFor(t, k)}
}

func csrFor(t testing.TB, k crypto.Signer) []byte {
	t.Helper()
	csr, err := issuance.NewCSR(k, "board")
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func (b *bench) enrol(of *board) *Enrolment {
	b.t.Helper()
	e, err := of.key.Enrol(of.csr)
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

func (b *bench) begin(e *Enrolment) attestation.Challenge {
	b.t.Helper()
	c, err := b.verifier.Begin(overTheWire(b.t, e.Request(), attestation.ParseRequest), channelBinding)
	if err != nil {
		b.t.Fatal(err)
	}
	return overTheWire(b.t, c, attestation.ParseChallenge)
}

func (b *bench) answer(e *Enrolment, c attestation.Challenge) attestation.Answer {
	b.t.Helper()
	a, err := e.Answer(c, channelBinding)
	if err != nil {
		b.t.Fatal(err)
	}
	return overTheWire(b.t, a, attestation.ParseAnswer)
}

// overTheWire is what arrives of a message.
func overTheWire[M any](t *testing.T, message M, parse func([]byte) (M, error)) M {
	t.Helper()
	data, err := json.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	arrived, err := parse(data)
	if err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	return arrived
}

func wantRefused(t *testing.T, what string, err error, reason attestation.Reason) {
	t.Helper()
	var refusal *attestation.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != reason || !errors.Is(err, reason) {
		t.Errorf("%s: %v; want %s", what, err, reason)
	}
}

func TestTPMOfKnownManufacturerEnrols(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	rsa := endorsementKinds()[2:]
	for name, enrol := range map[string]func() (*Enrolment, error){
		"P-384 EK": func() (*Enrolment, error) { return b.one.key.Enrol(b.one.csr) },
		"RSA EK":   func() (*Enrolment, error) { return b.one.key.enrol(b.one.csr, rsa) },
	} {
		e, err := enrol()
		if err != nil {
			t.Fatal(err)
		}
		evidence, err := b.verifier.Finish(b.answer(e, b.begin(e)), channelBinding)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !b.one.key.public.Equal(evidence.CSR.PublicKey) || evidence.Trust != attestation.ByCertificate ||
			evidence.EKCertificate == nil || evidence.EKHash != attestation.EKHash(evidence.EKCertificate.RawSubjectPublicKeyInfo) ||
			evidence.Manufacturer != "id:00001014" || evidence.Model != "swtpm" || evidence.Version == "" || evidence.Firmware == 0 {
			t.Errorf("%s: %+v", name, evidence)
		}
		ek, err := b.one.tpm.Endorsement()
		if same := ek.Hash() == evidence.EK(); err != nil || same != (name == "P-384 EK") {
			t.Errorf("%s: the TPM says it is %s, the evidence %s", name, ek.Hash(), evidence.EK())
		}
	}
}

func TestTPMWithoutCertificateEnrolsByItsHash(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	k := mustCreateKey(t, d, []byte("1234"))
	ek, err := d.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, now: time.Now(), one: &board{tpm: d, key: k, csr: csrFor(t, k)}}
	b.verifier = b.newVerifier(attestation.Config{Allowed: func(hash [32]byte) bool {
		return attestation.Evidence{EKHash: hash}.EK() == ek.Hash()
	}})
	enrolment := b.enrol(b.one)
	challenge := b.begin(enrolment)
	e.Restart() // between the two messages, since nothing is kept loaded
	evidence, err := b.verifier.Finish(b.answer(enrolment, challenge), channelBinding)
	if err != nil || evidence.EK() != ek.Hash() || evidence.Trust != attestation.ByAllowList || evidence.Manufacturer != "" {
		t.Errorf("%+v, %v", evidence, err)
	}
	// The persistent endorsement key of the same template serves as well.
	command(t, d, func(c *conn) error {
		p, err := c.transient(tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate)
		if err != nil {
			return err
		}
		defer p.flush()
		_, err = tpm2.EvictControl{
			Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			ObjectHandle:     &tpm2.NamedHandle{Handle: p.handle, Name: p.name},
			PersistentHandle: endorsementKinds()[0].persistent,
		}.Execute(c)
		return err
	})
	enrolment = b.enrol(b.one)
	if _, err := b.verifier.Finish(b.answer(enrolment, b.begin(enrolment)), channelBinding); err != nil {
		t.Error(err)
	}
}

func TestEndorsementPasswordIsNoAccess(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	k := mustCreateKey(t, d, nil)
	e, err := k.Enrol(csrFor(t, k))
	if err != nil {
		t.Fatal(err)
	}
	command(t, d, func(c *conn) error {
		_, err := tpm2.HierarchyChangeAuth{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			NewAuth:    tpm2.TPM2BAuth{Buffer: []byte("secret")},
		}.Execute(c)
		return err
	})
	_, endorsementErr := d.Endorsement()
	_, answerErr := e.Answer(attestation.Challenge{ID: "x", Credential: []byte{1}, Secret: []byte{1}}, channelBinding)
	_, enrolErr := k.Enrol(csrFor(t, k))
	for what, err := range map[string]error{"read": endorsementErr, "answer": answerErr, "enrol": enrolErr} {
		if !errors.Is(err, ErrAccess) || !bytes.Contains([]byte(err.Error()), []byte("tpm2_changeauth -c e")) {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantSigns(t, k)
}

// The certificates between EK and root come from where some manufacturers put them.
func TestChainIsReadFromNV(t *testing.T) {
	t.Parallel()
	maker := tpmtest.NewManufacturer(t)
	d := openAt(t, maker.Start(t))
	chain := append(bytes.Clone(maker.Intermediate.Raw), maker.Root.Raw...)
	cut := len(chain) / 2 // one certificate may continue in the next index
	command(t, d, func(c *conn) error {
		return errors.Join(c.writeNV(firstChain, chain[:cut]), c.writeNV(firstChain+1, chain[cut:]))
	})
	e, err := d.Endorsement()
	if err != nil || len(e.Intermediates) != 2 || !bytes.Equal(e.Intermediates[0], maker.Intermediate.Raw) || !bytes.Equal(e.Intermediates[1], maker.Root.Raw) {
		t.Errorf("%d certificates, %v", len(e.Intermediates), err)
	}
}

// A certificate that is cut short, of another key or not there is told apart.
func TestEKCertificateInNVIsHeldToTheKey(t *testing.T) {
	t.Parallel()
	maker := tpmtest.NewManufacturer(t)
	other, err := openAt(t, maker.Start(t)).Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		data []byte
		says string
	}{
		"another key's": {append(bytes.Clone(other.Certificate), 0xff, 0xff), "another key"},
		"cut short":     {other.Certificate[:100], "holds no certificate"},
		"no ASN.1":      {[]byte("certificate"), "holds no certificate"},
		"no X.509":      {[]byte{0x30, 0}, "can't be read"},
	} {
		d, _ := open(t)
		command(t, d, func(c *conn) error { return c.writeNV(endorsementKinds()[0].certificate, tt.data) })
		if _, err := d.Endorsement(); err == nil || !bytes.Contains([]byte(err.Error()), []byte(tt.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func (c *conn) writeNV(index tpm2.TPMHandle, data []byte) error {
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	public := tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true},
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(public)}).Execute(c); err != nil {
		return err
	}
	for offset := 0; offset < len(data); offset += 512 {
		reply, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
		if err != nil {
			return err
		}
		_, err = tpm2.NVWrite{
			AuthHandle: owner,
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: reply.NVName},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data[offset:min(offset+512, len(data))]},
			Offset:     uint16(offset),
		}.Execute(c)
		if err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkEnrol is a whole attestation, from making the key to the evidence.
func BenchmarkEnrol(b *testing.B) {
	d, _ := open(b)
	v, err := attestation.NewVerifier(attestation.Config{Allowed: func([32]byte) bool { return true }})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		k := mustCreateKey(b, d, nil)
		e, err := k.Enrol(csrFor(b, k))
		if err != nil {
			b.Fatal(err)
		}
		c, err := v.Begin(e.Request(), channelBinding)
		if err != nil {
			b.Fatal(err)
		}
		a, err := e.Answer(c, channelBinding)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := v.Finish(a, channelBinding); err != nil {
			b.Fatal(err)
		}
	}
}
