package revocation

import (
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Hold is certificateHold, RFC 5280 §5.3.1: the one reason that can be taken back. It
// stands in what is published only; an operator's word for it is suspend, and
// ParseReason doesn't know it.
const Hold Reason = 6

// Entry is a certificate of an issuer that is revoked or on hold.
type Entry struct {
	Serial *big.Int
	At     time.Time
	Reason Reason
}

// List is what a certificate revocation list says, RFC 5280 §5. It has every revoked
// certificate of its issuer: there are no deltas and no parts.
type List struct {
	Number     *big.Int // positive; greater than that of the issuer's list before
	ThisUpdate time.Time
	NextUpdate time.Time
	Entries    []Entry
}

// Why a list is not accepted.
var (
	ErrMalformed = errors.New("no revocation list that can be used")
	ErrIssuer    = errors.New("not signed by this issuer")
	ErrOlder     = errors.New("older than the list known")
	ErrStale     = errors.New("out of date")
)

// MaxListSize bounds a list in DER, in bytes: a million entries of the largest serial
// numbers with reasons, about.
const MaxListSize = 64 << 20

// clockSkew is how far ahead a list's issuer may be.
const clockSkew = 5 * time.Minute

// ReadList returns what a list in DER says, after checking that this CA signed it. It
// doesn't look at the time: a list that is out of date still says what is revoked. Its
// error matches ErrMalformed or ErrIssuer. Lists that say less than all (deltas, those
// with a critical extension, such as an issuing distribution point) are malformed here.
func ReadList(der []byte, issuer *x509.Certificate) (List, error) {
	if len(der) > MaxListSize {
		return List{}, fmt.Errorf("%w: it has %d bytes, at most %d are taken", ErrMalformed, len(der), MaxListSize)
	}
	parsed, err := x509.ParseRevocationList(der)
	if err != nil {
		return List{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if len(parsed.Raw) != len(der) {
		return List{}, fmt.Errorf("%w: something follows it", ErrMalformed)
	}
	if string(parsed.RawIssuer) != string(issuer.RawSubject) {
		return List{}, fmt.Errorf("%w: it is of %.120q, not of %q", ErrIssuer, parsed.Issuer, issuer.Subject)
	}
	if err := parsed.CheckSignatureFrom(issuer); err != nil {
		return List{}, fmt.Errorf("%w: %w", ErrIssuer, err)
	}
	for _, e := range parsed.Extensions {
		if e.Critical {
			return List{}, fmt.Errorf("%w: it has the critical extension %s, so it may not say everything", ErrMalformed, e.Id)
		}
	}
	if parsed.Number == nil || parsed.Number.Sign() < 0 || parsed.NextUpdate.IsZero() {
		return List{}, fmt.Errorf("%w: it has no number or no next update (RFC 5280 §5.1.2.5, §5.2.3)", ErrMalformed)
	}
	l := List{Number: parsed.Number, ThisUpdate: parsed.ThisUpdate, NextUpdate: parsed.NextUpdate, Entries: make([]Entry, 0, len(parsed.RevokedCertificateEntries))}
	for _, e := range parsed.RevokedCertificateEntries {
		for _, x := range e.Extensions {
			if x.Critical {
				return List{}, fmt.Errorf("%w: an entry has the critical extension %s, so it may be another issuer's", ErrMalformed, x.Id)
			}
		}
		l.Entries = append(l.Entries, Entry{Serial: e.SerialNumber, At: e.RevocationTime, Reason: Reason(e.ReasonCode)})
	}
	return l, nil
}

// Check returns nil if the list may take the place of the one with the number known
// (nil: there is none) at a time, else an error that matches ErrOlder or ErrStale. A
// list of the same number is the one that is known.
func (l List) Check(known *big.Int, now time.Time) error {
	if known != nil && l.Number.Cmp(known) <= 0 {
		return fmt.Errorf("%w: its number is %s, number %s is in force", ErrOlder, l.Number, known)
	}
	if l.ThisUpdate.After(now.Add(clockSkew)) {
		return fmt.Errorf("%w: it is of %s, and the clock says %s; one of the two clocks is wrong", ErrStale, l.ThisUpdate.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if !now.Before(l.NextUpdate) {
		return fmt.Errorf("%w: a newer one was due on %s; get that", ErrStale, l.NextUpdate.UTC().Format(time.RFC3339))
	}
	return nil
}
