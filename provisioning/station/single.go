package station

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// DeviceOrder is one device to be given a key and a certificate in a folder. The ID is
// the order's and comes from nowhere else.
type DeviceOrder struct {
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
	Supersedes  string    `json:"supersedes,omitempty"` // serial number of the certificate that this one replaces
	Repeated    bool      `json:"repeated"`             // the certificate had been issued before
}

// Issue gives one device its key, certificate and the trust bundle, as DIR/device.key,
// device.crt and ca.crt, against the open order that has its ID or one of its own.
// Repeated with the same ID and folder, after a kill or not, it delivers the same
// certificate. An ID never gets a second one but by Replace.
func (s *Station) Issue(o DeviceOrder) (Delivery, error) {
	a, e, err := s.begin(o)
	if err != nil {
		return Delivery{}, err
	}
	if err := s.inspect(a, e); err != nil || e.refusal != nil {
		return Delivery{}, errors.Join(err, e.refusal)
	}
	if !e.repeated {
		if e.order, err = s.orderFor(a, e); err != nil {
			return Delivery{}, err
		}
	}
	return s.finish(a, e)
}

// Replace gives a device that has a certificate another, with a new key, in a new
// folder. The next manifest says which serial number it supersedes. Repeated with the
// same ID and folder it delivers the same certificate.
func (s *Station) Replace(o DeviceOrder, reason string) (Delivery, error) {
	a, e, err := s.begin(o)
	if err != nil {
		return Delivery{}, err
	}
	// Before the order is open: an open one lets the device fetch a certificate.
	if err := s.ownFolder(e.Out, e.ID); err != nil {
		return Delivery{}, err
	}
	order, err := s.replacement(e.ID, e.Out, reason)
	if err != nil {
		return Delivery{}, err
	}
	e.order, e.replace = order.Number, true
	return s.finish(a, e)
}

// ownFolder refuses a folder that holds the key of another device.
func (s *Station) ownFolder(dir, id string) error {
	f, err := readFolder(dir)
	if err != nil || f.key == nil {
		return err
	}
	owner, err := s.ledger.KeyOwner(f.keyHash)
	if err != nil {
		return err
	}
	if owner != "" && owner != id {
		return fmt.Errorf("%s is the key of %s: choose another folder for %s", filepath.Join(dir, deviceKeyFile), owner, id)
	}
	return nil
}

// OrderReplacement opens an order for another certificate for a device that has one,
// which the device then fetches itself. Repeated it returns the same order.
func (s *Station) OrderReplacement(id, reason string) (ledger.Order, error) {
	if _, err := s.valid(); err != nil {
		return ledger.Order{}, err
	}
	return s.replacement(id, "", reason)
}

// begin checks what is asked for and what it is asked of.
func (s *Station) begin(o DeviceOrder) (*authority, *enrolment, error) {
	if err := identity.ValidID(o.ID); err != nil {
		return nil, nil, errorf(ErrInvalid, "no device can have that ID: %w", err)
	}
	asked := ledger.Attributes{Model: o.Model, OU: o.OU}
	if err := validAttributes(asked); err != nil {
		return nil, nil, err
	}
	a, err := s.valid()
	if err != nil {
		return nil, nil, err
	}
	out, err := absolute(o.Out)
	return a, &enrolment{ID: o.ID, Out: out, asked: asked}, err
}

// finish enrols the device and says what it got.
func (s *Station) finish(a *authority, e *enrolment) (Delivery, error) {
	if err := s.enrol(a, []*enrolment{e}); err != nil {
		return Delivery{}, err
	}
	if e.refusal != nil {
		return Delivery{}, e.refusal
	}
	if err := s.ledger.Deliver(s.now(), e.ID); err != nil {
		return Delivery{}, err
	}
	return Delivery{
		ID: e.ID, Serial: e.record.Serial, Fingerprint: identity.Fingerprint(e.cert), NotAfter: e.cert.NotAfter,
		Out: e.Out, Supersedes: e.record.Supersedes, Repeated: e.repeated,
	}, nil
}

// orderFor returns the order against which the device is issued: the open one that has
// its ID, else a new one of its own. An order that an earlier command opened for this
// device alone takes what the new one says.
func (s *Station) orderFor(a *authority, e *enrolment) (uint64, error) {
	o, has, err := s.ledger.OrderOf(e.ID)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return 0, err
	}
	switch {
	case err != nil || o.Closed():
		return s.openSingle(a, e.ID, e.asked)
	case o.Kind == ledger.Run:
		return 0, fmt.Errorf("%s belongs to the unfinished batch %s: repeat that batch's command to finish it", e.ID, o)
	case o.Kind == ledger.Single && differs(e.asked, has):
		return o.Number, s.ledger.ReviseOrder(o.Number, e.asked)
	case differs(e.asked, has):
		return 0, fmt.Errorf("order %d (%s) has %s with model %q and OU %q, which can't be changed: leave out --model and --ou", o.Number, o, e.ID, has.Model, has.OU)
	}
	return o.Number, nil
}

