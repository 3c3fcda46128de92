package attestation

import "fmt"

// Reason says why an attestation was refused, in a form for metrics, the technician's
// screen and errors.Is: every error of a [Verifier] is a [*Refusal] of one Reason.
type Reason string

// The reasons, in the order in which they are looked for. From UnknownChallenge on they
// are about an answer, and Busy alone is not the board's fault.
const (
	Malformed        Reason = "malformed"         // not a message of ours, or larger than any
	UntrustedEK      Reason = "untrusted-ek"      // no manufacturer that we trust vouches for the endorsement key
	BadAK            Reason = "bad-ak"            // the attestation key could sign what its TPM didn't make, or leave it
	BadKey           Reason = "bad-key"           // the device key could leave its TPM, came from outside it, or can't sign
	BadCertification Reason = "bad-certification" // it isn't a TPM's, not of the device key, or not by this AK
	WrongStatement   Reason = "wrong-statement"   // the AK certified for another EK or another request
	KeyMismatch      Reason = "key-mismatch"      // the request is for another key than the certified one
	Busy             Reason = "busy"              // too many challenges are open: try again in a minute

	UnknownChallenge Reason = "unknown-challenge" // never made here, or long gone
	Expired          Reason = "expired"           // answered too late
	Answered         Reason = "answered"          // answered before
	MixedUp          Reason = "mixed-up"          // the answer is about another request
	WrongProof       Reason = "wrong-proof"       // the answering TPM doesn't hold both EK and AK
	Relayed          Reason = "relayed"           // the TPM answered on another connection
)

// Error returns the reason as text.
func (r Reason) Error() string { return string(r) }

// Refusal is why an attestation was refused. It unwraps to its Reason.
type Refusal struct {
	Reason Reason
	Detail string // a sentence for people, without secrets
	cause  error  // nil, or what Detail ends with
}

// Error returns the reason and the detail.
func (r *Refusal) Error() string { return string(r.Reason) + ": " + r.Detail }

// Unwrap returns the Reason, and what caused the refusal if something did.
func (r *Refusal) Unwrap() []error {
	if r.cause == nil {
		return []error{r.Reason}
	}
	return []error{r.Reason, r.cause}
}

// refuse is fmt.Errorf for a Refusal.
func refuse(reason Reason, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	r := &Refusal{Reason: reason, Detail: err.Error()}
	if u, ok := err.(interface{ Unwrap() error }); ok {
		r.cause = u.Unwrap()
	}
	return r
}
