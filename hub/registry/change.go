package registry

import (
	"errors"
	"fmt"
	"time"
)

// ErrUnknown is returned by a store that has no record of a device.
var ErrUnknown = errors.New("unknown device")

// Change is what a store makes durable in one transaction: all of it or nothing.
type Change struct {
	Devices   []Device      // complete records, which replace older ones of the same ID
	Sightings []Sighting    // of devices with a record; others are ignored
	Audit     []AuditRecord // appended in this order; the store numbers them
}

// Sighting says that a device was connected at a time.
type Sighting struct {
	ID string
	At time.Time
}

// Outcome says whether what an audit record tells of was done.
type Outcome string

// The outcomes. Requested precedes one of the others where the change itself can't be
// written in the same transaction, such as one to a file: a request that nothing
// follows is one that the hub did not survive.
const (
	OutcomeDone      Outcome = "done"
	OutcomeRefused   Outcome = "refused"
	OutcomeRequested Outcome = "requested"
)

// AuditRecord says who did what to which device or other subject, when, from where.
// Records are appended and never changed.
type AuditRecord struct {
	Number  uint64    `json:"number"` // counts from 1 without gaps; set by the store
	Time    time.Time `json:"time"`
	Actor   string    `json:"actor"`
	Address string    `json:"address,omitempty"`
	Action  string    `json:"action"` // such as device.revoke
	Device  string    `json:"device,omitempty"`
	Subject string    `json:"subject,omitempty"` // what it was done to if that is no device, such as issuer bench-1
	Outcome Outcome   `json:"outcome"`
	Before  State     `json:"before,omitempty"`
	After   State     `json:"after,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Detail  string    `json:"detail,omitempty"`
}

// ConflictError is a store's refusal to give a certificate's serial number to a
// second device.
type ConflictError struct {
	ID     string // who asked for it
	Owner  string // whose it is
	Serial string
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("serial number %s of device %s already belongs to device %s of the same issuer", e.Serial, e.ID, e.Owner)
}
