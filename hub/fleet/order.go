package fleet

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/registry"
)

// Verb is what an order does to devices.
type Verb string

// The verbs. Each but resume and approve cuts devices off; revoke, retire and replace for good.
const (
	VerbSuspend Verb = "suspend"
	VerbResume  Verb = "resume"
	VerbRevoke  Verb = "revoke"
	VerbRetire  Verb = "retire"
	VerbReplace Verb = "replace"
	VerbApprove Verb = "approve" // a quarantined device
)

// rules says what a verb does. Nothing changes them.
type rules struct {
	state registry.State // that it leads to; of resume: the state it may lead to
	done  string         // what it has done, in messages
	cut   string         // the reason that sessions are disconnected for; empty: they aren't
	apply func(d *registry.Device, o Order, c registry.Cause) error
}

var verbs = map[Verb]rules{
	VerbSuspend: {registry.StateSuspended, "suspended", protocol.ReasonSuspended, func(d *registry.Device, _ Order, c registry.Cause) error { return d.Suspend(c) }},
	VerbResume:  {registry.StateActive, "resumed", "", func(d *registry.Device, _ Order, c registry.Cause) error { return d.Resume(c) }},
	VerbApprove: {registry.StateRegistered, "approved", "", func(d *registry.Device, _ Order, c registry.Cause) error { return d.Approve(c) }},
	VerbRevoke:  {registry.StateRevoked, "revoked", protocol.ReasonRevoked, func(d *registry.Device, _ Order, c registry.Cause) error { return d.Revoke(c) }},
	VerbRetire:  {registry.StateRetired, "retired", protocol.ReasonRetired, func(d *registry.Device, _ Order, c registry.Cause) error { return d.Retire(c) }},
	VerbReplace: {registry.StateReplaced, "replaced", protocol.ReasonReplaced, func(d *registry.Device, o Order, c registry.Cause) error { return d.Replace(o.By, c) }},
}

// legal reports whether the verb may be done to a device in that state.
func (v Verb) legal(from registry.State) bool {
	switch v {
	case VerbResume:
		return from == registry.StateSuspended
	case VerbApprove:
		return from == registry.StateQuarantined
	}
	return from.MayBecome(verbs[v].state)
}

// Past returns what the verb has done, in a word: revoked.
func (v Verb) Past() string { return verbs[v].done }

// Cuts reports whether the verb cuts devices off.
func (v Verb) Cuts() bool { return verbs[v].cut != "" }

// MaxUncounted is how many devices an order may be for without its count.
const MaxUncounted = 100

// Order is what an operator wants done to one device or to those that a selector picks.
type Order struct {
	// ID is what the receipt will be called, of the form of a device's ID. Carrying out
	// an order again under its ID returns its receipt. Empty: one is made up.
	ID     string
	Verb   Verb
	Device string            // or
	Select registry.Selector // if Device is empty; it has a term
	Reason revocation.Reason // of revoke
	Note   string            // why, in the operator's words
	By     string            // of replace: the device that takes its place

	// Count is how many devices the operator means. An order for more than
	// MaxUncounted is refused without; one with another count than there are is, too.
	Count int

	// IfRevision is the revision (registry.Device.Revision) of the one device's record that
	// the operator has looked at: if it has another one by now, nothing is done. Empty: any.
	// It is no part of the order's JSON.
	IfRevision string
}

// Errors about orders that callers tell apart.
var (
	ErrOrder   = errors.New("the order can't be carried out")
	ErrCount   = errors.New("the count differs")
	ErrNobody  = errors.New("the selector picks no device to change")
	ErrNoOrder = errors.New("no such receipt")
)

// check returns an error that says what is wrong with the order, whatever the fleet is.
func (o Order) check() error {
	if _, ok := verbs[o.Verb]; !ok {
		return fmt.Errorf("%w: %q is none of suspend, resume, revoke, retire, replace, approve", ErrOrder, o.Verb)
	}
	if o.ID != "" && identity.ValidID(o.ID) != nil {
		return fmt.Errorf("%w: %.80q can't be the ID of a receipt (1 to 64 letters, digits and . _ -)", ErrOrder, o.ID)
	}
	if o.IfRevision != "" && o.Device == "" {
		return fmt.Errorf("%w: a revision is that of one device", ErrOrder)
	}
	if (o.Device == "") == o.Select.Any() {
		return fmt.Errorf("%w: name one device, or a selector with at least one term (id=* is every device)", ErrOrder)
	}
	if o.Verb == VerbReplace && o.Device == "" {
		return fmt.Errorf("%w: devices are replaced one at a time", ErrOrder)
	}
	if o.Count < 0 {
		return fmt.Errorf("%w: %d is no count", ErrOrder, o.Count)
	}
	return validText("note", o.Note)
}

// reason is the RFC 5280 name of why.
func (o Order) reason() string {
	switch o.Verb {
	case VerbRevoke:
		return o.Reason.String()
	case VerbSuspend:
		return registry.ReasonHold
	case VerbRetire:
		return revocation.CessationOfOperation.String()
	case VerbReplace:
		return revocation.Superseded.String()
	}
	return ""
}

// target is whom the order is for, in words.
func (o Order) target() string {
	if o.Device != "" {
		return o.Device
	}
	return "selector " + o.Select.String()
}

// same reports whether two orders want the same done, their IDs and counts aside.
func (o Order) same(p Order) bool {
	return o.Verb == p.Verb && o.Device == p.Device && o.Select.String() == p.Select.String() && o.reason() == p.reason() && o.By == p.By
}

// wireOrder is an Order in JSON.
type wireOrder struct {
	ID     string            `json:"id"`
	Verb   Verb              `json:"verb"`
	Device string            `json:"device,omitempty"`
	Select string            `json:"select,omitempty"`
	Reason revocation.Reason `json:"reason,omitempty"`
	Note   string            `json:"note,omitempty"`
	By     string            `json:"by,omitempty"`
	Count  int               `json:"count,omitempty"`
}

// MarshalJSON writes the order with its selector as text.
func (o Order) MarshalJSON() ([]byte, error) {
	return json.Marshal(wireOrder{o.ID, o.Verb, o.Device, o.Select.String(), o.Reason, o.Note, o.By, o.Count})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (o *Order) UnmarshalJSON(data []byte) error {
	var w wireOrder
	if err := json.Unmarshal(data, &w); err != nil {
		return err
	}
	s, err := registry.ParseSelector(w.Select)
	if err != nil {
		return err
	}
	*o = Order{ID: w.ID, Verb: w.Verb, Device: w.Device, Select: s, Reason: w.Reason, Note: w.Note, By: w.By, Count: w.Count}
	return nil
}

// newOrderID makes up the ID of an order: the time, so that receipts are listed in
// order, and 32 random bits.
func newOrderID(now time.Time) string {
	var random [4]byte
	rand.Read(random[:])
	return now.UTC().Format("20060102T150405Z-") + hex.EncodeToString(random[:])
}

// ErrText is in the chain of the error about a free text that isn't acceptable.
var ErrText = errors.New("unacceptable text")

// validText bounds what an operator or a station may write into a record.
func validText(what, text string) error {
	const most = 256
	if len(text) > most {
		return fmt.Errorf("%w: the %s has %d bytes, at most %d are kept", ErrText, what, len(text), most)
	}
	if !utf8.ValidString(text) {
		return fmt.Errorf("%w: the %s is not UTF-8", ErrText, what)
	}
	for _, r := range text {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%w: the %s has the unprintable character %U", ErrText, what, r)
		}
	}
	return nil
}
