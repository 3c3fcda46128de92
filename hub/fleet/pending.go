package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
)

// orderChunk is how many devices one transaction changes at most, some 15 MB of pages.
const orderChunk = 1000

// Where the order is durable already, records are written at leisure: a few a
// transaction, and with as long a pause after it. Only the receipt waits for them, and
// whoever publishes meanwhile waits for the same disk and processors. For the same
// reason they wait until the sessions are closed.
const (
	finishTurns = 20                    // the fewest for any number, unless each has too few
	finishChunk = 64                    // devices a transaction, at least
	finishPause = 20 * time.Millisecond // at most
	finishAfter = 5 * time.Second       // though sessions are still open
)

// A cut-off of more devices than that is made durable before it is in their records:
//
//  1. One transaction writes the order with the IDs of all whom it is for, and its audit
//     record. From here on it holds, through any crash: Open finishes it.
//  2. The index says so: nobody of them is admitted. Their sessions are disconnected.
//  3. Their records are written, a chunk a transaction, by whoever is next to write
//     anything. The last one removes the order.
//
// So ten thousand devices are out as soon as one is, and no transaction grows with the
// fleet.

// ErrUnfinished is in the chain of the error of an order that holds, durably, and whose
// records could not be written yet. That goes on by itself.
var ErrUnfinished = errors.New("the order is not in all records yet")

// pendingOrder is an order that is durable and not yet in every record.
type pendingOrder struct {
	Order   Order          `json:"order"`
	Actor   Actor          `json:"actor"`
	Cause   registry.Cause `json:"cause"`
	IDs     []string       `json:"ids"`
	Receipt Receipt        `json:"receipt"` // as far as it was known when the order became durable

	lines   []ReceiptDevice // of those written
	written int             // of IDs
	done    bool            // it is in every record
	orphan  bool            // whoever gave the order doesn't wait any more: its receipt is written with its end
}

// commitJournal makes an order for many durable and effective. complete writes their
// records.
func (r *run) commitJournal(ctx context.Context, record registry.AuditRecord) error {
	f, state := r.fleet, verbs[r.order.Verb].state
	r.begin()
	record.Detail = r.summary(record.Detail)
	r.receipt.DurableAt = r.cause.At // what a finish after a crash goes by
	p := &pendingOrder{Order: r.order, Actor: r.actor, Cause: r.cause, IDs: r.ids, Receipt: r.receipt}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	// A caller that goes away now must not leave the order half done.
	ctx = context.WithoutCancel(ctx)
	err = f.config.Store.Commit(ctx, registry.Change{
		Documents: append(r.settled(), registry.Document{Kind: registry.KindOrder, ID: r.order.ID, Data: data}),
		Audit:     []registry.AuditRecord{record},
	})
	if err != nil {
		return r.inMemory(err)
	}
	r.receipt.DurableAt = f.config.Now()
	for _, id := range r.ids {
		f.block(id, state)
	}
	r.receipt.EffectiveAt = f.config.Now()
	f.cutting.Add(1) // closed takes it back
	r.disconnect()
	f.pending, r.pending = append(f.pending, p), p
	return nil
}

// complete has the order in every record, unless somebody else has done so by now.
func (r *run) complete(ctx context.Context) error {
	f := r.fleet
	return f.write(ctx, func() error {
		if err := f.finish(ctx); err != nil { // once more, and now it is our error
			return fmt.Errorf("%w: %s: it holds, through a restart, too: %w; make the store writable, the rest goes by itself", ErrUnfinished, r.order.target(), err)
		}
		r.receipt.count(r.ids, r.pending.lines)
		return nil
	})
}

// leave is the end of an order whose records can't all be written yet, once its sessions
// are closed: who writes the last of them writes its receipt, too. If that is done by
// now, there is nothing to leave, and no error.
func (r *run) leave(closed []Closed, err error) error {
	f, p := r.fleet, r.pending
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	if p.done {
		r.receipt.count(p.IDs, p.lines)
		return nil
	}
	r.receipt.close(closed)
	p.orphan, p.Receipt = true, r.receipt
	return err
}

// restore takes up the orders that a kill interrupted, and finishes them. Nobody is
// connected. If their records can't be written, they hold all the same.
func (f *Fleet) restore() error {
	ctx := context.Background()
	for after := ""; ; {
		page, err := f.config.Store.Documents(ctx, registry.KindOrder, after, 1)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		after = page[0].ID
		p := &pendingOrder{orphan: true}
		if err := json.Unmarshal(page[0].Data, p); err != nil || len(p.IDs) == 0 || verbs[p.Order.Verb].cut == "" {
			return fmt.Errorf("the unfinished order %s in the store can't be read: %w", after, errors.Join(err, ErrOrder))
		}
		p.Receipt.Interrupted = true
		p.Receipt.EffectiveAt = f.config.Now()
		for _, id := range p.IDs {
			if state, known := f.index.state(id); known && !state.Final() {
				f.block(id, verbs[p.Order.Verb].state)
			}
		}
		f.pending = append(f.pending, p)
	}
	if err := f.finish(ctx); err != nil {
		f.config.Log.Error("an interrupted order holds, but can't be written into all records yet", "error", err)
	}
	return nil
}

