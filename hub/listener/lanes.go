package listener

import (
	"container/list"
	"errors"
	"net"
	"sync"
	"time"
)

// lane is a queue for the processor.
type lane int

// The lanes, in the order in which they are served.
const (
	laneBegun   lane = iota // its peer has answered our first flight: finish what has cost something
	laneResumed             // a ticket of ours: a fifth of the work, and a proven peer
	laneFull                // anybody
	laneCount
)

// overtakes is how many resumed handshakes may pass a waiting full one: without it, a
// copied ticket replayed fast enough would keep every new device out.
const overtakes = 7

var (
	errQueueFull    = errors.New("as many handshakes as may wait are waiting already")
	errQueueTimeout = errors.New("its turn did not come in time")
)

// lanes hands out the right to compute, of which there are a few per core, to the
// handshakes under way. Without it thousands of them would share the cores evenly, each
// would take as long as all together, and all would miss their deadline. Within a lane
// it is first come, first served.
//
// It also bounds how many handshakes of a lane wait for their peers' answer. When peers,
// or the way to them, are slower than the hub, what is begun beyond that would be paid
// for and then die at its deadline. A peer that takes longer than patience counts no
// more, so silent ones can't close a lane.
type lanes struct {
	patience time.Duration // for one answer

	mu       sync.Mutex // guards what follows
	window   int        // answers awaited in each lane
	rights   int        // to compute
	free     int        // of them; less than 0 after there were more
	queues   [laneCount]list.List
	limits   [laneCount]int       // of those waiting; 0: none, the handshakes under way bound it
	awaited  [laneCount]list.List // of *answer, oldest first
	reminder *time.Timer          // when patience with the oldest ends; nil: nobody waits for that
	passed   int                  // resumed handshakes served since the last full one, while one waited
	admitted [laneCount]uint64
	waited   [laneCount]time.Duration // by those admitted
}

// place is one handshake's in a queue.
type place struct {
	turn    chan struct{} // closed when the right is handed over
	element *list.Element // nil once out of the queue; guarded by lanes.mu
}

// answer is one that a handshake awaits from its peer.
type answer struct {
	lane    lane
	asked   time.Time
	element *list.Element // nil once it counts no more; guarded by lanes.mu
}

// enter waits for the right to compute until deadline or until done is closed, and
// says whether there was a wait. A full queue refuses at once. Who gets nil must leave.
func (l *lanes) enter(in lane, deadline time.Time, done <-chan struct{}) (waited bool, err error) {
	began := time.Now()
	l.mu.Lock()
	queue := &l.queues[in]
	if l.free > 0 && queue.Len() == 0 && l.isOpen(in, began) {
		l.free--
		l.admitted[in]++
		l.mu.Unlock()
		return false, nil
	}
	if limit := l.limits[in]; limit > 0 && queue.Len() >= limit {
		l.mu.Unlock()
		return false, errQueueFull
	}
	p := &place{turn: make(chan struct{})}
	p.element = queue.PushBack(p)
	l.serve(began)
	l.mu.Unlock()

	timer := time.NewTimer(deadline.Sub(began))
	defer timer.Stop()
	select {
	case <-p.turn:
	case <-timer.C:
		err = errQueueTimeout
	case <-done:
		err = net.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.element != nil {
		queue.Remove(p.element)
		p.element = nil
		return true, err
	}
	// The right came, if perhaps at the same moment as the end of the wait.
	l.admitted[in]++
	l.waited[in] += time.Since(began)
	return true, nil
}

// leave hands the right to compute to who is next.
func (l *lanes) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free++
	l.serve(time.Now())
}

// await is leave by a handshake that came through that lane and needs its peer's
// answer now.
func (l *lanes) await(in lane) *answer {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &answer{lane: in, asked: time.Now()}
	a.element = l.awaited[in].PushBack(a)
	l.free++
	l.serve(a.asked)
	return a
}

// answered ends an await, whatever came; nil is none.
func (l *lanes) answered(a *answer) {
	if a == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.element != nil {
		l.awaited[a.lane].Remove(a.element)
		a.element = nil
		l.serve(time.Now())
	}
}

// serve hands out what can be. The caller holds mu.
func (l *lanes) serve(now time.Time) {
	for l.free > 0 {
		in, ok := l.next(now)
		if !ok {
			break
		}
		p := l.queues[in].Remove(l.queues[in].Front()).(*place)
		p.element = nil
		l.free--
		close(p.turn)
	}
	l.remind(now)
}

// next returns the lane whose first is to be served. The caller holds mu.
func (l *lanes) next(now time.Time) (lane, bool) {
	ready := func(in lane) bool { return l.queues[in].Len() > 0 && l.isOpen(in, now) }
	resumed, full := ready(laneResumed), ready(laneFull)
	switch {
	case ready(laneBegun):
		return laneBegun, true
	case full && (!resumed || l.passed >= overtakes):
		l.passed = 0
		return laneFull, true
	case resumed:
		if full {
			l.passed++
		}
		return laneResumed, true
	}
	return 0, false
}

// isOpen reports whether one more handshake may begin in that lane. The caller holds mu.
func (l *lanes) isOpen(in lane, now time.Time) bool {
	if in == laneBegun || l.window == 0 {
		return true
	}
	awaited := &l.awaited[in]
	for awaited.Len() >= l.window {
		oldest := awaited.Front().Value.(*answer)
		if now.Sub(oldest.asked) < l.patience {
			return false
		}
		awaited.Remove(oldest.element)
		oldest.element = nil
	}
	return true
}

// remind has serve run when a lane that somebody waits at opens by itself, unless that
// is arranged already. The caller holds mu.
func (l *lanes) remind(now time.Time) {
	if l.reminder != nil || l.free <= 0 {
		return
	}
	var next time.Time
	for in := range laneCount {
		if l.queues[in].Len() == 0 || l.isOpen(in, now) {
			continue
		}
		if oldest := l.awaited[in].Front().Value.(*answer); next.IsZero() || oldest.asked.Before(next) {
			next = oldest.asked
		}
	}
	if next.IsZero() {
		return
	}
	l.reminder = time.AfterFunc(next.Add(l.patience).Sub(now), func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.reminder = nil
		l.serve(time.Now())
	})
}

// stop ends what remind arranged. Nobody waits any more.
func (l *lanes) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reminder != nil {
		l.reminder.Stop()
	}
}
