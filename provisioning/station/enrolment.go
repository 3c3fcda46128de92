package station

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"runtime"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// Order is one device to be given a key and a certificate. The ID is the order's and
// comes from nowhere else.
type Order struct {
	ID    string
	Out   string   // the device's credential folder
	Model string   // optional, for the manifest
	OU    []string // optional, into the certificate
}

// Delivery says what a device got.
type Delivery struct {
	ID          string    `json:"id"`
	Serial      string    `json:"serial"`
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
	Out         string    `json:"out"`
	Repeated    bool      `json:"repeated"` // the certificate had been issued before
}

// Issue gives one device its key, certificate and the root, as DIR/device.key,
// device.crt and ca.crt. Repeated with the same ID and folder, after a kill or not, it
// delivers the same certificate. An ID never gets a second one.
func (s *Station) Issue(o Order) (Delivery, error) {
	if err := identity.ValidID(o.ID); err != nil {
		return Delivery{}, errorf(ErrInvalid, "no device can have that ID: %w", err)
	}
	if err := validAttributes(o.Model, o.OU); err != nil {
		return Delivery{}, err
	}
	a, err := s.valid()
	if err != nil {
		return Delivery{}, err
	}
	if o.Out, err = absolute(o.Out); err != nil {
		return Delivery{}, err
	}
	e := &enrolment{Order: o}
	if err := s.enrol(a, []*enrolment{e}); err != nil {
		return Delivery{}, err
	}
	if e.refusal != nil {
		return Delivery{}, e.refusal
	}
	return Delivery{
		ID: e.ID, Serial: e.record.Serial, Fingerprint: identity.Fingerprint(e.cert),
		NotAfter: e.cert.NotAfter, Out: e.Out, Repeated: e.repeated,
	}, nil
}

// absolute returns the path as it is recorded. An empty one would be the folder the
// command happens to run in.
func absolute(out string) (string, error) {
	if out == "" {
		return "", errorf(ErrInvalid, "the name of the folder to write to is empty: give one with --out")
	}
	return filepath.Abs(out)
}

// validAttributes returns nil if model and OU can go into manifests and certificates:
// printable text of at most 64 characters each (RFC 5280 appendix A).
func validAttributes(model string, ou []string) error {
	for _, text := range append([]string{model}, ou...) {
		if utf8.RuneCountInString(text) > 64 || !utf8.ValidString(text) || slices.ContainsFunc([]rune(text), func(r rune) bool { return !unicode.IsPrint(r) }) {
			return errorf(ErrInvalid, "model or OU %.80q can't be used: give printable text of at most 64 characters", text)
		}
	}
	if slices.Contains(ou, "") {
		return errorf(ErrInvalid, "an OU is empty: leave out --ou instead")
	}
	return nil
}

// errLost is in the chain of the refusal of a device that has a certificate but, in its
// folder, not the key: it can't be delivered, and won't get a second one.
var errLost = errors.New("it is not issued twice")

// enrolment is one device on its way from order to delivered folder.
type enrolment struct {
	Order
	batch    uint64
	folder   folder
	record   ledger.Record
	cert     *x509.Certificate // nil until issued
	key      crypto.PublicKey
	keyHash  string
	repeated bool
	refusal  error // why this device alone gets nothing; the others go on
}

// enrol takes a group of devices through all steps, each of them durable for the whole
// group before the next begins. The order is what makes a kill at any point safe:
// without the key in the folder no serial number is spent, without the certificate in
// the ledger none is in the folder.
func (s *Station) enrol(a *authority, group []*enrolment) error {
	err := each(group, func(e *enrolment) error { return s.inspect(a, e) })
	if err != nil {
		return err
	}
	fresh := slices.DeleteFunc(slices.Clone(group), func(e *enrolment) bool { return e.refusal != nil || e.repeated })
	if err := s.ledger.Check(reservations(fresh)...); err != nil {
		return err
	}
	if err := makeKeys(fresh); err != nil {
		return err
	}
	if err := s.reserve(fresh); err != nil {
		return err
	}
	if err := s.sign(a, fresh); err != nil {
		return err
	}
	return deliver(a, slices.DeleteFunc(slices.Clone(group), func(e *enrolment) bool { return e.refusal != nil }))
}

// inspect finds out what ledger and folder have of the device, and refuses it if they
// disagree.
func (s *Station) inspect(a *authority, e *enrolment) error {
	record, der, err := s.ledger.Device(e.ID)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	var issued *x509.Certificate
	if der != nil {
		if issued, err = x509.ParseCertificate(der); err != nil {
			return fmt.Errorf("the ledger's certificate of %s is damaged (%w): restore the ledger from a backup", e.ID, err)
		}
	}
	if e.folder, e.refusal = readFolder(e.Out); e.refusal != nil {
		return nil
	}
	if e.refusal = e.folder.check(e.Out, e.ID, issued, a.bundle()); e.refusal != nil {
		return nil
	}
	if e.folder.key != nil {
		owner, err := s.ledger.KeyOwner(e.folder.keyHash)
		if err != nil {
			return err
		}
		if owner != "" && owner != e.ID {
			e.refusal = fmt.Errorf("%s is the key of %s: choose another folder for %s", filepath.Join(e.Out, deviceKeyFile), owner, e.ID)
			return nil
		}
		e.key, e.keyHash = e.folder.key.Public(), e.folder.keyHash
	}
	if issued == nil {
		return nil
	}
	e.record, e.cert, e.repeated = record, issued, true
	e.refusal = e.redeliverable()
	return nil
}

