// Package measure counts what a run of simulated devices cost: connects,
// handshakes, messages, latency, and errors by kind.
package measure

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"
)

// Recorder gathers a run's numbers. The zero value is ready; it is safe for
// concurrent use.
type Recorder struct {
	Full    atomic.Uint64 // connects with a full TLS handshake
	Resumed atomic.Uint64 // connects with a resumed one
	Sent    atomic.Uint64 // messages due, whether or not they could be sent
	Acked   atomic.Uint64 // messages that the hub acknowledged
	Up      atomic.Int64  // devices connected now

	Connect Histogram // dialling to CONNACK
	Latency Histogram // PUBLISH to PUBACK

	lag atomic.Int64 // nanoseconds the simulator fell behind its plan, at worst

	mu     sync.Mutex // guards errors
	errors map[string]*Trouble
}

// Trouble is one kind of error and how often it came.
type Trouble struct {
	Count   uint64 `json:"count"`
	Example string `json:"example"` // the first one's words
}

// Error counts an error of that kind.
func (r *Recorder) Error(kind, example string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.errors == nil {
		r.errors = make(map[string]*Trouble)
	}
	t := r.errors[kind]
	if t == nil {
		t = &Trouble{Example: example}
		r.errors[kind] = t
	}
	t.Count++
}

// Errors returns how many errors were counted.
func (r *Recorder) Errors() (n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.errors {
		n += t.Count
	}
	return n
}

// Lag notes that a message went out so much later than planned.
func (r *Recorder) Lag(late time.Duration) {
	for {
		old := r.lag.Load()
		if int64(late) <= old || r.lag.CompareAndSwap(old, int64(late)) {
			return
		}
	}
}

// Summary is what a run came to.
type Summary struct {
	Devices  int           `json:"devices"`
	Lasted   time.Duration `json:"lasted_ns"` // from the first connect to the last answer
	Connects uint64        `json:"connects"`
	Full     uint64        `json:"full_handshakes"`
	Resumed  uint64        `json:"resumed_handshakes"`
	Connect  Spread        `json:"connect"`
	Sent     uint64        `json:"messages_sent"`
	Acked    uint64        `json:"messages_acknowledged"`
	Latency  Spread        `json:"latency"`
	// Lag is how far behind its own plan the simulator was at worst. When it
	// is large, this machine was the bottleneck, not the hub.
	Lag    time.Duration      `json:"lag_ns"`
	Errors map[string]Trouble `json:"errors"`
}

// Spread describes a set of durations.
type Spread struct {
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
}

func spreadOf(h *Histogram) Spread {
	return Spread{P50: h.Quantile(0.5), P99: h.Quantile(0.99), Max: h.Max()}
}

// Summary sums up a run of so many devices that lasted so long.
func (r *Recorder) Summary(devices int, lasted time.Duration) Summary {
	s := Summary{
		Devices: devices,
		Lasted:  lasted,
		Full:    r.Full.Load(),
		Resumed: r.Resumed.Load(),
		Connect: spreadOf(&r.Connect),
		Sent:    r.Sent.Load(),
		Acked:   r.Acked.Load(),
		Latency: spreadOf(&r.Latency),
		Lag:     time.Duration(r.lag.Load()),
		Errors:  r.Troubles(),
	}
	s.Connects = s.Full + s.Resumed
	return s
}

// Troubles returns the errors counted, by kind.
func (r *Recorder) Troubles() map[string]Trouble {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[string]Trouble, len(r.errors))
	for kind, t := range r.errors {
		all[kind] = *t
	}
	return all
}

// Failed returns how many things went wrong, 0 if all went well.
func (s Summary) Failed() (n uint64) {
	for _, t := range s.Errors {
		n += t.Count
	}
	return n
}

// notableLag is from where the table mentions that the simulator fell behind.
const notableLag = 250 * time.Millisecond

// WriteTable writes the summary for a person.
func (s Summary) WriteTable(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", name, fmt.Sprintf(format, args...)) // Flush returns the error
	}
	row("devices", "%d", s.Devices)
	row("lasted", "%s", s.Lasted.Round(time.Millisecond))
	row("connects", "%d (%d full, %d resumed handshakes)", s.Connects, s.Full, s.Resumed)
	row("connect time", "%s", s.Connect)
	row("messages", "%d sent, %d acknowledged", s.Sent, s.Acked)
	row("latency", "%s", s.Latency)
	if s.Lag >= notableLag {
		row("simulator lag", "%s at worst: this machine was too slow for the rate", s.Lag.Round(time.Millisecond))
	}
	if len(s.Errors) == 0 {
		row("errors", "none")
	}
	for _, kind := range slices.Sorted(maps.Keys(s.Errors)) {
		t := s.Errors[kind]
		row("errors", "%d × %s: %s", t.Count, kind, t.Example)
	}
	return table.Flush()
}

// String returns the durations, rounded to what a person compares.
func (s Spread) String() string {
	return fmt.Sprintf("p50 %s, p99 %s, max %s", round(s.P50), round(s.P99), round(s.Max))
}

// round keeps about three digits.
func round(d time.Duration) time.Duration {
	for unit := 10 * time.Second; unit >= time.Microsecond; unit /= 10 {
		if d >= 100*unit {
			return d.Round(unit)
		}
	}
	return d.Round(time.Microsecond)
}
