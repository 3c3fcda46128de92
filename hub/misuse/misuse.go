// Package misuse watches for devices that behave as a device does not: two that share
// one certificate, tickets that are used twice, connections or messages without end,
// topics tried one after the other. It keeps scores that fade, says once when one is too
// high, and decides nothing: what is done about it is its owner's to choose.
package misuse

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Signal is a kind of misuse.
type Signal string

// The signals. The first two are what a copied key looks like.
const (
	Flapping    Signal = "flapping"     // connections alternate between addresses
	TicketReuse Signal = "ticket-reuse" // a TLS session ticket was used twice
	Connections Signal = "connections"  // too many
	Messages    Signal = "messages"     // too many
	Denials     Signal = "denials"      // of topics, too many
)

// Signals returns every signal.
func Signals() []Signal { return []Signal{Flapping, TicketReuse, Connections, Messages, Denials} }

// Clone reports whether the signal hints at a second board with the same key.
func (s Signal) Clone() bool { return s == Flapping || s == TicketReuse }

// Thresholds are the scores from which on something is wrong. Each but Messages is a
// number of events that fades by half in HalfLife; 0 is the default, below 0 never.
type Thresholds struct {
	Flapping    int           // returns to an address that it had left; default 6
	TicketReuse int           // default 3: a board that lost its power in a handshake may repeat one
	Connections int           // default 60
	Denials     int           // default 60
	Messages    int           // per second, over broker.PublishWindow; default 2,000
	HalfLife    time.Duration // default 10 minutes
}