// redeliverable refuses to deliver an existing certificate where its key is not, or as
// something it is not.
func (e *enrolment) redeliverable() error {
	if e.keyHash != e.record.KeyHash {
		return fmt.Errorf("%s has its certificate already (serial number %s, delivered to %s on %s), and its key is not in %s, so %w: name the folder that has it, or revoke %s at the hub and give the board a new ID",
			e.ID, e.record.Serial, e.record.Out, stamp(e.record.IssuedAt), e.Out, errLost, e.ID)
	}
	if e.Model != "" && e.Model != e.record.Model || len(e.OU) > 0 && !slices.Equal(e.OU, e.record.OU) {
		return fmt.Errorf("%s was issued with model %q and OU %q, which can't be changed: leave out --model and --ou to deliver it again", e.ID, e.record.Model, e.record.OU)
	}
	return nil
}

func reservations(group []*enrolment) []ledger.Reservation {
	rs := make([]ledger.Reservation, len(group))
	for i, e := range group {
		rs[i] = ledger.Reservation{ID: e.ID, KeyHash: e.keyHash, Model: e.Model, OU: e.OU, Out: e.Out, Batch: e.batch}
	}
	return rs
}

// makeKeys gives each device without a key one, durable in its folder.
func makeKeys(group []*enrolment) error {
	var files writes
	defer files.discard()
	err := each(group, func(e *enrolment) error {
		if e.key != nil {
			return nil
		}
		key, err := issuance.NewKey()
		if err != nil {
			return err
		}
		data, err := pemfile.EncodeKey(key)
		if err != nil {
			return err
		}
		e.key = key.Public()
		if e.keyHash, err = hashKey(e.key); err != nil {
			return err
		}
		return files.add(filepath.Join(e.Out, deviceKeyFile), data, 0o600)
	})
	if err != nil {
		return err
	}
	return files.commit()
}

func (s *Station) reserve(group []*enrolment) error {
	if len(group) == 0 {
		return nil
	}
	rs := reservations(group)
	for i := range rs {
		serial, err := issuance.NewSerial()
		if err != nil {
			return err
		}
		rs[i].Serial = identity.SerialString(serial)
	}
	records, err := s.ledger.Reserve(s.now(), rs...)
	for i := range records {
		group[i].record = records[i]
	}
	return err
}

// sign makes the certificates and stores them in the ledger. One that was signed but
// not stored when the program was killed has never left its memory.
func (s *Station) sign(a *authority, group []*enrolment) error {
	if len(group) == 0 {
		return nil
	}
	err := each(group, func(e *enrolment) error {
		id, err := identity.New(a.trustDomain, identity.RoleDevice, e.ID)
		if err != nil {
			return err
		}
		id.OU = e.OU
		serial, ok := new(big.Int).SetString(e.record.Serial, 16)
		if !ok {
			return fmt.Errorf("the ledger's serial number of %s is damaged: restore the ledger from a backup", e.ID)
		}
		e.cert, err = a.issuer.Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: id, PublicKey: e.key, Serial: serial})
		return err
	})
	if err != nil {
		return err
	}
	certs := make([]*x509.Certificate, len(group))
	for i, e := range group {
		certs[i] = e.cert
	}
	return s.ledger.Issue(s.now(), certs...)
}

// deliver writes certificate and root into each folder that has not both.
func deliver(a *authority, group []*enrolment) error {
	roots := pemfile.EncodeCertificates(a.bundle()...)
	var files writes
	defer files.discard()
	err := each(group, func(e *enrolment) error {
		if e.folder.leaf == nil {
			chain := pemfile.EncodeCertificates(e.cert, a.issuer.Certificate())
			if err := files.add(filepath.Join(e.Out, deviceCertFile), chain, 0o644); err != nil {
				return err
			}
		}
		if len(e.folder.roots) == 0 {
			return files.add(filepath.Join(e.Out, deviceRootFile), roots, 0o644)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return files.commit()
}

// each calls fn for every device on all cores and returns the first error.
func each(group []*enrolment, fn func(*enrolment) error) error {
	var workers errgroup.Group
	workers.SetLimit(runtime.GOMAXPROCS(0))
	for _, e := range group {
		workers.Go(func() error { return fn(e) })
	}
	return workers.Wait()
}
