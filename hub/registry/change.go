package registry

import (
	"errors"
	"fmt"
	"time"
)

// ErrUnknown is returned by a store that has no such record or document.
var ErrUnknown = errors.New("no such record")

// Change is what a store makes durable in one transaction: all of it or nothing.
type Change struct {
	Devices   []Device      // complete records, which replace older ones of the same ID
	Sightings []Sighting    // of devices with a record; others are ignored
	Documents []Document    // put, or removed if without data
	Audit     []AuditRecord // appended in this order; the store numbers and links them
}

// Sighting says that a device was connected at a time.
type Sighting struct {
	ID string
	At time.Time
}

// DocumentKind is what a document is.
type DocumentKind string

// The kinds of document that a store keeps for the fleet.
const (
	KindReceipt  DocumentKind = "receipts"  // signed, kept for ever
	KindProposal DocumentKind = "proposals" // waits for a second operator
	KindAnswer   DocumentKind = "answers"   // what was answered under an idempotency key, for a day
	KindOrder    DocumentKind = "orders"    // is being carried out; what is here at a start is finished first
)

// Document is a file that a store keeps under a kind and an ID, without looking into
// it.
type Document struct {
	Kind DocumentKind
	ID   string
	Data []byte // nil: the document is removed
}

// ConflictError is a store's refusal to give a certificate's serial number, or a TPM, to
// a second device.
type ConflictError struct {
	ID     string // who asked for it
	Owner  string // whose it is
	Serial string // of the certificate
	EK     string // or else of the TPM: Device.EK
}

func (e *ConflictError) Error() string {
	if e.EK != "" {
		return fmt.Sprintf("the TPM of device %s (endorsement key %s) is device %s's, for life: enrol that board as %s again, after `hub device reinstate %s` if it was cut off for good", e.ID, e.EK, e.Owner, e.Owner, e.Owner)
	}
	return fmt.Sprintf("serial number %s of device %s already belongs to device %s of the same issuer", e.Serial, e.ID, e.Owner)
}
