package measure

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"
)

// Storm is what a storm of reconnects came to.
type Storm struct {
	Devices   int `json:"devices"`
	Connected int `json:"connected"` // at the end
	Refused   int `json:"refused"`   // for good: only a person can help them
	Lost      int `json:"lost"`      // were in, and aren't at the end
	Waiting   int `json:"waiting"`   // never got in

	Full    int `json:"full_handshakes"` // of those that got in
	Resumed int `json:"resumed_handshakes"`

	Attempts struct {
		P50 uint64 `json:"p50"`
		P99 uint64 `json:"p99"`
		Max uint64 `json:"max"`
	} `json:"attempts"` // of each device

	In     Spread        `json:"in"`                  // from the storm's begin to CONNACK, of those that got in
	AllIn  time.Duration `json:"all_in_ns,omitempty"` // 0 unless all got in
	Lasted time.Duration `json:"lasted_ns"`

	Failures map[string]Trouble `json:"failures"` // of attempts, by kind
}

// Attempted sets Attempts from how many each device made.
func (s *Storm) Attempted(attempts []uint64) {
	if len(attempts) == 0 {
		return
	}
	sorted := slices.Sorted(slices.Values(attempts))
	at := func(q float64) uint64 { return sorted[int(q*float64(len(sorted)-1))] }
	s.Attempts.P50, s.Attempts.P99, s.Attempts.Max = at(0.5), at(0.99), at(1)
}

// Took sets In from when the devices got in.
func (s *Storm) Took(h *Histogram) { s.In = spreadOf(h) }

// Failed says what is wrong with the end of the storm, or returns nil: attempts may
// fail, devices may not.
func (s Storm) Failed() error {
	if s.Connected == s.Devices {
		return nil
	}
	return fmt.Errorf("%d of %d devices aren't connected: %d refused, %d lost, %d never got in; the hub's log says why", s.Devices-s.Connected, s.Devices, s.Refused, s.Lost, s.Waiting)
}

// WriteTable writes the storm for a person.
func (s Storm) WriteTable(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", name, fmt.Sprintf(format, args...)) // Flush returns the error
	}
	row("devices", "%d", s.Devices)
	row("connected", "%d (%d full, %d resumed handshakes)", s.Connected, s.Full, s.Resumed)
	row("refused or lost", "%d refused, %d lost, %d never got in", s.Refused, s.Lost, s.Waiting)
	row("attempts of a device", "p50 %d, p99 %d, max %d", s.Attempts.P50, s.Attempts.P99, s.Attempts.Max)
	row("time to get in", "%s", s.In)
	if s.AllIn > 0 {
		row("all in after", "%s", round(s.AllIn))
	}
	if len(s.Failures) == 0 {
		row("failed attempts", "none")
	}
	for _, kind := range slices.Sorted(maps.Keys(s.Failures)) {
		t := s.Failures[kind]
		row("failed attempts", "%d × %s: %s", t.Count, kind, t.Example)
	}
	return table.Flush()
}