func (t *Thresholds) setDefaults() {
	for _, d := range []struct {
		field *int
		value int
	}{{&t.Flapping, 6}, {&t.TicketReuse, 3}, {&t.Connections, 60}, {&t.Denials, 60}, {&t.Messages, 2000}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if t.HalfLife <= 0 {
		t.HalfLife = 10 * time.Minute
	}
}

func (t *Thresholds) of(s Signal) int {
	switch s {
	case Flapping:
		return t.Flapping
	case TicketReuse:
		return t.TicketReuse
	case Connections:
		return t.Connections
	case Messages:
		return t.Messages
	case Denials:
		return t.Denials
	}
	return -1
}

// Anomaly is a score that has reached its threshold.
type Anomaly struct {
	At        time.Time `json:"at"`
	Device    string    `json:"device"`
	Signal    Signal    `json:"signal"`
	Score     int       `json:"score"`
	Threshold int       `json:"threshold"`
	Detail    string    `json:"detail"` // one sentence
}

// Bounds of what is kept in memory.
const (
	DefaultDevices = 1 << 15 // some 500 octets each
	addressesKept  = 4       // of a device
	recentKept     = 256     // anomalies
	ticketsKept    = 1 << 16 // some 100 octets each; a copy that waits longer flaps
)

// Config is what a Watch needs; its zero value is useful.
type Config struct {
	Thresholds Thresholds
	Devices    int // watched at a time, the one silent for longest is forgotten; 0: DefaultDevices

	// Report is told of every anomaly, at most once in a HalfLife for each signal of a
	// device, on the goroutine that met it: it must not block. Nil: nobody is told.
	Report func(Anomaly)
	Now    func() time.Time // nil: time.Now
}

// Watch keeps the scores. It is safe for concurrent use.
type Watch struct {
	config Config

	mu      sync.Mutex // guards what follows; not held while reporting
	devices *simplelru.LRU[string, *device]
	used    *simplelru.LRU[uint64, struct{}] // tickets
	recent  []Anomaly                        // oldest first
}

// device is what is known of one device.
type device struct {
	scores    map[Signal]*score
	addresses []string // it was connected from, the latest last
}

// score is a count that fades.
type score struct {
	value    float64
	at       time.Time
	reported time.Time
}

// New returns a Watch.
func New(config Config) *Watch {
	config.Thresholds.setDefaults()
	if config.Devices <= 0 {
		config.Devices = DefaultDevices
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	devices, err := simplelru.NewLRU[string, *device](config.Devices, nil)
	if err != nil {
		panic(err) // a size that isn't positive
	}
	used, err := simplelru.NewLRU[uint64, struct{}](ticketsKept, nil)
	if err != nil {
		panic(err) // likewise
	}
	return &Watch{config: config, devices: devices, used: used}
}

// Connected notes a connection of a device from an address (without port). One that
// moves goes from address to address; what comes back to one it had left, again and
// again, is two.
func (w *Watch) Connected(id, address string) {
	w.mu.Lock()
	d := w.device(id)
	i := slices.Index(d.addresses, address)
	returned := i >= 0 && i < len(d.addresses)-1
	former := ""
	if n := len(d.addresses); n > 0 {
		former = d.addresses[n-1]
	}
	if i >= 0 {
		d.addresses = slices.Delete(d.addresses, i, i+1)
	} else if len(d.addresses) == addressesKept {
		d.addresses = slices.Delete(d.addresses, 0, 1)
	}
	d.addresses = append(d.addresses, address)
	found := []*Anomaly{w.add(d, id, Connections, "it connects again and again")}
	if returned {
		found = append(found, w.add(d, id, Flapping, fmt.Sprintf("its connections alternate between %s and %s: two boards may have one key", former, address)))
	}
	w.mu.Unlock()
	w.report(found...)
}

// Resumed notes that the device has completed a handshake by a ticket, named by
// listener.Handshake.Ticket. RFC 8446 §C.4 has clients use each once.
func (w *Watch) Resumed(id string, ticket uint64) {
	w.mu.Lock()
	_, again := w.used.Get(ticket)
	if !again {
		w.used.Add(ticket, struct{}{})
	}
	w.mu.Unlock()
	if !again {
		return
	}
	w.one(id, TicketReuse, "TLS session tickets of its are used twice: a copy of its state may be about, or a client that keeps them")
}

// Denied notes that policy refused the device a topic.
func (w *Watch) Denied(id, topic string) {
	w.one(id, Denials, fmt.Sprintf("it tries topics that policy denies it, the last one %.100q", topic))
}

// Published notes how many messages the device has sent in a time.
func (w *Watch) Published(id string, messages int, in time.Duration) {
	limit := w.config.Thresholds.Messages
	if limit < 0 || in <= 0 {
		return
	}
	rate := int(float64(messages) / in.Seconds())
	if rate < limit {
		return
	}
	w.mu.Lock()
	found := w.judge(w.device(id), id, Messages, float64(rate), fmt.Sprintf("it has sent %d messages a second", rate))
	w.mu.Unlock()
	w.report(found)
}

func (w *Watch) one(id string, s Signal, detail string) {
	w.mu.Lock()
	found := w.add(w.device(id), id, s, detail)
	w.mu.Unlock()
	w.report(found)
}

// device returns the entry of a device. The caller holds mu.
func (w *Watch) device(id string) *device {
	d, ok := w.devices.Get(id)
	if !ok {
		d = &device{scores: make(map[Signal]*score, 1)}
		w.devices.Add(id, d)
	}
	return d
}

// add counts one more of a signal. The caller holds mu.
func (w *Watch) add(d *device, id string, s Signal, detail string) *Anomaly {
	if w.config.Thresholds.of(s) < 0 {
		return nil
	}
	value := 1.0
	if known := d.scores[s]; known != nil {
		value += known.faded(w.config.Now(), w.config.Thresholds.HalfLife)
	}
	return w.judge(d, id, s, value, detail)
}

// faded is what is left of a score.
func (s *score) faded(now time.Time, halfLife time.Duration) float64 {
	passed := max(now.Sub(s.at), 0)
	return s.value * math.Exp2(-passed.Seconds()/halfLife.Seconds())
}

// judge writes a score down, and returns the anomaly if it is one that wasn't reported
// lately. The caller holds mu.
func (w *Watch) judge(d *device, id string, s Signal, value float64, detail string) *Anomaly {
	now, threshold := w.config.Now(), w.config.Thresholds.of(s)
	known := d.scores[s]
	if known == nil {
		known = &score{}
		d.scores[s] = known
	}
	known.value, known.at = value, now
	// What fades between one event and the next must not keep a regular nuisance below.
	if math.Ceil(value-0.01) < float64(threshold) || !known.reported.IsZero() && now.Sub(known.reported) < w.config.Thresholds.HalfLife {
		return nil
	}
	known.reported = now
	a := Anomaly{At: now, Device: id, Signal: s, Score: int(math.Ceil(value - 0.01)), Threshold: threshold, Detail: detail}
	if len(w.recent) == recentKept {
		w.recent = slices.Delete(w.recent, 0, 1)
	}
	w.recent = append(w.recent, a)
	return &a
}

func (w *Watch) report(found ...*Anomaly) {
	if w.config.Report == nil {
		return
	}
	for _, a := range found {
		if a != nil {
			w.config.Report(*a)
		}
	}
}

// Scores returns a device's scores as they are now, those that are 0 left out.
func (w *Watch) Scores(id string) map[Signal]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	scores := make(map[Signal]int)
	d, ok := w.devices.Peek(id)
	if !ok {
		return scores
	}
	now := w.config.Now()
	for s, known := range d.scores {
		if left := int(math.Round(known.faded(now, w.config.Thresholds.HalfLife))); left > 0 {
			scores[s] = left
		}
	}
	return scores
}

// Recent returns the latest anomalies, newest first.
func (w *Watch) Recent() []Anomaly {
	w.mu.Lock()
	defer w.mu.Unlock()
	recent := slices.Clone(w.recent)
	slices.Reverse(recent)
	return recent
}

// Forget drops what is known of a device, such as when an operator has looked into it.
func (w *Watch) Forget(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.devices.Remove(id)
}
