package station

import (
	"crypto/x509"
	"encoding/asn1"
)

// defaultBudget is that of an authority that names none.
const defaultBudget = 10_000

// budgetExtension is where the root writes how many device IDs a station may make, over
// all renewals of its authority: a DER INTEGER, not critical. The arc is a UUID's (ITU-T
// X.667), which nobody else has.
func budgetExtension() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 25, 1789415523, 1} }

// deviceBudget returns how many devices an issuing CA may make.
func deviceBudget(ca *x509.Certificate) (int, error) {
	for _, e := range ca.Extensions {
		if !e.Id.Equal(budgetExtension()) {
			continue
		}
		var n int32
		if rest, err := asn1.Unmarshal(e.Value, &n); err != nil || len(rest) > 0 || n < 1 {
			return 0, errorf(ErrDenied, "the issuing CA certificate says in no way that can be read how many devices it is for")
		}
		return int(n), nil
	}
	return defaultBudget, nil
}
