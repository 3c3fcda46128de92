package station

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// maxRequests bounds how many requests one folder may hold.
const maxRequests = 10_000

// RequestOrder asks for certificates for requests in files, of boards that no network
// reaches.
type RequestOrder struct {
	Requests string   // a file NAME.csr or a folder of such
	Order    string   // name or number; "" with ID only: as in TokenOrder
	ID       string   // of one request; "": the order's next that is free
	Out      string   // the folder for NAME.crt and ca.crt
	Model    string   // as in DeviceOrder, of a new order
	OU       []string // as in DeviceOrder, of a new order
}

// Answered says what became of one request. Error is set if it got nothing.
type Answered struct {
	Request     string `json:"request"`
	ID          string `json:"id,omitempty"`
	Serial      string `json:"serial,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	File        string `json:"file,omitempty"`
	Repeated    bool   `json:"repeated,omitempty"` // its key had the certificate already
	Error       string `json:"error,omitempty"`
}

// AnswerRequests issues a certificate for each request, which shows that its board has
// the key, and writes it into the folder: the leaf, then the issuer. Of a request the
// key alone is believed. The same request, after a kill or not, gets the same
// certificate. A request that is no good doesn't keep the others from theirs; the error
// is of what stopped the station.
func (s *Station) AnswerRequests(o RequestOrder) ([]Answered, error) {
	a, err := s.valid()
	if err != nil {
		return nil, err
	}
	files, err := requestFiles(o)
	if err != nil {
		return nil, err
	}
	if err := pemfile.Write(filepath.Join(o.Out, deviceRootFile), pemfile.EncodeCertificates(a.bundle()...), 0o644); err != nil {
		return nil, err
	}
	var list []Answered
	for _, file := range files {
		answered, err := s.answer(a, o, file)
		answered.Request = file
		if err != nil {
			answered.Error = err.Error()
		}
		list = append(list, answered)
		if errors.Is(err, ledger.ErrBudget) || errors.Is(err, issuance.ErrAuthority) { // the others would hear the same
			return list, refused(err)
		}
	}
	return list, nil
}

func requestFiles(o RequestOrder) ([]string, error) {
	info, err := os.Stat(o.Requests)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errorf(ErrNotFound, "there is no file or folder %s", o.Requests)
	}
	if err != nil {
		return nil, err
	}
	if out, err := os.Stat(o.Out); err != nil || !out.IsDir() {
		return nil, errorf(ErrNotFound, "there is no folder %s: make it, or choose another --out", o.Out)
	}
	if !info.IsDir() {
		return []string{o.Requests}, nil
	}
	files, err := filepath.Glob(filepath.Join(globbed(o.Requests), "*.csr"))
	switch {
	case err != nil:
		return nil, err
	case len(files) == 0:
		return nil, errorf(ErrNotFound, "there is no file *.csr in %s", o.Requests)
	case len(files) > maxRequests:
		return nil, errorf(ErrInvalid, "%s has more than %d requests: part it", o.Requests, maxRequests)
	case len(files) > 1 && o.ID != "":
		return nil, errorf(ErrInvalid, "%s has %d requests, and one ID is for one: name the file, or an order", o.Requests, len(files))
	}
	slices.Sort(files)
	return files, nil
}

// globbed takes the meaning of a pattern from a folder's name.
func globbed(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

func (s *Station) answer(a *authority, o RequestOrder, file string) (Answered, error) {
	der, err := pemfile.ReadCSR(file)
	if err != nil {
		return Answered{}, err
	}
	csr, err := issuance.ParseCSR(der)
	if err != nil {
		return Answered{}, fmt.Errorf("%s: %w", file, err)
	}
	path := filepath.Join(o.Out, strings.TrimSuffix(filepath.Base(file), ".csr")+".crt")
	if path == filepath.Join(o.Out, deviceRootFile) {
		return Answered{}, errorf(ErrInvalid, "%s would get the name of the trust bundle: rename it", file)
	}
	if err := replaceable(path, csr); err != nil {
		return Answered{}, err
	}
	e, err := s.enrolRequest(a, o, csr)
	if err != nil {
		return Answered{}, refused(err)
	}
	if err := pemfile.WriteCertificates(path, e.Certificate, a.issuer.Certificate()); err != nil {
		return Answered{}, err
	}
	return Answered{
		ID: e.ID, Serial: identity.SerialString(e.Certificate.SerialNumber), Fingerprint: identity.Fingerprint(e.Certificate), File: path, Repeated: e.Repeated,
	}, s.Delivered(e.ID)
}

// replaceable refuses to write over another key's certificate.
func replaceable(path string, csr *x509.CertificateRequest) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	certs, err := pemfile.ReadCertificates(path)
	if err != nil || string(certs[0].RawSubjectPublicKeyInfo) != string(csr.RawSubjectPublicKeyInfo) {
		return fmt.Errorf("%s exists and is not this request's certificate, so it is not overwritten: choose another --out", path)
	}
	return nil
}

// enrolRequest finds the order and the ID for a request: those that its key has, if it
// was here before, else those that the command names.
func (s *Station) enrolRequest(a *authority, o RequestOrder, csr *x509.CertificateRequest) (Enrolled, error) {
	r := ledger.Reservation{ID: o.ID, KeyHash: ledger.HashKey(csr.RawSubjectPublicKeyInfo), Protection: ledger.Software}
	owner, err := s.ledger.KeyOwner(r.KeyHash)
	if err != nil {
		return Enrolled{}, err
	}
	if owner != "" {
		if o.ID != "" && o.ID != owner {
			return Enrolled{}, fmt.Errorf("the request's key is that of %s: every device needs a key of its own", owner)
		}
		record, der, err := s.ledger.Device(owner)
		if err != nil {
			return Enrolled{}, err
		}
		if der != nil && record.KeyHash == r.KeyHash {
			return s.again(owner, r.KeyHash)
		}
		order, _, err := s.ledger.OrderOf(owner) // a killed run reserved it
		if err != nil {
			return Enrolled{}, err
		}
		r.ID, r.Order = owner, order.Number
		return s.certify(a, r, csr.PublicKey)
	}
	order, err := s.tokenOrder(a, TokenOrder{Order: o.Order, ID: o.ID, Model: o.Model, OU: o.OU})
	if err != nil {
		return Enrolled{}, err
	}
	r.Order = order.Number
	return s.certify(a, r, csr.PublicKey)
}
