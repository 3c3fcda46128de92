// Package registry says what the hub knows about a device: its record, the states
// it can be in and the legal transitions between them, the selectors that pick
// devices, and the units in which records are changed and audited.
//
// The package does no I/O and starts no goroutine. Package fleet changes records,
// package boltstore keeps them. A Device is a plain value with one owner at a time;
// nothing here is safe for concurrent change.
package registry

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// maxHistory is how many transitions a record keeps, the latest. The audit log has all.
const maxHistory = 32

// EKSize is the size in octets of what Device.EK has in hex.
const EKSize = 32

// ReasonHold is the RFC 5280 §5.3.1 name of the reason of a suspension, the only one
// that can be taken back.
const ReasonHold = "certificateHold"

// Device is the hub's record of one device. Change its state through its methods
// only; they leave the record as it was when they return an error.
type Device struct {
	ID          string            `json:"id"`
	State       State             `json:"state"`
	Reason      string            `json:"reason,omitempty"` // why it is cut off, RFC 5280 §5.3.1
	Note        string            `json:"note,omitempty"`   // likewise, in the operator's words
	Model       string            `json:"model,omitempty"`
	Batch       string            `json:"batch,omitempty"`
	OU          []string          `json:"ou,omitempty"`
	BoardSerial string            `json:"board_serial,omitempty"`
	Protection  string            `json:"protection,omitempty"` // where the key lives, as its certificate's issuer has seen it proved
	EK          string            `json:"ek,omitempty"`         // of its TPM: SHA-256 of the endorsement key, lower-case hex. No other device ever has it
	Labels      map[string]string `json:"labels,omitempty"`     // policy and selectors see them
	Metadata    map[string]string `json:"metadata,omitempty"`   // free text for people; nothing decides by it
	Station     string            `json:"station,omitempty"`
	Manifest    uint64            `json:"manifest,omitempty"` // the station's manifest that registered it

	Replaces   string  `json:"replaces,omitempty"`    // the device whose place it took
	ReplacedBy string  `json:"replaced_by,omitempty"` // the device that took its place
	Permit     *Permit `json:"permit,omitempty"`      // to come back with a new certificate

	Certificates []Certificate `json:"certificates,omitempty"` // oldest first
	History      []Transition  `json:"history,omitempty"`      // of its state, oldest first, the last 32
	Created      time.Time     `json:"created"`
	Updated      time.Time     `json:"updated"` // of the last change other than a sighting

	// FirstSeen and LastSeen come from sightings. A store keeps them apart from the
	// record, so that a late sighting can't overwrite a revocation.
	FirstSeen time.Time `json:"first_seen,omitzero"`
	LastSeen  time.Time `json:"last_seen,omitzero"`
}

// Cause is by whom, why and when a device changes its state.
type Cause struct {
	Actor   string    `json:"actor"`             // an operator's SPIFFE ID, or hub
	Reason  string    `json:"reason,omitempty"`  // RFC 5280 §5.3.1
	Note    string    `json:"note,omitempty"`    // the operator's words
	Receipt string    `json:"receipt,omitempty"` // ID of the receipt, if there is one
	At      time.Time `json:"at"`
}

// Transition is one change of a device's state.
type Transition struct {
	From State `json:"from,omitempty"` // none: it was not registered before
	To   State `json:"to"`
	Cause
}

// Permit is an operator's word that a device cut off for good may come back with a new
// certificate for a new key.
type Permit struct {
	Actor string    `json:"actor"`
	Note  string    `json:"note,omitempty"`
	At    time.Time `json:"at"`
}

// Clone returns a copy that shares nothing with d that its methods change.
// Certificate DER is shared: nobody writes to it.
func (d Device) Clone() Device {
	d.OU = slices.Clone(d.OU)
	d.Labels = maps.Clone(d.Labels)
	d.Metadata = maps.Clone(d.Metadata)
	d.Certificates = slices.Clone(d.Certificates)
	d.History = slices.Clone(d.History)
	return d
}

// Since returns the transition that led to the present state; it is zero for a record
// that came without history.
func (d *Device) Since() Transition {
	if len(d.History) == 0 {
		return Transition{}
	}
	return d.History[len(d.History)-1]
}

// Register makes a record that has no state yet a registered device.
func (d *Device) Register(c Cause) error {
	if d.State != "" {
		return &TransitionError{ID: d.ID, From: d.State, To: StateRegistered}
	}
	d.step(StateRegistered, c)
	d.Created = c.At
	return nil
}

// Activate notes that a registered device has connected for the first time. It is
// illegal from any other state: only Resume leads out of a suspension.
func (d *Device) Activate(c Cause) error {
	if d.State != StateRegistered {
		return &TransitionError{ID: d.ID, From: d.State, To: StateActive}
	}
	return d.move(StateActive, c)
}

// Suspend cuts the device off until Resume. The reason is always certificateHold.
func (d *Device) Suspend(c Cause) error {
	c.Reason = ReasonHold
	return d.move(StateSuspended, c)
}

// Resume lifts a suspension: the device is active again, or registered if it has
// never been seen. It is illegal from any other state.
func (d *Device) Resume(c Cause) error {
	next := StateActive
	if d.FirstSeen.IsZero() {
		next = StateRegistered
	}
	if d.State != StateSuspended {
		return &TransitionError{ID: d.ID, From: d.State, To: next}
	}
	c.Reason = ""
	return d.move(next, c)
}

