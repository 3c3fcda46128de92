package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
)

// How long an order waits for sockets to close: of one device, and of many.
const (
	disconnectTimeout     = 5 * time.Second
	disconnectManyTimeout = 30 * time.Second
)

// disconnectAtOnce is how many devices are disconnected in one call.
const disconnectAtOnce = 50_000

// Result is what became of an order: it was carried out, or it waits for a second
// operator.
type Result struct {
	Receipt  *Receipt  `json:"receipt,omitempty"`
	Proposal *Proposal `json:"proposal,omitempty"`
}

// Execute carries out an order. When it returns a receipt of a cut-off, that is durable
// and effective, the devices' sessions are closed and what was stored of them is
// removed. An error that matches ErrNotDurable means that they are cut off until the
// hub restarts. An order by a selector for more devices than Config.FourEyesOver
// becomes a proposal instead.
func (f *Fleet) Execute(ctx context.Context, o Order, actor Actor) (Result, error) {
	if err := o.check(); err != nil {
		return Result{}, err
	}
	if o.ID == "" {
		o.ID = newOrderID(f.config.Now())
	}
	end, err := f.underWay.begin(ctx, o.ID)
	if err != nil {
		return Result{}, err
	}
	defer end()
	if r, err := f.formerly(ctx, o); r != nil || err != nil {
		return Result{Receipt: r}, err
	}
	if p, err := f.proposed(ctx, o); p != nil || err != nil {
		return Result{Proposal: p}, err
	}
	r := &run{fleet: f, order: o, actor: actor}
	return r.carryOut(ctx)
}

// Revoke cuts a device off for good. Revoking again returns a receipt with Already set
// and the first revocation's reason and time. See Execute.
func (f *Fleet) Revoke(ctx context.Context, id string, reason revocation.Reason, actor Actor) (Receipt, error) {
	return f.one(ctx, Order{Verb: VerbRevoke, Device: id, Reason: reason}, actor)
}

// Suspend cuts a device off until Resume. Suspending again returns a receipt with
// Already set. See Execute.
func (f *Fleet) Suspend(ctx context.Context, id, note string, actor Actor) (Receipt, error) {
	return f.one(ctx, Order{Verb: VerbSuspend, Device: id, Note: note}, actor)
}

// Resume lifts a suspension. The device may connect when it returns.
func (f *Fleet) Resume(ctx context.Context, id, note string, actor Actor) (registry.Device, error) {
	if _, err := f.one(ctx, Order{Verb: VerbResume, Device: id, Note: note}, actor); err != nil {
		return registry.Device{}, err
	}
	return f.Device(ctx, id)
}

func (f *Fleet) one(ctx context.Context, o Order, actor Actor) (Receipt, error) {
	result, err := f.Execute(ctx, o, actor)
	if err != nil {
		return Receipt{}, err
	}
	return *result.Receipt, nil
}

// run is one order being carried out.
type run struct {
	fleet    *Fleet
	order    Order
	actor    Actor
	proposal *Proposal           // that was approved; nil if none was needed
	approver Actor               // by whom
	ending   []registry.Document // what that does to the stored proposal; nil if none was needed

	cause   registry.Cause
	ids     []string
	receipt Receipt
	made    *Proposal     // instead of the order being carried out
	pending *pendingOrder // if it is written to records in chunks
	closing chan []Closed // yields what the disconnect found, once; nil if nothing is disconnected
}

