package fleet

import (
	"context"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
)

// Sightings are flushed when this many devices wait, or after the flush interval.
// While the store can't be written, at most maxPending wait; more are dropped.
const (
	flushSize  = 1024
	maxPending = 16 * flushSize
)

// recorderName is who the audit log names for a change that nobody asked for.
const recorderName = "hub"

// Seen notes that a device was connected at that time; its first sighting makes a
// registered device active. It never blocks: when the queue is full the sighting is
// dropped, since the next one says the same. Devices without a record are ignored.
func (f *Fleet) Seen(id string, at time.Time) {
	select {
	case <-f.stop:
		return
	default:
	}
	select {
	case f.sightings <- registry.Sighting{ID: id, At: at}:
	default:
		f.dropped.Add(1)
	}
}

// DroppedSightings returns how many sightings a full queue has cost so far.
func (f *Fleet) DroppedSightings() uint64 { return f.dropped.Load() }

// recordSightings gathers sightings, the latest of each device, and writes them in
// batches. Close stops it; it then writes what it has.
func (f *Fleet) recordSightings() {
	pending := make(map[string]time.Time)
	add := func(s registry.Sighting) {
		if len(pending) >= maxPending {
			if _, ok := pending[s.ID]; !ok {
				f.dropped.Add(1)
				return
			}
		}
		if s.At.After(pending[s.ID]) {
			pending[s.ID] = s.At
		}
	}
	flush := func() {
		if len(pending) == 0 {
			return
		}
		if err := f.flush(pending); err != nil {
			f.config.Log.Error("sightings wait for the store", "devices", len(pending), "error", err)
			return
		}
		clear(pending)
	}
	tick := time.NewTicker(f.config.FlushInterval)
	defer tick.Stop()
	for {
		select {
		case s := <-f.sightings:
			add(s)
			if len(pending) == flushSize {
				flush()
			}
		case <-tick.C:
			flush()
			f.retry()
		case <-f.stop:
			for {
				select {
				case s := <-f.sightings:
					add(s)
					continue
				default:
				}
				flush()
				return
			}
		}
	}
}

// flush writes sightings and the activations that follow from them in one
// transaction.
func (f *Fleet) flush(pending map[string]time.Time) error {
	ctx := context.Background()
	return f.write(ctx, func() error {
		var change registry.Change
		for id, at := range pending {
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
