package consumer

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/fleethub/fleethub/hub/journal"
)

// How long a sink waits after a failure: the double each time, and a random part of it less, up to half.
const (
	minBackoff = 2 * time.Second
	maxBackoff = 5 * time.Minute
)

// idleStore is how often a place is stored that passed nothing to deliver.
const idleStore = 30 * time.Second

// sink posts what its consumer has to take. One goroutine runs it.
//
//  1. Messages are gathered from the stored place on.
//  2. The last position of the batch is stored, in one go with the place after the batch before: from here on a crash
//     repeats this batch as it is.
//  3. It is posted until the receiver answers 2xx.
//  4. The place after it is stored, with the next batch or, if none is at hand, at once.
type sink struct {
	consumers *Consumers
	target    *target
	client    *http.Client
	counts    *sinkCounts
	backoff   backoff

	held  *entry   // the consumer as it is stored
	place Consumer // the consumer as it will be stored next
	dirty bool     // something was delivered since
	stop  context.CancelFunc
	ended chan struct{} // closed when run has returned
}

// sinkCounts is what there is to tell of a sink. It outlives changes of its settings.
type sinkCounts struct {
	mu        sync.Mutex // guards what follows
	delivered uint64     // messages
	failed    uint64     // attempts
	lost      uint64     // records
	attempts  int        // in vain, of the present batch
	oldest    time.Time  // when the present batch's first message was accepted; zero: there is none
	lastAt    time.Time  // when something was delivered
	err       string     // of the last attempt; "": it succeeded
	errAt     time.Time
}

func (c *sinkCounts) update(f func(*sinkCounts)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c)
}

// run delivers until ctx ends or the journal closes.
func (s *sink) run(ctx context.Context) {
	defer close(s.ended)
	defer s.client.CloseIdleConnections()
	for attempt := 0; ctx.Err() == nil; attempt++ {
		err := s.session(ctx)
		switch {
		case errors.Is(err, journal.ErrClosed), ctx.Err() != nil:
			return
		case errors.Is(err, ErrMoved):
			s.counts.update(func(c *sinkCounts) { c.err, c.errAt = "", time.Time{} }) // it was about another place
			attempt = -1
			continue
		case errors.Is(err, errRewind):
			attempt = -1
			continue
		}
		s.failed("the sink can't read on", err, attempt)
		s.backoff.wait(ctx, attempt, 0)
	}
}

