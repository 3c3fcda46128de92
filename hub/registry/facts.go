package registry

import (
	"encoding/hex"
	"slices"
	"time"
)

// Fingerprint is the SHA-256 of a certificate's DER. identity.Fingerprint writes the
// same in hex.
type Fingerprint [32]byte

// String returns the fingerprint as identity.Fingerprint writes it.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// ParseFingerprint reads what String writes, false if text is nothing of the kind.
func ParseFingerprint(text string) (f Fingerprint, ok bool) {
	if len(text) != 2*len(f) {
		return f, false
	}
	_, err := hex.Decode(f[:], []byte(text))
	return f, err == nil
}

// Facts is what a selector and the admission of devices need of a record, small and
// quick to read. A store keeps it beside each record, in the same transaction.
type Facts struct {
	ID    string
	State State

	// Attributes are shared by all devices with the same ones, and read-only: within
	// one walk over a store, equal pointers are equal attributes.
	Attributes *Attributes

	Usable    []Fingerprint // of the certificates that it may present, oldest first
	NotAfter  time.Time     // of the newest of them; zero if there is none
	Created   time.Time
	Changed   time.Time // of its last change other than a sighting
	FirstSeen time.Time // zero: never
	LastSeen  time.Time
}

// Facts returns the facts of a record. A certificate whose fingerprint can't be read is
// no usable one.
func (d *Device) Facts() Facts {
	attributes := d.Attributes()
	f := Facts{
		ID: d.ID, State: d.State, Attributes: &attributes,
		Created: d.Created, Changed: d.Updated, FirstSeen: d.FirstSeen, LastSeen: d.LastSeen,
	}
	for _, c := range d.Certificates {
		if !c.Usable() {
			continue
		}
		if sum, ok := ParseFingerprint(c.Fingerprint); ok {
			f.Usable = append(f.Usable, sum)
			f.NotAfter = c.NotAfter
		}
	}
	return f
}

// Attributes returns what the device has in common with others.
func (d *Device) Attributes() Attributes {
	a := Attributes{Model: d.Model, Batch: d.Batch, Station: d.Station, Protection: d.Protection, OU: d.OU, Labels: d.Labels}
	for _, c := range d.Certificates {
		if c.Usable() && !slices.Contains(a.Issuers, c.Issuer) {
			a.Issuers = append(a.Issuers, c.Issuer)
		}
	}
	return a
}
