// Package screen is what the technician at the bench looks at: a line a board in the
// terminal, and a page for a tablet that is green, or red with one sentence that says
// what to do next. It needs no network but the bench's, and shows no secret.
//
// The counts of what was made are the ledger's, so they outlive the program. Refusals
// are known from the server's events only, and are forgotten with the process.
package screen

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/report"
	"github.com/fleethub/fleethub/provisioning/server"
)

// Bounds of what is kept and shown.
const (
	shownLines  = 12
	shownHours  = 10
	shownOrders = 4
	maxRefusals = 1000 // that a report names; the oldest are forgotten
	maxText     = 300  // bytes of a refusal's detail
	maxViewers  = 16   // pages that are kept up to date at a time
	maxReaders  = 4    // labels and reports that are made at a time
)

// Config is what a Screen shows.
type Config struct {
	Ledger *ledger.Ledger // required; open until nobody uses the Screen
	Pin    string         // of the station's server key, for a person to compare

	// Print has the label of a new device printed; the error says why it won't be. It must
	// not block. Nil: labels aren't printed.
	Print func(id string) error

	Zone *time.Location   // nil: the machine's
	Now  func() time.Time // nil: time.Now
	Log  *slog.Logger     // nil: nothing is logged
}

// Screen is what has happened at the bench. It is safe for concurrent use.
type Screen struct {
	config  Config
	began   time.Time
	viewers *semaphore.Weighted
	readers *semaphore.Weighted
	done    chan struct{} // closed by Close
	close   func()

	mu       sync.Mutex // guards the fields below
	lines    []Line     // newest first
	refusals []report.Refusal
	refused  map[int64]int // by the hour's begin, in Unix seconds
	changed  chan struct{} // closed, and replaced, by every change

	drawing sync.Mutex // guards the fields below; never taken while mu is held
	tally   tally
	frame   []byte // as it was drawn
	drawn   time.Time
}

// printing is what a Line says of a label before the printer has it.
const printing = "its label is being printed"

// Line is one board at the door, once: its success, or a refusal and how often it was
// repeated.
type Line struct {
	At         time.Time
	Tone       Tone
	Headline   string
	Next       string // what to do, in one sentence
	ID         string // of a success
	Serial     string
	Protection string
	Address    string
	Reason     string // of a refusal
	Detail     string
	Count      int
	Label      string // what became of the label, if that needs to be known
}

// New returns the screen of a station that begins to serve now. Close it.
func New(c Config) *Screen {
	if c.Zone == nil {
		c.Zone = time.Local
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	done := make(chan struct{})
	return &Screen{
		config: c, began: c.Now(),
		viewers: semaphore.NewWeighted(maxViewers), readers: semaphore.NewWeighted(maxReaders),
		done: done, close: sync.OnceFunc(func() { close(done) }),
		refused: make(map[int64]int), changed: make(chan struct{}),
		tally: tally{issued: make(map[int64]int)},
	}
}

// Close ends the streams to open pages, so that the server can stop.
func (s *Screen) Close() { s.close() }

// Observe takes an event of the server and returns the line it made or counts on. It
// doesn't block.
func (s *Screen) Observe(e server.Event) Line {
	a := adviceOn(e)
	line := Line{
		At: e.At, Tone: a.tone, Headline: a.headline, Next: a.next, ID: e.ID, Serial: e.Serial, Protection: e.Protection,
		Address: e.Address, Reason: e.Reason, Detail: printable(e.Detail), Count: 1,
	}
	if e.Reason == "" && !e.Repeated && s.config.Print != nil {
		line.Label = printing
		if err := s.config.Print(e.ID); err != nil {
			line.Label = printable(err.Error())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Reason != "" && line.Tone != Wait {
		s.refuse(line)
	}
	// A board that knocks again and again takes one line, not the whole screen.
	if i := slices.IndexFunc(s.lines, line.repeats); i >= 0 && e.Reason != "" {
		line.Count += s.lines[i].Count
		s.lines = slices.Delete(s.lines, i, i+1)
	}
	s.lines = slices.Insert(s.lines, 0, line)
	s.lines = s.lines[:min(len(s.lines), shownLines)]
	s.notify()
	return line
}

func (l Line) repeats(other Line) bool {
	return l.Reason == other.Reason && host(l.Address) == host(other.Address) && l.Detail == other.Detail
}

// refuse notes a refusal for the shift report. The caller holds mu.
func (s *Screen) refuse(line Line) {
	s.refused[s.hour(line.At)]++
	if len(s.refused) > 2*shownHours {
		oldest := s.hour(line.At.Add(-shownHours * time.Hour))
		for hour := range s.refused {
			if hour < oldest {
				delete(s.refused, hour)
			}
		}
	}
	same := func(r report.Refusal) bool {
		return r.Reason == line.Reason && r.Address == host(line.Address) && r.Detail == line.Detail
	}
	noted := report.Refusal{Address: host(line.Address), Reason: line.Reason, Detail: line.Detail}
	if i := slices.IndexFunc(s.refusals, same); i >= 0 {
		noted = s.refusals[i]
		s.refusals = slices.Delete(s.refusals, i, i+1)
	}
	noted.At = line.At
	noted.Count++
	s.refusals = append(s.refusals, noted)
	if len(s.refusals) > maxRefusals {
		s.refusals = slices.Delete(s.refusals, 0, 1)
	}
}

// Labelled takes what became of a label: nil if the printer has it.
func (s *Screen) Labelled(id string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.lines, func(l Line) bool { return l.ID == id && l.Label != "" })
	if i < 0 {
		return
	}
	s.lines[i].Label = "its label is printed"
	if err != nil {
		s.lines[i].Label = printable(err.Error())
	}
	s.notify()
}

// Refusals returns what was refused, the oldest first, and since when that is known.
func (s *Screen) Refusals() ([]report.Refusal, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.refusals), s.began
}

// notify wakes who waits for a change. The caller holds mu.
func (s *Screen) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// hour returns the begin of the hour by the clock on the wall.
func (s *Screen) hour(at time.Time) int64 {
	at = at.In(s.config.Zone)
	return time.Date(at.Year(), at.Month(), at.Day(), at.Hour(), 0, 0, 0, s.config.Zone).Unix()
}
