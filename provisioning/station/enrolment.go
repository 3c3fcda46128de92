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

	"golang.org/x/sync/errgroup"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// errLost is in the chain of the refusal of a device that has a certificate but, in its
// folder, not the key: it can't be delivered, and won't get a second one.
var errLost = errors.New("it is not issued twice")

// enrolment is one device on its way from order to delivered folder.
type enrolment struct {
	ID       string
	Out      string            // the device's credential folder
	asked    ledger.Attributes // what the command said of it beyond its order, to be held against what was issued
	order    uint64            // 0: none yet
	replace  bool              // the certificate is to take the place of another
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
	if err := s.ledger.Check(s.now(), a.maxDevices, reservations(fresh)...); err != nil {
		return refused(err)
	}
	if err := makeKeys(fresh); err != nil {
		return err
	}
	if err := s.reserve(a, fresh); err != nil {
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
	if issued == nil || e.replace && record.Order != e.order {
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
	if differs(e.asked, e.record.Attributes()) {
		return fmt.Errorf("%s was issued with model %q and OU %q, which can't be changed: leave out --model and --ou to deliver it again", e.ID, e.record.Model, e.record.OU)
	}
	return nil
}

func reservations(group []*enrolment) []ledger.Reservation {
	rs := make([]ledger.Reservation, len(group))
	for i, e := range group {
		rs[i] = ledger.Reservation{Order: e.order, ID: e.ID, KeyHash: e.keyHash, Protection: ledger.Software, Out: e.Out}
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

func (s *Station) reserve(a *authority, group []*enrolment) error {
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
	records, err := s.ledger.Reserve(s.now(), a.maxDevices, rs...)
	for i := range records {
		group[i].record = records[i]
	}
	return refused(err)
}

// sign makes the certificates and stores them in the ledger. One that was signed but
// not stored when the program was killed has never left its memory.
func (s *Station) sign(a *authority, group []*enrolment) error {
	if len(group) == 0 {
		return nil
	}
	err := each(group, func(e *enrolment) (err error) {
		e.cert, err = a.certify(s.now(), e.record, e.key)
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

// certify signs the certificate that the record reserves. Everything in it but the key
// is the record's, which has it from the order.
func (a *authority) certify(now time.Time, r ledger.Record, key crypto.PublicKey) (*x509.Certificate, error) {
	id, err := identity.New(a.trustDomain, identity.RoleDevice, r.ID)
	if err != nil {
		return nil, err
	}
	id.OU = r.OU
	serial, ok := new(big.Int).SetString(r.Serial, 16)
	if !ok {
		return nil, fmt.Errorf("the ledger's serial number of %s is damaged: restore the ledger from a backup", r.ID)
	}
	request := issuance.Request{Profile: issuance.DeviceProfile(), Identity: id, PublicKey: key, Serial: serial}
	if r.Protection == ledger.TPM {
		request.Protection = identity.ProtectionTPM
	}
	if !r.NotAfter.IsZero() {
		if request.Valid = r.NotAfter.Sub(now); request.Valid <= 0 {
			return nil, errorf(ErrDenied, "the order's certificates were to end on %s, which is past", stamp(r.NotAfter))
		}
	}
	return a.issuer.Issue(request)
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
