package fleet

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
)

// Sightings are flushed when this many devices wait, or after the flush interval.
// While the store can't be written, at most maxPending wait; more are dropped.
const (
	flushSize  = 1024
	maxPending = 16 * flushSize
)

// flushChunk is how many of them one transaction takes, a few milliseconds of a
// processor. After many came at once, whoever else wants that has his turn in between.
const flushChunk = 512

// recorderName is who the audit log names for a change that nobody asked for.
const recorderName = "hub"

// sightings gathers them, the latest of each device. A connect adds to it and wakes
// nobody: that would cost more than all else here.
type sightings struct {
	full    chan struct{} // one slot: flushSize devices wait
	dropped atomic.Uint64

	mu      sync.Mutex // guards pending
	pending map[string]time.Time
}

func newSightings() *sightings {
	return &sightings{full: make(chan struct{}, 1), pending: make(map[string]time.Time)}
}

// add notes a sighting, unless too many wait.
func (s *sightings) add(id string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.note(id, at); len(s.pending) == flushSize {
		select {
		case s.full <- struct{}{}:
		default:
		}
	}
}

// note is add without a word to the recorder. The caller holds mu.
func (s *sightings) note(id string, at time.Time) {
	before, known := s.pending[id]
	if !known && len(s.pending) >= maxPending {
		s.dropped.Add(1)
		return
	}
	if at.After(before) {
		s.pending[id] = at
	}
}

// putBack takes sightings that could not be written. They wait for the next tick.
func (s *sightings) putBack(taken map[string]time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, at := range taken {
		s.note(id, at)
	}
}

// take empties it.
func (s *sightings) take() map[string]time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) == 0 {
		return nil
	}
	taken := s.pending
	s.pending = make(map[string]time.Time)
	return taken
}

// Seen notes that a device was connected at that time; its first sighting makes a
// registered device active. It waits for no disk: when too many sightings wait it is
// dropped, since the next one says the same. Devices without a record are ignored.
func (f *Fleet) Seen(id string, at time.Time) {
	if !f.stopped() {
		f.sightings.add(id, at)
	}
}

// DroppedSightings returns how many sightings a store that can't be written has cost so
// far.
func (f *Fleet) DroppedSightings() uint64 { return f.sightings.dropped.Load() }

// recordSightings writes sightings in batches. Close stops it; it then writes what
// there is.
func (f *Fleet) recordSightings() {
	flush := func() {
		taken := f.sightings.take()
		if len(taken) == 0 {
			return
		}
		for chunk := range slices.Chunk(slices.Sorted(maps.Keys(taken)), flushChunk) { // neighbours share pages
			began := time.Now()
			if err := f.flush(chunk, taken); err != nil {
				if !errors.Is(err, errCutting) {
					f.config.Log.Error("sightings wait for the store", "devices", len(taken), "error", err)
				}
				f.sightings.putBack(taken)
				return
			}
			for _, id := range chunk {
				delete(taken, id)
			}
			if len(taken) > 0 {
				f.sleep(min(2*time.Since(began), finishPause))
			}
		}
	}
	tick := time.NewTicker(f.config.FlushInterval)
	defer tick.Stop()
	for {
		select {
		case <-f.sightings.full:
			flush()
		case <-tick.C:
			flush()
			f.retry()
		case <-f.stop:
			flush()
			return
		}
	}
}

// stopped reports whether the fleet is being closed.
func (f *Fleet) stopped() bool {
	select {
	case <-f.stop:
		return true
	default:
		return false
	}
}

// sleep waits, or until the fleet is closed.
func (f *Fleet) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-f.stop:
	}
}

// errCutting is that the sessions of many are being closed: no time for sightings.
var errCutting = errors.New("an order is being carried out")

// flush writes sightings of those devices and the activations that follow from them in
// one transaction.
func (f *Fleet) flush(ids []string, seen map[string]time.Time) error {
	ctx := context.Background()
	return f.inTurn(ctx, func() error {
		if f.cutting.Load() > 0 && !f.stopped() {
			return errCutting
		}
		f.settle(ctx)
		var change registry.Change
		for _, id := range ids {
			at := seen[id]
			state, known := f.index.state(id)
			if !known {
				continue
			}
			change.Sightings = append(change.Sightings, registry.Sighting{ID: id, At: at})
			if state != registry.StateRegistered {
				continue
			}
			records, err := f.config.Store.Records(ctx, []string{id})
			if err != nil {
				f.config.Log.Error("a seen device stays registered", "device", id, "error", err)
				continue
			}
			d := records[0]
			record := f.audit(Actor{Name: recorderName}, "device.activate", id)
			record.Before = d.State
			if d.Activate(registry.Cause{Actor: recorderName, At: at}) != nil {
				continue // no longer registered
			}
			record.After = d.State
			change.Devices = append(change.Devices, d)
			change.Audit = append(change.Audit, record)
		}
		if len(change.Sightings) == 0 {
			return nil
		}
		if err := f.config.Store.Commit(ctx, change); err != nil {
			return err
		}
		for i := range change.Devices {
			f.publish(&change.Devices[i])
		}
		return nil
	})
}