// carryOut marks durably, publishes, then disconnects: in this order, a device that
// connects meanwhile is either refused by the index or found among the sessions.
func (r *run) carryOut(ctx context.Context) (Result, error) {
	f := r.fleet
	r.receipt = newReceipt(f, r.order, r.actor)
	r.receipt.Approver = r.approver.Name
	err := f.write(ctx, func() error { return r.mark(ctx) })
	closed, err := r.closed(ctx, err)
	if errors.Is(err, ErrUnfinished) {
		err = r.leave(closed, err)
	}
	if err != nil {
		return Result{}, err
	}
	if r.made != nil {
		f.config.Log.Warn("an order waits for a second operator", "order", r.order.ID, "verb", r.order.Verb, "target", r.order.target(), "devices", r.made.Count, "actor", r.actor.Name)
		return Result{Proposal: r.made}, nil
	}
	r.receipt.close(closed)
	f.config.Log.Info("devices "+r.order.Verb.Past(), "target", r.order.target(), "devices", r.receipt.Count, "reason", r.receipt.Reason,
		"already", r.receipt.Already, "sessions", r.receipt.SessionsClosed, "receipt", r.order.ID, "actor", r.actor.Name)
	if !r.receipt.Already {
		f.keep(ctx, &r.receipt)
	}
	return Result{Receipt: &r.receipt}, nil
}

// closed waits for the sessions' end, and has the order in all records. err is what
// became of mark.
func (r *run) closed(ctx context.Context, err error) ([]Closed, error) {
	if r.closing == nil {
		return nil, err
	}
	f := r.fleet
	purged := func(closed []Closed) []Closed {
		r.receipt.PurgedAt = f.config.Now()
		return closed
	}
	if r.pending == nil || err != nil {
		return purged(<-r.closing), err
	}
	ctx = context.WithoutCancel(ctx)
	select {
	case closed := <-r.closing:
		purged(closed)
		f.cutting.Add(-1)
		return closed, r.complete(ctx)
	case <-time.After(finishAfter):
		f.cutting.Add(-1)
		err = r.complete(ctx)
		return purged(<-r.closing), err
	}
}

// mark makes the order durable and effective and begins to disconnect. It runs in the
// writer's turn.
func (r *run) mark(ctx context.Context) error {
	record := r.record()
	if r.proposal != nil {
		// Whoever was faster has approved or withdrawn it.
		if _, err := r.fleet.readProposal(ctx, r.proposal.ID); err != nil {
			return err
		}
	}
	var err error
	if r.order.Device != "" {
		err = r.resolveOne(ctx, record)
	} else {
		err = r.resolvePicked(ctx)
	}
	if err != nil {
		if !errors.Is(err, ErrNotDurable) && ctx.Err() == nil {
			r.fleet.refused(ctx, record, err)
		}
		return err
	}
	switch {
	case r.receipt.Already, r.made != nil:
		return nil
	case len(r.ids) > orderChunk && r.order.Verb.Cuts():
		return r.commitJournal(ctx, record)
	case len(r.ids) > orderChunk:
		return r.commitChunks(ctx, record)
	}
	return r.commit(ctx, record)
}

// record begins the audit record of the order.
func (r *run) record() registry.AuditRecord {
	record := r.fleet.audit(r.actor, "device."+string(r.order.Verb), r.order.Device)
	if r.order.Device == "" {
		record.Subject = clip(r.order.target())
	}
	record.Reason, record.Note, record.Receipt = r.order.reason(), r.order.Note, r.order.ID
	if r.proposal != nil {
		record.Detail = fmt.Sprintf("approved by %s from %s", r.approver.Name, r.approver.Address)
	}
	return record
}

