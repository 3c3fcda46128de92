// Package revocation has the words and the set in which a revocation is kept:
// reason codes (RFC 5280 §5.3.1) and an immutable set of revoked certificates.
package revocation

import (
	"fmt"
	"strings"
)

// Reason is a CRL reason code, RFC 5280 §5.3.1. The zero value is unspecified.
type Reason int

// The reason codes an operator may give. removeFromCRL (8) is for delta CRLs, which
// Fleethub doesn't issue, and certificateHold (6) is spelled suspend here.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	PrivilegeWithdrawn   Reason = 9
	AACompromise         Reason = 10
)

var reasonNames = []struct {
	reason Reason
	name   string
}{
	{Unspecified, "unspecified"},
	{KeyCompromise, "keyCompromise"},
	{CACompromise, "cACompromise"},
	{AffiliationChanged, "affiliationChanged"},
	{Superseded, "superseded"},
	{CessationOfOperation, "cessationOfOperation"},
	{PrivilegeWithdrawn, "privilegeWithdrawn"},
	{AACompromise, "aACompromise"},
}

// String returns the RFC's name of the reason.
func (r Reason) String() string {
	if r == Hold {
		return "certificateHold"
	}
	for _, n := range reasonNames {
		if n.reason == r {
			return n.name
		}
	}
	return fmt.Sprintf("reason(%d)", int(r))
}

// ParseReason returns the reason of that name, whatever its case.
func ParseReason(name string) (Reason, error) {
	var known []string
	for _, n := range reasonNames {
		if strings.EqualFold(n.name, name) {
			return n.reason, nil
		}
		known = append(known, n.name)
	}
	return 0, fmt.Errorf("reason %.40q is not one of %s", name, strings.Join(known, ", "))
}
