package screen

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/fleethub/fleethub/provisioning/ledger"
)

// view is everything that the page shows at a moment.
type view struct {
	Station    string
	Pin        string
	Now        time.Time
	Tone       Tone
	Headline   string
	Next       string
	Lines      []Line
	Hours      []hourCount // the newest first
	Orders     []progress  // the one that is being worked at first
	MoreOrders int
	Waiting    int // certificates that no manifest names yet
}

type hourCount struct {
	Begin           time.Time
	Issued, Refused int
}

// progress is how far an order is.
type progress struct {
	Name             string
	Delivered, Count int
	Closed           bool
}

// tally is what was read from the ledger's certificates so far: only those that were
// issued since are read again.
type tally struct {
	sequence uint64        // of the newest that was read
	order    uint64        // which it was issued for
	issued   map[int64]int // by the hour's begin, in Unix seconds
}

// read takes in what was issued since the last time, at first the last hours'.
func (t *tally) read(l *ledger.Ledger, oldest int64, hour func(time.Time) int64) error {
	seen, first := t.sequence, true
	err := l.Recent(func(r ledger.Record, _ []byte) (bool, error) {
		if first {
			t.sequence, t.order, first = r.Sequence, r.Order, false
		}
		begin := hour(r.IssuedAt)
		if r.Sequence <= seen || seen == 0 && begin < oldest {
			return false, nil
		}
		t.issued[begin]++
		return true, nil
	})
	for begin := range t.issued {
		if begin < oldest {
			delete(t.issued, begin)
		}
	}
	return err
}

// look returns the view of this moment. The caller holds drawing.
func (s *Screen) look() (view, error) {
	now, l := s.config.Now(), s.config.Ledger
	v := view{Station: l.Station(), Pin: s.config.Pin, Now: now}
	oldest := s.hour(now.Add(-(shownHours - 1) * time.Hour))
	if err := s.tally.read(l, oldest, s.hour); err != nil {
		return v, err
	}
	if err := v.addOrders(l, s.tally.order); err != nil {
		return v, err
	}
	var err error
	if v.Waiting, err = l.Unexported(); err != nil {
		return v, err
	}
	s.mu.Lock()
	v.Lines = slices.Clone(s.lines)
	for begin := range shownHours {
		hour := s.hour(now.Add(-time.Duration(begin) * time.Hour))
		h := hourCount{Begin: time.Unix(hour, 0).In(s.config.Zone), Issued: s.tally.issued[hour], Refused: s.refused[hour]}
		if n := len(v.Hours); n > 0 && v.Hours[n-1].Begin.Unix() == hour { // the clock was put back from summer time
			continue
		}
		if begin == 0 || h.Issued > 0 || h.Refused > 0 {
			v.Hours = append(v.Hours, h)
		}
	}
	s.mu.Unlock()
	v.conclude()
	return v, nil
}

// addOrders adds the open orders. Those of one device each, as tokens and single
// commands open them, come last.
func (v *view) addOrders(l *ledger.Ledger, current uint64) error {
	open, err := l.OpenOrders()
	if err != nil {
		return err
	}
	if current != 0 && !slices.ContainsFunc(open, func(o ledger.Order) bool { return o.Number == current }) {
		o, err := l.Order(current)
		if err != nil {
			return err
		}
		open = append(open, o)
	}
	rank := func(o ledger.Order) int {
		switch {
		case o.Number == current:
			return 0
		case o.Kind == ledger.Single:
			return 2
		}
		return 1
	}
	slices.SortStableFunc(open, func(a, b ledger.Order) int { return cmp.Compare(rank(a), rank(b)) })
	for _, o := range open[:min(len(open), shownOrders)] {
		v.Orders = append(v.Orders, progress{Name: o.String(), Delivered: o.Delivered, Count: o.Count, Closed: o.Closed()})
	}
	v.MoreOrders = len(open) - len(v.Orders)
	return nil
}

// conclude says what the technician is to do now.
func (v *view) conclude() {
	none := !slices.ContainsFunc(v.Orders, func(p progress) bool { return !p.Closed })
	switch {
	case len(v.Lines) > 0:
		last := v.Lines[0]
		v.Tone, v.Headline, v.Next = last.Tone, last.Headline, last.Next
		if last.Tone == Good && none {
			v.Next = fmt.Sprintf("Unplug %s and put its label on: the order is complete, import the next one (provisioning order import).", last.ID)
		}
	case none:
		v.Tone, v.Headline, v.Next = Idle, "No order is open", "Import an order (provisioning order import) before you plug in a board."
	default:
		v.Tone, v.Headline, v.Next = Idle, "Ready", "Plug in a board that has its token or claim certificate."
	}
}

// Status returns one line: how far the order is, and what this hour brought.
func (s *Screen) Status() string {
	s.drawing.Lock()
	defer s.drawing.Unlock()
	v, err := s.look()
	if err != nil {
		return "the ledger can't be read: " + printable(err.Error())
	}
	text := "no order is open"
	if len(v.Orders) > 0 {
		o := v.Orders[0]
		text = fmt.Sprintf("order %s: %d of %d", printable(o.Name), o.Delivered, o.Count)
		if o.Closed {
			text += ", closed"
		}
	}
	return fmt.Sprintf("%s | this hour: %d made, %d refused", text, v.Hours[0].Issued, v.Hours[0].Refused)
}
