package listener

import (
	"sync"
	"time"
)

// idleWorker is how long a goroutine without work waits for more.
const idleWorker = time.Second

// workers runs functions on goroutines that are used again: one that has just shaken
// hands has a grown stack, and growing it anew costs a tenth of a resumed handshake. It
// bounds nothing; there are as many goroutines as functions running.
type workers struct {
	work chan func()
	stop <-chan struct{} // closed when no function will be run any more
	all  sync.WaitGroup  // the goroutines
}

func newWorkers(stop <-chan struct{}) *workers {
	return &workers{work: make(chan func()), stop: stop}
}

// run calls f on another goroutine, at once.
func (w *workers) run(f func()) {
	select {
	case w.work <- f:
	default:
		w.all.Go(func() { w.loop(f) })
	}
}

func (w *workers) loop(f func()) {
	idle := time.NewTimer(idleWorker)
	defer idle.Stop()
	for {
		f()
		idle.Reset(idleWorker)
		select {
		case f = <-w.work:
		case <-idle.C:
			return
		case <-w.stop:
			return
		}
	}
}
