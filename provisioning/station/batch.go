package station

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// groupSize is how many devices of a batch go through each step together: enough that
// the fsyncs of a step cost little per device, few enough that progress shows.
const groupSize = 1000

// groupsAtATime is how many groups are under way at a time: while one waits for the disk,
// or has its turn in the ledger, the other's keys and signatures are made. The batch
// advances in their order.
const groupsAtATime = 2

// MaxBatch bounds a batch, so that a slip of the finger doesn't fill the disk.
const MaxBatch = 1_000_000

// BatchOrder is a run of devices with the IDs PREFIX00001, PREFIX00002, ...
type BatchOrder struct {
	Prefix string
	Count  int
	Out    string // above the devices' folders, which are named by ID
	Model  string
	OU     []string
	Again  bool // begin a new batch even if one of this prefix, count and folder is complete
}

// BatchResult says what a batch has come to.
type BatchResult struct {
	First    string         `json:"first"` // IDs, inclusive
	Last     string         `json:"last"`
	Count    int            `json:"count"`
	Out      string         `json:"out"`
	Issued   int            `json:"issued"`             // certificates made by this run
	Complete bool           `json:"complete"`           // every device is delivered or lost
	Resumed  bool           `json:"resumed"`            // an earlier run began the batch
	Before   int            `json:"before"`             // devices that earlier runs had completed
	Lost     []string       `json:"lost,omitempty"`     // IDs issued by a killed run whose keys are gone
	Others   []ledger.Order `json:"unfinished_batches"` // other batches, never nil
}

// Batch issues a run of devices. The IDs are fixed before the first is made, counting
// on from the highest of the prefix. The same prefix, count and folder are the same
// batch: repeated when it is unfinished, the command finishes it; when it is complete,
// it does nothing, unless Again is set. done is called with the number of devices that
// are complete so far, and may be nil. Cancelling ctx stops between two groups.
func (s *Station) Batch(ctx context.Context, o BatchOrder, done func(int)) (BatchResult, error) {
	if err := o.validate(); err != nil {
		return BatchResult{}, err
	}
	a, err := s.valid()
	if err != nil {
		return BatchResult{}, err
	}
	if o.Out, err = absolute(o.Out); err != nil {
		return BatchResult{}, err
	}
	b, resumed, err := s.openBatch(a, o)
	if err != nil {
		return BatchResult{}, err
	}
	result := BatchResult{First: b.First, Last: b.Last, Count: b.Count, Out: b.Out, Resumed: resumed, Before: b.Delivered, Others: []ledger.Order{}}
	begun := b.Delivered
	var underway []*groupUnderway
	defer func() {
		for _, g := range underway { // after an error; what they made, the repetition finds
			<-g.done
		}
	}()
	for !b.Closed() {
		if done != nil {
			done(b.Delivered)
		}
		for len(underway) < groupsAtATime && begun < b.Count && ctx.Err() == nil {
			g, err := s.beginGroup(a, b, begun)
			if err != nil {
				return result, err
			}
			underway, begun = append(underway, g), begun+len(g.devices)
		}
		if len(underway) == 0 {
			return result, fmt.Errorf("stopped with %d of %d devices complete: repeat the command to finish the batch", b.Delivered, b.Count)
		}
		g := underway[0]
		<-g.done
		underway = underway[1:]
		if g.err != nil {
			return result, fmt.Errorf("batch %s: %w", b, g.err)
		}
		lost := len(result.Lost)
		if err := result.add(g.devices); err != nil {
			return result, err
		}
		if b, err = s.ledger.AdvanceRun(s.now(), b.Number, b.Delivered+len(g.devices), result.Lost[lost:]...); err != nil {
			return result, err
		}
	}
	if done != nil {
		done(b.Delivered)
	}
	result.Complete = true
	others, err := s.UnfinishedBatches()
	result.Others = append(result.Others, others...)
	return result, err
}

// UnfinishedBatches returns the batches that a repeated command would finish.
func (s *Station) UnfinishedBatches() ([]ledger.Order, error) {
	open, err := s.ledger.OpenOrders()
	return slices.DeleteFunc(open, func(o ledger.Order) bool { return o.Kind != ledger.Run }), err
}

