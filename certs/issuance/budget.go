package issuance

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math"
)

// DefaultDevices is the device budget of an authority that names none.
const DefaultDevices = 10_000

// BudgetExtension is the extension in which the root writes how many device IDs a station may make, over
// all renewals of its authority: a DER INTEGER, not critical, so that a verifier that
// knows nothing of it still verifies. The arc is a UUID's (ITU-T X.667), which nobody
// else has.
func BudgetExtension() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 25, 1789415523, 1} }

// budget returns the extension that says so.
func budget(devices int) (pkix.Extension, error) {
	if devices < 1 || devices > math.MaxInt32 {
		return pkix.Extension{}, fmt.Errorf("a device budget of %d is not between 1 and %d", devices, math.MaxInt32)
	}
	value, err := asn1.Marshal(devices)
	return pkix.Extension{Id: BudgetExtension(), Value: value}, err
}

// DeviceBudget returns how many devices a station's issuing CA may make, replacements of
// a certificate not counted. One that names no number may make DefaultDevices; one that
// names it in no way that can be read may make none, which is the error: it matches
// ErrAuthority.
func DeviceBudget(ca *x509.Certificate) (int, error) {
	for _, e := range ca.Extensions {
		if !e.Id.Equal(BudgetExtension()) {
			continue
		}
		var n int32
		if rest, err := asn1.Unmarshal(e.Value, &n); err != nil || len(rest) > 0 || n < 1 {
			return 0, fmt.Errorf("%w: %q says in no way that can be read for how many devices it is", ErrAuthority, ca.Subject.CommonName)
		}
		return int(n), nil
	}
	return DefaultDevices, nil
}
