package station

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// Applicant is a board that asks for its certificate over the network.
type Applicant struct {
	CSR     *x509.CertificateRequest // verified by issuance.ParseCSR; nothing of it but the key is believed
	Token   string                   // the secret of its token, or ""
	Claim   *x509.Certificate        // the claim certificate whose key its connection proved, or nil
	EK      string                   // SHA-256 of the endorsement key of the TPM that vouched for the key; "": a software key
	Current *x509.Certificate        // the certificate to be replaced, whose key its connection proved, or nil
}

// Enrolled is what an applicant gets.
type Enrolled struct {
	ID          string
	Certificate *x509.Certificate
	Supersedes  string // serial number of the certificate that it replaces
	Protection  ledger.Protection
	Repeated    bool // it had been issued before, to the same key
}

// Enrol gives an applicant its certificate: reserve, sign, issue, each durable before
// the next. Repeated with the same key and credential, after a crash or not, it returns
// the same certificate. Its errors are those of the station and of the ledger.
func (s *Station) Enrol(p Applicant) (Enrolled, error) {
	a, err := s.valid()
	if err != nil {
		return Enrolled{}, err
	}
	if err := issuance.CheckKey(p.CSR.PublicKey); err != nil {
		return Enrolled{}, err
	}
	r := ledger.Reservation{KeyHash: ledger.HashKey(p.CSR.RawSubjectPublicKeyInfo), Protection: ledger.Software, EK: p.EK}
	if p.EK != "" {
		r.Protection = ledger.TPM
	}
	switch {
	case p.Current != nil:
		current, err := s.current(p, &r)
		if err != nil || current != nil {
			return enrolled(current, err)
		}
	case p.Token != "":
		r.Token = ledger.HashToken(p.Token)
	case p.Claim != nil:
		r.Claim = identity.Fingerprint(p.Claim)
	default:
		return Enrolled{}, fmt.Errorf("the board's credential is %w: it brought none", ledger.ErrCredential)
	}
	return s.certify(a, r, p.CSR.PublicKey)
}

// certify takes a reservation for that key to its certificate.
func (s *Station) certify(a *authority, r ledger.Reservation, pub crypto.PublicKey) (Enrolled, error) {
	serial, err := issuance.NewSerial()
	if err != nil {
		return Enrolled{}, err
	}
	r.Serial = identity.SerialString(serial)
	records, err := s.ledger.Reserve(s.now(), a.maxDevices, r)
	if err != nil {
		return Enrolled{}, err
	}
	record := records[0]
	if record.State != ledger.Reserved {
		return s.again(record.ID, r.KeyHash)
	}
	cert, err := a.certify(s.now(), record, pub)
	if err != nil {
		s.ledger.Abandon(record.ID)
		return Enrolled{}, err
	}
	if err := s.ledger.Issue(s.now(), cert); errors.Is(err, ledger.ErrRefused) {
		return s.again(record.ID, r.KeyHash) // another request with the same key was faster
	} else if err != nil {
		return Enrolled{}, err
	}
	return Enrolled{ID: record.ID, Certificate: cert, Supersedes: record.Supersedes, Protection: record.Protection}, nil
}

func enrolled(e *Enrolled, err error) (Enrolled, error) {
	if e == nil {
		return Enrolled{}, err
	}
	return *e, err
}

// Delivered records that devices have got what Enrol returned.
func (s *Station) Delivered(ids ...string) error { return s.ledger.Deliver(s.now(), ids...) }

// again returns the certificate that was issued to that key before.
func (s *Station) again(id, keyHash string) (Enrolled, error) {
	record, der, err := s.ledger.Device(id)
	if err != nil {
		return Enrolled{}, err
	}
	if der == nil || record.KeyHash != keyHash {
		return Enrolled{}, fmt.Errorf("%s %w by another board: try again in a moment", id, ledger.ErrBusy)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return Enrolled{}, fmt.Errorf("the ledger's certificate of %s is damaged (%w): restore the ledger from a backup", id, err)
	}
	return Enrolled{ID: id, Certificate: cert, Supersedes: record.Supersedes, Protection: record.Protection, Repeated: true}, nil
}

// current checks the certificate that is to be replaced: it must be the newest that this
// station issued for its ID, still good, and an order must be open that replaces it. If
// it was replaced before, by this very key, it returns the certificate of then.
func (s *Station) current(p Applicant, r *ledger.Reservation) (*Enrolled, error) {
	id := p.Current.Subject.CommonName
	record, _, err := s.ledger.Device(id)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, fmt.Errorf("the certificate is %w: this station issued none to %.80q", ledger.ErrCredential, id)
	}
	if err != nil {
		return nil, err
	}
	if now := s.now(); now.After(p.Current.NotAfter) || now.Before(p.Current.NotBefore) {
		return nil, fmt.Errorf("the certificate is %w: it is good from %s to %s", ledger.ErrCredential, stamp(p.Current.NotBefore), stamp(p.Current.NotAfter))
	}
	newest, err := s.ledger.Certificate(record.Sequence)
	if err != nil {
		return nil, err
	}
	replaced, err := s.ledger.Certificate(record.Replaced)
	if err != nil {
		return nil, err
	}
	switch {
	case newest != nil && bytes.Equal(newest, p.Current.Raw):
	case replaced == nil || !bytes.Equal(replaced, p.Current.Raw):
		return nil, fmt.Errorf("the certificate is %w: it is not the newest that this station issued to %.80q", ledger.ErrCredential, id)
	case record.State == ledger.Reserved: // its successor is under way
	case record.KeyHash == r.KeyHash: // its successor is this board's, and was lost on its way
		e, err := s.again(id, r.KeyHash)
		return &e, err
	default:
		return nil, fmt.Errorf("the certificate is %w: it is not the newest that this station issued to %.80q", ledger.ErrCredential, id)
	}
	order, _, err := s.ledger.OrderOf(id)
	if err != nil || order.Kind != ledger.Replacement || order.Closed() {
		return nil, errorf(ledger.ErrRefused, "certificates are renewed at the hub; here one is replaced when `provisioning replace --id %.80s` was given", id)
	}
	r.Order, r.ID = order.Number, id
	return nil, nil
}

// Admits returns nil if Enrol would give the applicant a certificate for a key of that
// protection, as far as that can be told without changing anything.
func (s *Station) Admits(p Applicant, protection ledger.Protection) error {
	a, err := s.valid()
	if err != nil {
		return err
	}
	r := ledger.Reservation{KeyHash: ledger.HashKey(p.CSR.RawSubjectPublicKeyInfo), Protection: protection, EK: p.EK}
	switch {
	case p.Current != nil:
		if current, err := s.current(p, &r); err != nil || current != nil {
			return err
		}
	case p.Token != "":
		r.Token = ledger.HashToken(p.Token)
	case p.Claim != nil:
		r.Claim = identity.Fingerprint(p.Claim)
	}
	return s.ledger.Check(s.now(), a.maxDevices, r)
}

// CACerts returns the certificates that a device needs to know its hub and to present
// its own chain: the root, the hub's issuing CAs and the station's. Without an authority
// there are none.
func (s *Station) CACerts() []*x509.Certificate {
	a := s.authority.Load()
	if a == nil {
		return nil
	}
	return append(a.bundle(), a.issuer.Certificate())
}