func (o BatchOrder) validate() error {
	if err := ledger.ValidPrefix(o.Prefix); err != nil {
		return errorf(ErrInvalid, "%w", err)
	}
	if o.Count < 1 || o.Count > MaxBatch {
		return errorf(ErrInvalid, "a batch can't have %d devices: give a count from 1 to %d", o.Count, MaxBatch)
	}
	if err := identity.ValidID(o.pattern().ID(ledger.MaxCounter)); err != nil {
		return errorf(ErrInvalid, "prefix %q can't be used: %w", o.Prefix, err)
	}
	return validAttributes(ledger.Attributes{Model: o.Model, OU: o.OU})
}

// counterWidth is how many digits the IDs of a batch have at least.
const counterWidth = 5

func (o BatchOrder) pattern() ledger.Pattern {
	return ledger.Pattern{Prefix: o.Prefix, Width: counterWidth}
}

// openBatch returns the batch the order means, opening it if it is a new one.
func (s *Station) openBatch(a *authority, o BatchOrder) (b ledger.Order, resumed bool, err error) {
	b, err = s.ledger.FindRun(o.Prefix, o.Count, o.Out)
	if err == nil && (!b.Closed() || !o.Again) {
		_, has, err := s.ledger.SlotID(b.Number, 0)
		if err == nil && (o.Model != has.Model || !slices.Equal(o.OU, has.OU)) {
			err = fmt.Errorf("the batch %s has model %q and OU %q: repeat it with these, or give another --out for other devices", b, has.Model, has.OU)
		}
		return b, true, err
	}
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return b, false, err
	}
	made, err := s.ledger.Count()
	if err != nil {
		return b, false, err
	}
	if made+o.Count > a.maxDevices { // before half of it is made
		return b, false, overBudget(a.maxDevices, made)
	}
	b, err = s.ledger.OpenOrder(s.now(), ledger.Order{Kind: ledger.Run, Prefix: o.Prefix, Out: o.Out}, ledger.Line{
		Pattern: o.pattern(), Count: o.Count, Attributes: ledger.Attributes{Model: o.Model, OU: o.OU},
	})
	return b, false, err
}

// groupUnderway is a group on its way through the steps.
type groupUnderway struct {
	devices []*enrolment
	done    chan struct{} // closed when they have come through, or not
	err     error         // why not; to be read after done only
}

// beginGroup sets the batch's devices from that number on to work. Whoever calls it waits
// for done.
func (s *Station) beginGroup(a *authority, b ledger.Order, from int) (*groupUnderway, error) {
	devices, err := s.batchGroup(b, from)
	if err != nil {
		return nil, err
	}
	g := &groupUnderway{devices: devices, done: make(chan struct{})}
	go func() {
		defer close(g.done)
		g.err = s.enrol(a, devices)
	}()
	return g, nil
}

// batchGroup returns the batch's devices from that number on, as many as a group has.
func (s *Station) batchGroup(b ledger.Order, from int) ([]*enrolment, error) {
	group := make([]*enrolment, 0, groupSize)
	for i := from; i < min(from+groupSize, b.Count); i++ {
		id, attributes, err := s.ledger.SlotID(b.Number, i)
		if err != nil {
			return nil, err
		}
		group = append(group, &enrolment{ID: id, Out: filepath.Join(b.Out, id), asked: attributes, order: b.Number})
	}
	return group, nil
}

// add counts a group's outcome. A lost device doesn't hold the batch up, since no
// repetition will bring its key back; any other refusal does.
func (r *BatchResult) add(group []*enrolment) error {
	var refused []*enrolment
	for _, e := range group {
		switch {
		case errors.Is(e.refusal, errLost):
			r.Lost = append(r.Lost, e.ID)
		case e.refusal != nil:
			refused = append(refused, e)
		case !e.repeated:
			r.Issued++
		}
	}
	if len(refused) == 1 {
		return fmt.Errorf("%s of the batch can't be made: %w; then repeat the command", refused[0].ID, refused[0].refusal)
	}
	if len(refused) > 0 {
		return fmt.Errorf("%d devices of the batch can't be made, %s first: %w; then repeat the command", len(refused), refused[0].ID, refused[0].refusal)
	}
	return nil
}
