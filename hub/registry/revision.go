package registry

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"time"
)

// ErrChanged is in the chain of the error about a record that isn't as it was looked at.
var ErrChanged = errors.New("the record was changed meanwhile")

// Revision names what the record says, sightings aside: each change that a store makes durable
// gives another one, and the same record has the same one in every run of the hub.
func (d Device) Revision() string {
	d.FirstSeen, d.LastSeen = time.Time{}, time.Time{}
	d.Certificates = slices.Clone(d.Certificates)
	for i := range d.Certificates {
		d.Certificates[i].DER, d.Certificates[i].Standing = nil, "" // the fingerprint names the one, the clock makes the other
	}
	encoded, err := json.Marshal(d)
	if err != nil { // a time that JSON has no form for
		return ""
	}
	sum := sha256.Sum256(encoded)
	return base64.RawURLEncoding.EncodeToString(sum[:15])
}
