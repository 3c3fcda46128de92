// Package registry says what the hub knows about a device: its record, the states
// it can be in and the legal transitions between them, and the units in which
// records are changed and audited.
//
// The package does no I/O and starts no goroutine. Package fleet changes records,
// package boltstore keeps them. A Device is a plain value with one owner at a time;
// nothing here is safe for concurrent change.
package registry

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// State is where a device is in its life.
type State string

// The states. Registered and active devices may connect; nothing leaves revoked.
// Retired and replaced will join revoked as final states.
const (
	StateRegistered State = "registered" // known from a manifest, not yet seen
	StateActive     State = "active"     // has connected at least once
	StateSuspended  State = "suspended"  // cut off by an operator, reversible
	StateRevoked    State = "revoked"    // cut off for good, certificates revoked
)

// transitions lists every legal change of state. A state that is no key here isn't
// a state; one without a successor is final.
var transitions = map[State][]State{
	StateRegistered: {StateActive, StateSuspended, StateRevoked},
	StateActive:     {StateSuspended, StateRevoked},
	StateSuspended:  {StateRegistered, StateActive, StateRevoked},
	StateRevoked:    {},
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
		return fmt.Sprintf("device %s is %s, which is final: enrol the board again under a new certificate and ID", e.ID, e.From)
	}
	return fmt.Sprintf("device %s is %s and can't become %s", e.ID, e.From, e.To)
}

// Is makes errors.Is(err, ErrTransition) hold.
func (e *TransitionError) Is(target error) bool { return target == ErrTransition }

// Certificate is one certificate that was issued to a device.
type Certificate struct {
	Serial      string    `json:"serial"`      // identity.SerialString
	Fingerprint string    `json:"fingerprint"` // identity.Fingerprint
	Issuer      string    `json:"issuer"`      // the issuer's subject key identifier, lower-case hex
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Revoked     time.Time `json:"revoked,omitzero"`    // when it was revoked; zero if it wasn't
	Superseded  time.Time `json:"superseded,omitzero"` // when another took its place; zero if none did
	DER         []byte    `json:"der,omitempty"`
}

// Usable reports whether the certificate may still be presented, as far as the
// registry knows. Its validity period is for the TLS handshake to check.
func (c Certificate) Usable() bool { return c.Revoked.IsZero() && c.Superseded.IsZero() }

// Key identifies a certificate among all issuers, as RFC 5280 §4.1.2.2 has it: the
// issuer and the serial number together.
func (c Certificate) Key() string { return c.Issuer + "/" + c.Serial }

// Device is the hub's record of one device. Change its state through its methods
// only; they leave the record as it was when they return an error.
type Device struct {
	ID           string            `json:"id"`
	State        State             `json:"state"`
	Reason       string            `json:"reason,omitempty"` // why it is suspended or revoked
	Model        string            `json:"model,omitempty"`
	OU           []string          `json:"ou,omitempty"`
	BoardSerial  string            `json:"board_serial,omitempty"`
	Protection   string            `json:"protection,omitempty"` // where the key lives, as the station recorded it
	Labels       map[string]string `json:"labels,omitempty"`
	Station      string            `json:"station,omitempty"`
	Manifest     uint64            `json:"manifest,omitempty"` // the station's manifest that registered it
	Certificates []Certificate     `json:"certificates,omitempty"`
	Created      time.Time         `json:"created"`
	Updated      time.Time         `json:"updated"` // of the last change other than a sighting

	// FirstSeen and LastSeen come from sightings. A store keeps them apart from the
	// record, so that a late sighting can't overwrite a revocation.
	FirstSeen time.Time `json:"first_seen,omitzero"`
	LastSeen  time.Time `json:"last_seen,omitzero"`
}

// Clone returns a copy that shares nothing with d that its methods change.
// Certificate DER is shared: nobody writes to it.
func (d Device) Clone() Device {
	d.OU = slices.Clone(d.OU)
	d.Labels = maps.Clone(d.Labels)
	d.Certificates = slices.Clone(d.Certificates)
	return d
}

// Activate notes that a registered device has connected for the first time.
func (d *Device) Activate(now time.Time) error { return d.move(StateActive, "", now) }

// Suspend cuts the device off until Resume.
func (d *Device) Suspend(reason string, now time.Time) error {
	return d.move(StateSuspended, reason, now)
}

// Resume lifts a suspension: the device is active again, or registered if it has
// never been seen. It is illegal from any other state.
func (d *Device) Resume(now time.Time) error {
	next := StateActive
	if d.FirstSeen.IsZero() {
		next = StateRegistered
	}
	if d.State != StateSuspended {
		return &TransitionError{ID: d.ID, From: d.State, To: next}
	}
	return d.move(next, "", now)
}

// Revoke cuts the device off for good and marks every certificate it ever had that
// isn't revoked yet, superseded ones included, as revoked now.
func (d *Device) Revoke(reason string, now time.Time) error {
	if err := d.move(StateRevoked, reason, now); err != nil {
		return err
	}
	for i := range d.Certificates {
		if d.Certificates[i].Revoked.IsZero() {
			d.Certificates[i].Revoked = now
		}
	}
	return nil
}

// Supersede puts next in the place of the usable certificate with that serial
// number. A device in a final state takes no certificate.
func (d *Device) Supersede(serial string, next Certificate, now time.Time) error {
	if d.State.Final() || !d.State.Valid() {
		return &TransitionError{ID: d.ID, From: d.State, To: StateRegistered}
	}
	i := slices.IndexFunc(d.Certificates, func(c Certificate) bool { return c.Serial == serial && c.Usable() })
	if i < 0 {
		return fmt.Errorf("device %s has no usable certificate with serial number %s", d.ID, serial)
	}
	d.Certificates[i].Superseded = now
	d.Certificates = append(d.Certificates, next)
	d.Updated = now
	return nil
}

// Holds reports whether the certificate with that fingerprint was ever the device's.
func (d *Device) Holds(fingerprint string) bool {
	return slices.ContainsFunc(d.Certificates, func(c Certificate) bool { return c.Fingerprint == fingerprint })
}

// Serials returns the serial numbers of every certificate of the device, oldest first.
func (d *Device) Serials() []string {
	serials := make([]string, 0, len(d.Certificates))
	for _, c := range d.Certificates {
		serials = append(serials, c.Serial)
	}
	return serials
}

func (d *Device) move(next State, reason string, now time.Time) error {
	if !d.State.MayBecome(next) {
		return &TransitionError{ID: d.ID, From: d.State, To: next}
	}
	d.State, d.Reason, d.Updated = next, reason, now
	return nil
}

// Status is what admission and policy need of a device, small enough to copy. Its
// slice and map are shared and read-only. The zero value admits nobody.
type Status struct {
	State        State
	Labels       map[string]string
	Fingerprints []string // of the certificates it may present; none once revoked
	Model        string
}

// Admits reports whether a device of this status may connect with the certificate
// of that fingerprint.
func (s Status) Admits(fingerprint string) bool {
	return s.State.MayConnect() && slices.Contains(s.Fingerprints, fingerprint)
}

// Status returns what admission needs of the record. The result shares nothing
// with d.
func (d *Device) Status() Status {
	s := Status{State: d.State, Model: d.Model}
	if len(d.Labels) > 0 {
		s.Labels = maps.Clone(d.Labels)
	}
	for _, c := range d.Certificates {
		if c.Usable() {
			s.Fingerprints = append(s.Fingerprints, c.Fingerprint)
		}
	}
	return s
}
