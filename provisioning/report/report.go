// Package report tells what a station did in a shift: every certificate it issued and,
// as far as they are known, every board it refused; as CSV for a spreadsheet and as a
// page for people.
package report

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"github.com/fleethub/fleethub/provisioning/ledger"
)

// maxDevices is how many certificates one report names; of more it says so.
const maxDevices = 100_000

// patience is how many certificates in a row must be from before the shift until those
// before them are taken to be, too: the clock of a station may have been set back.
const patience = 1000

// Shift is the time a report is about, and how it is told.
type Shift struct {
	Station  string
	From, To time.Time // From inclusive, To exclusive
	Zone     *time.Location
}

// Device is a certificate that was issued in the shift.
type Device struct {
	At          time.Time         `json:"at"`
	ID          string            `json:"id"`
	Serial      string            `json:"serial"`
	Fingerprint string            `json:"fingerprint"`
	Model       string            `json:"model,omitempty"`
	Order       uint64            `json:"order,omitempty"`
	OrderName   string            `json:"order_name,omitempty"`
	Protection  ledger.Protection `json:"protection,omitempty"`
	State       ledger.State      `json:"state"`
	Supersedes  string            `json:"supersedes,omitempty"`
}

// Refusal is a board that got nothing. A board that was refused again for the same
// reason counts on.
type Refusal struct {
	At      time.Time `json:"at"` // the last time
	Address string    `json:"address"`
	Reason  string    `json:"reason"`
	Detail  string    `json:"detail"`
	Count   int       `json:"count"`
}

// Report is what happened in a shift, oldest first.
type Report struct {
	Station   string    `json:"station"`
	From      time.Time `json:"from"`
	To        time.Time `json:"to"`
	Devices   []Device  `json:"devices"`
	Truncated bool      `json:"truncated"` // there were more devices
	Refusals  []Refusal `json:"refusals"`

	// RefusalsSince is when the server began to note refusals, which are in its memory
	// only. Zero: no server runs, and none are known.
	RefusalsSince time.Time `json:"refusals_since,omitzero"`

	zone *time.Location
}

// Collect reads a shift from the ledger. Refusals are added by who knows them.
func Collect(l *ledger.Ledger, s Shift) (Report, error) {
	if s.Zone == nil {
		s.Zone = time.Local
	}
	r := Report{Station: s.Station, From: s.From, To: s.To, Devices: []Device{}, Refusals: []Refusal{}, zone: s.Zone}
	names, before := make(map[uint64]string), 0
	err := l.Recent(func(record ledger.Record, der []byte) (bool, error) {
		if record.IssuedAt.Before(s.From) {
			before++
			return before < patience, nil
		}
		before = 0
		if !record.IssuedAt.Before(s.To) {
			return true, nil
		}
		if len(r.Devices) == maxDevices {
			r.Truncated = true
			return false, nil
		}
		names[record.Order] = ""
		sum := sha256.Sum256(der)
		r.Devices = append(r.Devices, Device{
			At: record.IssuedAt, ID: record.ID, Serial: record.Serial, Fingerprint: hex.EncodeToString(sum[:]), Model: record.Model,
			Order: record.Order, Protection: record.Protection, State: record.State, Supersedes: record.Supersedes,
		})
		return true, nil
	})
	if err != nil {
		return r, err
	}
	delete(names, 0) // from before there were orders
	for n := range names {
		o, err := l.Order(n)
		if err != nil {
			return r, err
		}
		names[n] = o.String()
	}
	for i := range r.Devices {
		r.Devices[i].OrderName = names[r.Devices[i].Order]
	}
	slices.Reverse(r.Devices)
	return r, nil
}

// Hour is what one hour of a shift brought.
type Hour struct {
	Begin  time.Time
	Issued int
}

// Hours returns every hour of the shift, by the clock on the wall, in which something
// was issued.
func (r Report) Hours() []Hour {
	var hours []Hour
	for _, d := range r.Devices {
		at := d.At.In(r.zone)
		begin := time.Date(at.Year(), at.Month(), at.Day(), at.Hour(), 0, 0, 0, r.zone)
		i := slices.IndexFunc(hours, func(h Hour) bool { return h.Begin.Equal(begin) })
		if i < 0 {
			i = len(hours)
			hours = append(hours, Hour{Begin: begin})
		}
		hours[i].Issued++
	}
	slices.SortFunc(hours, func(a, b Hour) int { return a.Begin.Compare(b.Begin) })
	return hours
}

// AddRefusals adds the refusals in the report's time, as far as they are known: since
// that moment.
func (r *Report) AddRefusals(refusals []Refusal, since time.Time) {
	r.RefusalsSince = since
	for _, f := range refusals {
		if !f.At.Before(r.From) && f.At.Before(r.To) {
			r.Refusals = append(r.Refusals, f)
		}
	}
}