// session delivers from the stored place on, until somebody else moves it.
func (s *sink) session(ctx context.Context) error {
	held, err := s.consumers.entry(s.target.Name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() { // ends with ctx
		defer close(watched)
		select {
		case <-held.moved:
			cancel(ErrMoved)
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(nil); <-watched }()
	s.held, s.place, s.dirty = held, held.Consumer, false
	f := s.consumers.Feed(s.target.Filter, s.place.Next)
	defer f.Close()
	err = s.pump(ctx, f)
	if s.dirty && !errors.Is(err, ErrMoved) {
		s.consumers.advance(context.WithoutCancel(ctx), s.held, s.place) // else it is repeated, as it was
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if errors.Is(err, errRewind) && s.place.Until != 0 {
		s.place.Until = 0
		return errors.Join(s.store(ctx), err)
	}
	return err
}

// pump gathers and posts.
func (s *sink) pump(ctx context.Context, f *Feed) error {
	var b batch
	for {
		b.reset()
		b.gap = s.place.Gap
		first, stop := context.WithTimeout(ctx, idleStore)
		err := b.gather(ctx, first, gathering{feed: f, most: s.target.Batch, wait: s.target.MaxWait, until: s.place.Until, idle: func() error { return s.flush(ctx) }, gap: s.lost})
		idle := errors.Is(err, context.DeadlineExceeded) && b.count == 0
		stop()
		if err != nil && !idle {
			return err
		}
		if b.count == 0 {
			if s.place.Next != f.Place() || s.place.Until != 0 {
				s.place.Next, s.place.Until, s.place.Gap = f.Place(), 0, b.gap
				if err := s.store(ctx); err != nil {
					return err
				}
			}
			continue
		}
		if s.dirty || s.place.Until != b.last {
			s.place.Until = b.last
			if err := s.store(ctx); err != nil {
				return err
			}
		}
		if err := s.deliver(ctx, &b); err != nil {
			return err
		}
		s.place.Next, s.place.Until, s.place.Gap = b.last+1, 0, nil
		s.dirty = true
	}
}

// flush stores what was delivered, before a wait.
func (s *sink) flush(ctx context.Context) error {
	if !s.dirty {
		return nil
	}
	return s.store(ctx)
}

// store stores the place, as often as it takes; a sink that goes on without would repeat more and more after a crash. It
// gives up when ctx ends or somebody else has moved the consumer.
func (s *sink) store(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		held, err := s.consumers.advance(context.WithoutCancel(ctx), s.held, s.place)
		if err == nil {
			s.held, s.dirty = held, false
			return nil
		}
		if errors.Is(err, ErrMoved) {
			return err
		}
		s.failed("a sink's place can't be stored", err, attempt)
		if err := s.backoff.wait(ctx, attempt, 0); err != nil {
			return err
		}
	}
}

// deliver posts a batch until the receiver has it, or ctx ends.
func (s *sink) deliver(ctx context.Context, b *batch) error {
	s.counts.update(func(c *sinkCounts) { c.oldest = b.oldest })
	defer s.counts.update(func(c *sinkCounts) { c.oldest, c.attempts = time.Time{}, 0 })
	for attempt := 0; ; attempt++ {
		err := s.post(ctx, b)
		if err == nil {
			now := s.consumers.config.Now()
			s.counts.update(func(c *sinkCounts) {
				c.delivered += uint64(b.count)
				c.lastAt, c.err, c.errAt = now, "", time.Time{}
			})
			if attempt > 0 {
				s.consumers.config.Log.Info("a sink delivers again", "sink", s.target.Name, "delivery", b.id(), "attempts", attempt+1)
			}
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		var after time.Duration
		what := "a sink's delivery was not taken, it is tried again"
		if r, ok := errors.AsType[*refusal](err); ok {
			after = r.after
			if r.configuration() {
				what = "configuration error: a sink's receiver refuses its delivery, which is tried again and again"
			}
		}
		s.failed(what, err, attempt)
		if err := s.backoff.wait(ctx, attempt, after); err != nil {
			return err
		}
	}
}

func (s *sink) failed(what string, err error, attempt int) {
	now := s.consumers.config.Now()
	s.counts.update(func(c *sinkCounts) {
		c.failed++
		c.attempts, c.err, c.errAt = attempt+1, err.Error(), now
	})
	log := s.consumers.config.Log.Warn
	if r, ok := errors.AsType[*refusal](err); ok && r.configuration() {
		log = s.consumers.config.Log.Error
	}
	log(what, "sink", s.target.Name, "url", s.target.shown(), "attempt", attempt+1, "error", err)
}

func (s *sink) lost(gap *Gap) {
	s.counts.update(func(c *sinkCounts) { c.lost += uint64(gap.First - gap.From) })
	s.consumers.config.Log.Error("a sink has lost messages: they were removed before its receiver took them", "sink", s.target.Name, "from", gap.From, "before", gap.First)
}

// backoff says how long to wait after failures.
type backoff struct{ min, max time.Duration }

// wait waits after so many failures before this one, at least as long as after; or returns why ctx ended.
func (b backoff) wait(ctx context.Context, failures int, after time.Duration) error {
	timer := time.NewTimer(max(b.after(failures), after))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b backoff) after(failures int) time.Duration {
	d := b.max
	if failures < 30 && b.min<<failures < b.max {
		d = b.min << failures
	}
	return d - rand.N(d/2+1)
}
