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
const groupSize = 500

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
	Others   []ledger.Batch `json:"unfinished_batches"` // of other orders, never nil
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
	b, resumed, err := s.openBatch(o)
	if err != nil {
		return BatchResult{}, err
	}
	result := BatchResult{First: b.ID(0), Last: b.ID(b.Count - 1), Count: b.Count, Out: b.Out, Resumed: resumed, Before: b.Delivered, Others: []ledger.Batch{}}
	for !b.Closed() {
		if done != nil {
			done(b.Delivered)
		}
		if err := ctx.Err(); err != nil {
			return result, fmt.Errorf("stopped with %d of %d devices complete: repeat the command to finish the batch", b.Delivered, b.Count)
		}
		group := batchGroup(b)
		if err := s.enrol(a, group); err != nil {
			return result, fmt.Errorf("batch %s: %w", b, err)
		}
		if err := result.add(group); err != nil {
			return result, err
		}
		if b, err = s.ledger.AdvanceBatch(s.now(), b.Number, b.Delivered+len(group)); err != nil {
			return result, err
		}
	}
	if done != nil {
		done(b.Delivered)
	}
	result.Complete = true
	others, err := s.ledger.UnfinishedBatches()
	result.Others = append(result.Others, others...)
	return result, err
}

func (o BatchOrder) validate() error {
	if err := ledger.ValidPrefix(o.Prefix); err != nil {
		return errorf(ErrInvalid, "%w", err)
	}
	if o.Count < 1 || o.Count > MaxBatch {
		return errorf(ErrInvalid, "a batch can't have %d devices: give a count from 1 to %d", o.Count, MaxBatch)
	}
	longest := ledger.Batch{Prefix: o.Prefix, First: ledger.MaxCounter}
	if err := identity.ValidID(longest.ID(0)); err != nil {
		return errorf(ErrInvalid, "prefix %q can't be used: %w", o.Prefix, err)
	}
	return validAttributes(o.Model, o.OU)
}

// openBatch returns the batch the order means, opening it if it is a new one.
func (s *Station) openBatch(o BatchOrder) (b ledger.Batch, resumed bool, err error) {
	b, err = s.ledger.FindBatch(o.Prefix, o.Count, o.Out)
	if err == nil && (!b.Closed() || !o.Again) {
		if o.Model != b.Model || !slices.Equal(o.OU, b.OU) {
			return b, true, fmt.Errorf("the batch %s has model %q and OU %q: repeat it with these, or give another --out for other devices", b, b.Model, b.OU)
		}
		return b, true, nil
	}
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return b, false, err
	}
	b, err = s.ledger.OpenBatch(s.now(), ledger.Batch{Prefix: o.Prefix, Count: o.Count, Out: o.Out, Model: o.Model, OU: o.OU})
	return b, false, err
}

// batchGroup returns the batch's next devices.
func batchGroup(b ledger.Batch) []*enrolment {
	group := make([]*enrolment, 0, groupSize)
	for i := b.Delivered; i < min(b.Delivered+groupSize, b.Count); i++ {
		group = append(group, &enrolment{
			Order: Order{ID: b.ID(i), Out: filepath.Join(b.Out, b.ID(i)), Model: b.Model, OU: b.OU},
			batch: b.Number,
		})
	}
	return group
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
	if len(refused) > 0 {
		return fmt.Errorf("%d devices of the batch can't be made, %s first: %w; then repeat the command", len(refused), refused[0].ID, refused[0].refusal)
	}
	return nil
}