// resolveOne finds out whether the order can be done to its one device.
func (r *run) resolveOne(ctx context.Context, record registry.AuditRecord) error {
	f, id, state := r.fleet, r.order.Device, verbs[r.order.Verb].state
	d, err := f.record(ctx, id)
	if errors.Is(err, ErrUnknownDevice) {
		return err
	}
	r.ids = []string{id}
	if err != nil {
		return r.inMemory(err)
	}
	if err := f.unchanged(d, r.order.IfRevision); err != nil {
		return err
	}
	r.receipt.Before = d.State
	if d.State == state && r.order.Verb.Cuts() {
		// A crash may have come before its sessions were closed.
		f.unblock(id, state)
		f.publish(&d)
		r.disconnect()
		since := d.Since()
		r.receipt.repeat(d, since)
		return nil
	}
	from := d.State
	if cut, blocked := f.blocked[id]; blocked && cut.Final() && !r.order.Verb.Cuts() {
		from = cut // it was cut off for good, though its record couldn't be written
	}
	if !r.order.Verb.legal(from) {
		return &registry.TransitionError{ID: id, From: from, To: state}
	}
	if r.order.Verb != VerbReplace {
		return nil
	}
	if identity.ValidID(r.order.By) != nil || r.order.By == id {
		return fmt.Errorf("%w: %s can't be replaced by %.80q; name another device", ErrOrder, id, r.order.By)
	}
	if successor, known := f.index.state(r.order.By); !known || !successor.MayConnect() {
		return fmt.Errorf("%w: %s can't take the place of %s, it is not registered or may not connect itself", ErrOrder, r.order.By, id)
	}
	return nil
}

// resolvePicked finds out whom the selector picks, and holds that against the count and
// the rule of four eyes.
func (r *run) resolvePicked(ctx context.Context) error {
	f, o := r.fleet, r.order
	c, err := f.chooseFor(ctx, o.Select, o.Verb, nil)
	if err != nil {
		return err
	}
	r.ids = c.ids
	n := len(c.ids)
	r.receipt.AlreadyCount, r.receipt.Barred = c.already, c.barred
	switch {
	case n == 0:
		return fmt.Errorf("%w: %s picks %d that are %s already and %d that can't be", ErrNobody, o.target(), c.already, verbs[o.Verb].state, c.barred)
	case n > MaxUncounted && o.Count == 0:
		return fmt.Errorf("%w: %s picks %d devices; say that you mean them all with --count %d", ErrCount, o.target(), n, n)
	case o.Count != 0 && o.Count != n:
		return fmt.Errorf("%w: %s picks %d devices now, not %d; look again who they are", ErrCount, o.target(), n, o.Count)
	}
	if r.proposal != nil {
		if sum := digest(c.ids); sum != r.proposal.Digest {
			return fmt.Errorf("%w: %s doesn't pick the same devices any more as when %s proposed it; propose it again", ErrCount, o.target(), r.proposal.Actor)
		}
		return nil
	}
	if f.needsFourEyes(o.Verb, n) {
		r.made, err = f.propose(ctx, r, n)
		return err
	}
	return nil
}

// commit makes the whole order durable in one transaction.
func (r *run) commit(ctx context.Context, record registry.AuditRecord) error {
	f := r.fleet
	r.begin()
	s, err := f.stage(ctx, r.ids, r.order, r.cause, record)
	if err != nil {
		return r.inMemory(err)
	}
	change := registry.Change{Devices: s.devices, Audit: s.audit, Documents: r.settled()}
	if r.order.Device == "" {
		record.Detail = r.summary(record.Detail)
		change.Audit = slices.Insert(change.Audit, 0, record)
	}
	if r.order.Verb == VerbReplace {
		if err := r.succeed(ctx, &change, record); err != nil {
			return err
		}
	}
	// A caller that goes away now must not leave the order half done.
	if err := f.config.Store.Commit(context.WithoutCancel(ctx), change); err != nil {
		return r.inMemory(err)
	}
	r.receipt.DurableAt = f.config.Now()
	for i := range change.Devices {
		f.unblock(change.Devices[i].ID, change.Devices[i].State)
		f.publish(&change.Devices[i])
	}
	r.receipt.EffectiveAt = f.config.Now()
	r.disconnect()
	r.receipt.count(r.ids, s.lines)
	return nil
}