// Revoke cuts the device off for good and marks every certificate it ever had that
// isn't revoked yet, superseded ones included, as revoked now. So do Retire and
// Replace.
func (d *Device) Revoke(c Cause) error { return d.end(StateRevoked, c) }

// Retire takes the device out of service for good.
func (d *Device) Retire(c Cause) error { return d.end(StateRetired, c) }

// Replace takes the device out of service for good, in favour of another.
func (d *Device) Replace(by string, c Cause) error {
	if by == "" || by == d.ID {
		return fmt.Errorf("device %s can't be replaced by %q: name another device", d.ID, by)
	}
	if err := d.end(StateReplaced, c); err != nil {
		return err
	}
	d.ReplacedBy = by
	return nil
}

// Allow lets a device in a final state come back with a new certificate. It changes
// nothing else: until Reinstate the device stays out.
func (d *Device) Allow(c Cause) error {
	if !d.State.Final() {
		return &TransitionError{ID: d.ID, From: d.State, To: StateRegistered}
	}
	d.Permit, d.Updated = &Permit{Actor: c.Actor, Note: c.Note, At: c.At}, c.At
	return nil
}

// ErrNoPermit is in the chain of the error about a device that comes back without an
// operator's leave, or with a key that it had before.
var ErrNoPermit = errors.New("no leave to come back")

// Reinstate brings a device back from a final state, with a certificate that it never
// had, for a key that it never had, and only after Allow. What was revoked stays so.
// Every record of a certificate needs its DER here.
func (d *Device) Reinstate(next Certificate, c Cause) error {
	if !d.State.Final() {
		return &TransitionError{ID: d.ID, From: d.State, To: StateRegistered}
	}
	if d.Permit == nil {
		return fmt.Errorf("device %s is %s: %w; an operator gives it with `hub device reinstate %s --confirm`", d.ID, d.State, ErrNoPermit, d.ID)
	}
	key, err := publicKey(next)
	if err != nil {
		return fmt.Errorf("the new certificate of %s: %w", d.ID, err)
	}
	for _, old := range d.Certificates {
		former, err := publicKey(old)
		if err != nil {
			return fmt.Errorf("former certificate %s of %s: %w", old.Serial, d.ID, err)
		}
		if old.Fingerprint == next.Fingerprint || bytes.Equal(former, key) {
			return fmt.Errorf("device %s: %w under a key that it had before (certificate %s); make it a new key", d.ID, ErrNoPermit, old.Serial)
		}
	}
	d.Certificates = append(d.Certificates, next)
	d.Permit, d.ReplacedBy = nil, ""
	c.Reason = ""
	d.step(StateRegistered, c)
	return nil
}

// publicKey returns the SubjectPublicKeyInfo of a certificate.
func publicKey(c Certificate) ([]byte, error) {
	parsed, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return nil, fmt.Errorf("it can't be read: %w", err)
	}
	return parsed.RawSubjectPublicKeyInfo, nil
}

// Supersede puts next in the place of the usable certificate with that serial number,
// and of what the device has renewed it to since. A device in a final state takes no
// certificate.
func (d *Device) Supersede(serial string, next Certificate, now time.Time) error {
	if d.State.Final() || !d.State.Valid() {
		return &TransitionError{ID: d.ID, From: d.State, To: StateRegistered}
	}
	i := slices.IndexFunc(d.Certificates, func(c Certificate) bool { return c.Serial == serial })
	if i < 0 || !d.replaceable(i) {
		return fmt.Errorf("device %s has no usable certificate with serial number %s", d.ID, serial)
	}
	for j := range d.Certificates {
		d.supersede(j, now)
	}
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

// end moves to a final state, certificates included.
func (d *Device) end(next State, c Cause) error {
	if err := d.move(next, c); err != nil {
		return err
	}
	for i := range d.Certificates {
		if d.Certificates[i].Revoked.IsZero() {
			d.Certificates[i].Revoked, d.Certificates[i].Reason = c.At, c.Reason
		}
	}
	return nil
}

func (d *Device) move(next State, c Cause) error {
	if !d.State.MayBecome(next) {
		return &TransitionError{ID: d.ID, From: d.State, To: next}
	}
	d.step(next, c)
	return nil
}

// step writes down a change of state that is legal.
func (d *Device) step(next State, c Cause) {
	d.History = append(d.History, Transition{From: d.State, To: next, Cause: c})
	if extra := len(d.History) - maxHistory; extra > 0 {
		d.History = slices.Delete(d.History, 0, extra)
	}
	d.State, d.Reason, d.Note, d.Updated = next, c.Reason, c.Note, c.At
}

// Status is what admission and policy need of a device, small enough to copy. Its
// slice and map are shared and read-only. The zero value admits nobody.
type Status struct {
	State        State
	Labels       map[string]string
	Fingerprints []Fingerprint // of the certificates it may present; none once revoked
	Model        string
	Batch        string
	Station      string
	Protection   string // of the key
	NeedsTPM     bool   // its model's keys must be in a TPM, proved by the certificate
}

// Admits reports whether a device of this status may connect with the certificate
// of that fingerprint.
func (s Status) Admits(fingerprint Fingerprint) bool {
	return s.State.MayConnect() && slices.Contains(s.Fingerprints, fingerprint)
}