// openSingle opens an order for one device, if it would be admitted.
func (s *Station) openSingle(a *authority, id string, attributes ledger.Attributes) (uint64, error) {
	n, err := s.ledger.Count()
	if err != nil {
		return 0, err
	}
	if _, _, err := s.ledger.Device(id); errors.Is(err, ledger.ErrNotFound) && n >= a.maxDevices {
		return 0, overBudget(a.maxDevices, n)
	}
	o, err := s.ledger.OpenOrder(s.now(), ledger.Order{Kind: ledger.Single}, ledger.Line{IDs: []string{id}, Attributes: attributes})
	return o.Number, err
}

func overBudget(budget, made int) error {
	return errorf(ErrDenied, "%w: the station's authority is for %d devices and it has made %d; have it renewed with a greater `hub station authorize --max-devices`", ledger.ErrBudget, budget, made)
}

// maxReason bounds the reason of a replacement.
const maxReason = 200

// replacement returns the order to replace the device's certificate: the one under
// way, the one that a repeated command means, or a new one.
func (s *Station) replacement(id, out, reason string) (ledger.Order, error) {
	if reason == "" || !printable(reason, maxReason) {
		return ledger.Order{}, errorf(ErrInvalid, "a certificate is replaced for a reason: give one with --reason, printable text of at most %d characters", maxReason)
	}
	record, _, err := s.ledger.Device(id)
	if errors.Is(err, ledger.ErrNotFound) {
		return ledger.Order{}, errorf(ErrNotFound, "station %s has made no device %.80q", s.name, id)
	}
	if err != nil {
		return ledger.Order{}, err
	}
	o, has, err := s.ledger.OrderOf(id)
	switch {
	case err != nil && !errors.Is(err, ledger.ErrNotFound):
		return o, err
	case err == nil && o.Kind == ledger.Replacement && !o.Closed() && o.Issued < o.Count:
		return o, nil
	case err == nil && o.Kind == ledger.Replacement && record.Out == out && out != "" && record.Order == o.Number:
		return o, nil // done, and asked for again
	case err != nil:
		has = record.Attributes()
	}
	return s.ledger.OpenOrder(s.now(), ledger.Order{Kind: ledger.Replacement, Reason: reason}, ledger.Line{
		IDs: []string{id}, Attributes: ledger.Attributes{Model: record.Model, OU: record.OU, Labels: record.Labels, Protection: has.Protection, NotAfter: has.NotAfter},
	})
}

// differs reports whether a command asks for other attributes than there are. What it
// leaves out it takes as it is.
func differs(asked, has ledger.Attributes) bool {
	return asked.Model != "" && asked.Model != has.Model || len(asked.OU) > 0 && !slices.Equal(asked.OU, has.OU)
}

// refused gives an error of the ledger its kind.
func refused(err error) error {
	if errors.Is(err, ledger.ErrBudget) || errors.Is(err, ledger.ErrRefused) {
		return kindError{err, ErrDenied}
	}
	return err
}

// absolute makes the name of a folder good for the ledger, whatever directory the next
// command happens to run in.
func absolute(out string) (string, error) {
	if out == "" {
		return "", errorf(ErrInvalid, "the name of the folder to write to is empty: give one with --out")
	}
	return filepath.Abs(out)
}

// maxLabels is how many the hub keeps of a device.
const maxLabels = 32

// validAttributes returns nil if the attributes can go into manifests and certificates:
// printable text of at most 64 characters each (RFC 5280 appendix A), and labels, which
// become topic levels, of the grammar of IDs.
func validAttributes(a ledger.Attributes) error {
	for _, text := range append([]string{a.Model}, a.OU...) {
		if !printable(text, 64) {
			return errorf(ErrInvalid, "model or OU %.80q can't be used: give printable text of at most 64 characters", text)
		}
	}
	if slices.Contains(a.OU, "") {
		return errorf(ErrInvalid, "an OU is empty: leave it out instead")
	}
	if len(a.Labels) > maxLabels {
		return errorf(ErrInvalid, "there are %d labels, a device has at most %d", len(a.Labels), maxLabels)
	}
	for _, key := range slices.Sorted(maps.Keys(a.Labels)) {
		if identity.ValidID(key) != nil || identity.ValidID(a.Labels[key]) != nil {
			return errorf(ErrInvalid, "label %.80q=%.80q is not made of 1 to 64 letters, digits and (after the first) . _ - on each side", key, a.Labels[key])
		}
	}
	if !a.Protection.Valid() {
		return errorf(ErrInvalid, "protection %.40q is none of tpm, software, any", a.Protection)
	}
	return nil
}

func printable(text string, most int) bool {
	return utf8.RuneCountInString(text) <= most && utf8.ValidString(text) && !slices.ContainsFunc([]rune(text), func(r rune) bool { return !unicode.IsPrint(r) })
}