// succeed notes with the device that takes another's place whose that was.
func (r *run) succeed(ctx context.Context, change *registry.Change, record registry.AuditRecord) error {
	records, err := r.fleet.config.Store.Records(ctx, []string{r.order.By})
	if err != nil {
		return err
	}
	successor := records[0]
	successor.Replaces, successor.Updated = r.order.Device, r.cause.At
	record.Device, record.Before, record.After = successor.ID, successor.State, successor.State
	record.Detail = "takes the place of " + r.order.Device
	change.Devices = append(change.Devices, successor)
	change.Audit = append(change.Audit, record)
	return nil
}

// commitChunks carries out an order that cuts nobody off, a bounded number of devices a
// transaction. A crash leaves the rest as it was: the order can be given again.
func (r *run) commitChunks(ctx context.Context, record registry.AuditRecord) error {
	f := r.fleet
	r.begin()
	record.Detail = r.summary(record.Detail)
	documents, first := r.settled(), []registry.AuditRecord{record}
	var lines []ReceiptDevice
	for chunk := range slices.Chunk(r.ids, orderChunk) {
		s, err := f.stage(ctx, chunk, r.order, r.cause, record)
		if err == nil {
			err = f.config.Store.Commit(ctx, registry.Change{Devices: s.devices, Audit: append(first, s.audit...), Documents: documents})
		}
		if err != nil {
			return fmt.Errorf("%s %d of %d devices: %w; give the order again for the others", r.order.Verb, len(lines), len(r.ids), err)
		}
		documents, first = nil, nil
		for i := range s.devices {
			f.unblock(s.devices[i].ID, s.devices[i].State)
			f.publish(&s.devices[i])
		}
		lines = append(lines, s.lines...)
	}
	r.receipt.DurableAt = f.config.Now()
	r.receipt.EffectiveAt = r.receipt.DurableAt
	r.receipt.count(r.ids, lines)
	return nil
}

func (r *run) begin() {
	r.cause = registry.Cause{Actor: r.actor.Name, Reason: r.order.reason(), Note: r.order.Note, Receipt: r.order.ID, At: r.fleet.config.Now()}
}

// settled is what changes in the store with the order: the proposal that it was is decided.
// The slice is its caller's.
func (r *run) settled() []registry.Document { return slices.Clone(r.ending) }

func (r *run) summary(detail string) string {
	text := fmt.Sprintf("%d devices", len(r.ids))
	if detail != "" {
		text += ", " + detail
	}
	return text
}

// inMemory cuts off devices whose records can't be read or written: better too long
// than not at all.
func (r *run) inMemory(cause error) error {
	f, state := r.fleet, verbs[r.order.Verb].state
	if !r.order.Verb.Cuts() {
		return fmt.Errorf("%s %s: %w", r.order.Verb, r.order.target(), cause)
	}
	known := 0
	for _, id := range r.ids {
		current, ok := f.index.state(id)
		if !ok {
			continue
		}
		known++
		if !current.Final() {
			f.block(id, state)
		}
	}
	if known == 0 {
		return cause
	}
	r.disconnect()
	f.config.Log.Error("a cut-off is not durable", "target", r.order.target(), "devices", known, "verb", r.order.Verb, "error", cause)
	return fmt.Errorf("%w: %s is cut off now but will not be after a restart of the hub: %w; make the store writable and repeat this before restarting", ErrNotDurable, r.order.target(), cause)
}

// disconnect begins to close the sessions of whom the order is for. carryOut waits for
// its end.
func (r *run) disconnect() {
	if !r.order.Verb.Cuts() {
		return
	}
	r.closing = make(chan []Closed, 1)
	go func() { r.closing <- r.fleet.disconnect(r.ids, verbs[r.order.Verb].cut) }()
}

func (f *Fleet) disconnect(ids []string, reason string) (closed []Closed) {
	timeout := disconnectTimeout
	if len(ids) > 1 {
		timeout = disconnectManyTimeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for chunk := range slices.Chunk(ids, disconnectAtOnce) {
		closed = append(closed, f.config.Sessions.DisconnectMany(ctx, chunk, reason)...)
	}
	return closed
}
