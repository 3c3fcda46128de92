package registry

import (
	"errors"
	"fmt"
	"slices"
)

// State is where a device is in its life.
type State string

// The states. Registered and active devices may connect. Revoked, retired and replaced
// are final: only Device.Reinstate, with a new certificate, leads out of them.
const (
	StateQuarantined State = "quarantined" // came before any manifest named it, waits for approval
	StateRegistered  State = "registered"  // known from a manifest or approved, not yet seen
	StateActive      State = "active"      // has connected at least once
	StateSuspended   State = "suspended"   // cut off by an operator, reversible
	StateRevoked     State = "revoked"     // cut off for good, certificates revoked
	StateRetired     State = "retired"     // out of service in good standing; its certificates are revoked, too
	StateReplaced    State = "replaced"    // another device took its place; likewise
)

// transitions lists every legal change of state. A state that is no key here isn't
// a state; one without a successor is final.
var transitions = map[State][]State{
	StateQuarantined: {StateRegistered, StateRevoked, StateRetired},
	StateRegistered:  {StateActive, StateSuspended, StateRevoked, StateRetired, StateReplaced},
	StateActive:      {StateSuspended, StateRevoked, StateRetired, StateReplaced},
	StateSuspended:   {StateRegistered, StateActive, StateRevoked, StateRetired, StateReplaced},
	StateRevoked:     {},
	StateRetired:     {},
	StateReplaced:    {},
}

// States returns every state, in the order of a device's life.
func States() []State {
	return []State{StateQuarantined, StateRegistered, StateActive, StateSuspended, StateRevoked, StateRetired, StateReplaced}
}

// Valid reports whether s is one of the states.
func (s State) Valid() bool {
	_, ok := transitions[s]
	return ok
}

// MayConnect reports whether a device in state s may use the hub. It is false for
// anything that isn't a state, so an unreadable record never admits anybody.
func (s State) MayConnect() bool { return s == StateRegistered || s == StateActive }

// Final reports whether no transition leaves s.
func (s State) Final() bool { return s.Valid() && len(transitions[s]) == 0 }

// MayBecome reports whether the step from s to next is legal.
func (s State) MayBecome(next State) bool { return slices.Contains(transitions[s], next) }

// ErrTransition is in the chain of every refused change of state.
var ErrTransition = errors.New("illegal transition")

// TransitionError says which change of state was refused. It matches ErrTransition.
type TransitionError struct {
	ID       string
	From, To State
}

func (e *TransitionError) Error() string {
	if e.From.Final() {
		return fmt.Sprintf("device %s is %s, which is final: allow it a new certificate with `hub device reinstate %s`, and enrol the board again", e.ID, e.From, e.ID)
	}
	return fmt.Sprintf("device %s is %s and can't become %s", e.ID, e.From, e.To)
}

// Is makes errors.Is(err, ErrTransition) hold.
func (e *TransitionError) Is(target error) bool { return target == ErrTransition }