// retry tries again what finish left. The recorder of sightings calls it.
func (f *Fleet) retry() {
	if f.unfinished.Load() {
		f.write(context.Background(), func() error { return nil })
	}
}

// finish writes what is pending into the records. Only the holder of the turn, or Open,
// calls it.
func (f *Fleet) finish(ctx context.Context) error {
	for len(f.pending) > 0 {
		p := f.pending[0]
		if err := f.finishOrder(ctx, p); err != nil {
			f.unfinished.Store(true)
			return err
		}
		p.done = true
		if p.orphan {
			p.Receipt.count(p.IDs, p.lines)
			f.keep(ctx, &p.Receipt)
			f.config.Log.Warn("an interrupted order was finished", "verb", p.Order.Verb, "target", p.Order.target(), "devices", len(p.IDs), "receipt", p.Order.ID)
		}
		f.pending = slices.Delete(f.pending, 0, 1)
	}
	f.unfinished.Store(false)
	return nil
}

func (f *Fleet) finishOrder(ctx context.Context, p *pendingOrder) error {
	record := f.audit(p.Actor, "device."+string(p.Order.Verb), "")
	record.Time, record.Reason, record.Note, record.Receipt = p.Cause.At, p.Cause.Reason, p.Cause.Note, p.Order.ID
	size := min(orderChunk, max(finishChunk, len(p.IDs)/finishTurns))
	for p.written < len(p.IDs) {
		began := time.Now()
		chunk := p.IDs[p.written:min(p.written+size, len(p.IDs))]
		s, err := f.stage(ctx, chunk, p.Order, p.Cause, record)
		if err != nil {
			return err
		}
		if err := f.config.Store.Commit(ctx, registry.Change{Devices: s.devices, Audit: s.audit}); err != nil {
			return err
		}
		for i := range s.devices {
			f.unblock(s.devices[i].ID, s.devices[i].State)
			f.publish(&s.devices[i])
		}
		p.lines, p.written = append(p.lines, s.lines...), p.written+len(chunk)
		time.Sleep(min(time.Since(began), finishPause))
	}
	return f.config.Store.Commit(ctx, registry.Change{Documents: []registry.Document{{Kind: registry.KindOrder, ID: p.Order.ID}}})
}

// staged is what an order does to some records.
type staged struct {
	devices []registry.Device
	audit   []registry.AuditRecord
	lines   []ReceiptDevice
}

// stage does the order to the records of those IDs, and stores nothing. A device to
// which it was done before the hub was killed is counted, and one to which it can't be
// done any more is passed over.
func (f *Fleet) stage(ctx context.Context, ids []string, o Order, cause registry.Cause, record registry.AuditRecord) (staged, error) {
	records, err := f.config.Store.Records(ctx, ids)
	if err != nil {
		return staged{}, err
	}
	s := staged{devices: make([]registry.Device, 0, len(records)), audit: make([]registry.AuditRecord, 0, len(records)), lines: make([]ReceiptDevice, 0, len(records))}
	for _, d := range records {
		line := ReceiptDevice{ID: d.ID, Before: d.State}
		record.Device, record.Subject, record.Before = d.ID, "", d.State
		if err := verbs[o.Verb].apply(&d, o, cause); err != nil {
			if !errors.Is(err, registry.ErrTransition) {
				return staged{}, err
			}
			s.devices = append(s.devices, d) // for its block to be lifted
			if since := d.Since(); since.Receipt == o.ID && d.State == verbs[o.Verb].state {
				line.Before, line.Serials = since.From, serialsOf(&d, cause.At)
				s.lines = append(s.lines, line)
			}
			continue
		}
		line.Serials = serialsOf(&d, cause.At)
		record.After = d.State
		if o.Verb == VerbReplace {
			record.Detail = "replaced by " + o.By
		}
		s.devices, s.audit, s.lines = append(s.devices, d), append(s.audit, record), append(s.lines, line)
	}
	return s, nil
}

// serialsOf returns the serial numbers of the certificates that were revoked at that
// moment.
func serialsOf(d *registry.Device, at time.Time) (serials []string) {
	for _, c := range d.Certificates {
		if c.Revoked.Equal(at) {
			serials = append(serials, c.Serial)
		}
	}
	return serials
}
