package listener

import (
	"slices"
	"sync"
	"time"
)

// idleWorker is how long a goroutine without work waits for more, or up to half as long
// again.
const idleWorker = time.Second

// workers runs functions on goroutines that are used again: one that has just shaken
// hands has a grown stack, and growing it anew costs a tenth of a resumed handshake. It
// bounds nothing; there are as many goroutines as functions running. The one that was
// the last to become idle works first: what it touches is still in the cache, and those
// at the bottom can go.
type workers struct {
	stop  <-chan struct{} // closed when no function will be run any more
	all   sync.WaitGroup  // the goroutines
	first sync.Once       // there are some, and a janitor

	mu      sync.Mutex // guards what follows
	idle    []worker   // longest first
	round   int        // how often the janitor has looked
	stopped bool       // nobody becomes idle any more
}

// worker is an idle goroutine.
type worker struct {
	work  chan func() // of capacity 1, closed to end it
	since int         // the round in which it became so
}

func newWorkers(stop <-chan struct{}) *workers { return &workers{stop: stop} }

// run calls f on another goroutine, at once.
func (w *workers) run(f func()) {
	w.mu.Lock()
	n := len(w.idle)
	if n == 0 {
		w.mu.Unlock()
		w.first.Do(func() { w.all.Go(w.janitor) })
		w.all.Go(func() { w.loop(f) })
		return
	}
	work := w.idle[n-1].work
	w.idle[n-1] = worker{}
	w.idle = w.idle[:n-1]
	w.mu.Unlock()
	work <- f
}

func (w *workers) loop(f func()) {
	work := make(chan func(), 1)
	for ok := true; ok; f, ok = <-work {
		f()
		w.mu.Lock()
		if w.stopped {
			w.mu.Unlock()
			return
		}
		w.idle = append(w.idle, worker{work: work, since: w.round})
		w.mu.Unlock()
	}
}

// janitor ends goroutines that have been idle for idleWorker, and all of them when stop
// is closed.
func (w *workers) janitor() {
	tick := time.NewTicker(idleWorker / 2)
	defer tick.Stop()
	for stopped := false; !stopped; {
		select {
		case <-tick.C:
		case <-w.stop:
			stopped = true
		}
		w.dismiss(stopped)
	}
}

// dismiss ends who was idle for two rounds, or everybody.
func (w *workers) dismiss(all bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.round++
	w.stopped = all
	n := 0
	for n < len(w.idle) && (all || w.round-w.idle[n].since > 2) {
		close(w.idle[n].work)
		n++
	}
	w.idle = slices.Delete(w.idle, 0, n)
}
