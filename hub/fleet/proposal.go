package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
)

// proposalLifetime is how long a proposal waits for a second operator.
const proposalLifetime = 24 * time.Hour

// maxProposals bounds how many wait at a time.
const maxProposals = 1000

// Errors about proposals that callers tell apart.
var (
	ErrNoProposal = errors.New("no such proposal")
	ErrSameEyes   = errors.New("a second operator must approve it")
)

// Proposal is an order that waits for the approval of a second operator, because it is
// for many devices. Nothing has been changed.
type Proposal struct {
	ID      string    `json:"id"` // of the receipt, once it is carried out
	Order   Order     `json:"order"`
	Actor   string    `json:"actor"` // who proposed it
	Address string    `json:"address,omitempty"`
	Count   int       `json:"count"`
	Digest  string    `json:"devices_sha256"` // of the IDs, in order, each with a line feed behind it
	Made    time.Time `json:"made"`
	Expires time.Time `json:"expires"`
}

// needsFourEyes reports whether an order for so many needs a second operator.
func (f *Fleet) needsFourEyes(v Verb, n int) bool {
	return f.config.FourEyesOver > 0 && n > f.config.FourEyesOver && verbs[v].state.Final()
}

// propose stores the order of a run as a proposal. It runs in the writer's turn.
func (f *Fleet) propose(ctx context.Context, r *run, n int) (*Proposal, error) {
	now := f.config.Now()
	if p, err := f.readProposal(ctx, r.order.ID); err == nil {
		if !p.Order.same(r.order) {
			return nil, fmt.Errorf("%w: %s is another proposal", ErrOrder, r.order.ID)
		}
		return &p, nil // the request was repeated
	}
	waiting, err := f.config.Store.Documents(ctx, registry.KindProposal, "", maxProposals)
	if err != nil {
		return nil, err
	}
	change := registry.Change{}
	for _, d := range waiting {
		var p Proposal
		if json.Unmarshal(d.Data, &p) != nil || now.After(p.Expires) {
			change.Documents = append(change.Documents, registry.Document{Kind: registry.KindProposal, ID: d.ID})
		}
	}
	if len(waiting)-len(change.Documents) >= maxProposals {
		return nil, fmt.Errorf("%w: %d proposals wait already; approve or withdraw some", ErrOrder, maxProposals)
	}
	p := &Proposal{
		ID: r.order.ID, Order: r.order, Actor: r.actor.Name, Address: r.actor.Address, Count: n, Digest: digest(r.ids),
		Made: now, Expires: now.Add(proposalLifetime),
	}
	data, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	record := r.record()
	record.Outcome, record.Detail = registry.OutcomeRequested, fmt.Sprintf("%d devices, waits for a second operator", n)
	change.Documents = append(change.Documents, registry.Document{Kind: registry.KindProposal, ID: p.ID, Data: data})
	change.Audit = []registry.AuditRecord{record}
	return p, f.config.Store.Commit(ctx, change)
}

// readProposal returns a proposal that can still be approved, or ErrNoProposal.
func (f *Fleet) readProposal(ctx context.Context, id string) (p Proposal, err error) {
	data, err := f.config.Store.Document(ctx, registry.KindProposal, id)
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if errors.Is(err, registry.ErrUnknown) || err == nil && f.config.Now().After(p.Expires) {
		return Proposal{}, fmt.Errorf("%w waits: %.80q; it was approved, withdrawn or is older than %v", ErrNoProposal, id, proposalLifetime)
	}
	return p, err
}

// Proposals returns the orders that wait for a second operator, oldest first.
func (f *Fleet) Proposals(ctx context.Context) ([]Proposal, error) {
	documents, err := f.config.Store.Documents(ctx, registry.KindProposal, "", maxProposals)
	if err != nil {
		return nil, err
	}
	proposals := []Proposal{}
	for _, d := range documents {
		var p Proposal
		if err := json.Unmarshal(d.Data, &p); err != nil {
			return nil, fmt.Errorf("proposal %s: %w", d.ID, err)
		}
		if !f.config.Now().After(p.Expires) {
			proposals = append(proposals, p)
		}
	}
	return proposals, nil
}

// Proposal returns an order that waits for a second operator, or an error that matches
// ErrNoProposal.
func (f *Fleet) Proposal(ctx context.Context, id string) (Proposal, error) {
	return f.readProposal(ctx, id)
}

// Approve carries out a proposal in the name of who made it. The actor is another
// operator than that and says how many devices it is for. If the selector picks others
// by now, it is refused.
func (f *Fleet) Approve(ctx context.Context, id string, count int, actor Actor) (Result, error) {
	end, err := f.underWay.begin(ctx, id)
	if err != nil {
		return Result{}, err
	}
	defer end()
	if r, err := f.Receipt(ctx, id); err == nil {
		return Result{Receipt: &r}, nil // the request was repeated
	}
	p, err := f.readProposal(ctx, id)
	if err == nil && p.Actor == actor.Name {
		err = fmt.Errorf("%w: %s proposed %s", ErrSameEyes, actor.Name, id)
	}
	if err == nil && count != p.Count {
		err = fmt.Errorf("%w: %s is for %d devices, not %d", ErrCount, id, p.Count, count)
	}
	if err != nil {
		record := f.audit(actor, "proposal.approve", "")
		record.Subject = "proposal " + clip(id)
		f.refused(ctx, record, err)
		return Result{}, err
	}
	p.Order.Count = count
	r := &run{fleet: f, order: p.Order, actor: Actor{Name: p.Actor, Address: p.Address}, proposal: &p, approver: actor}
	return r.carryOut(ctx)
}

// Withdraw removes a proposal. Any operator may.
func (f *Fleet) Withdraw(ctx context.Context, id, note string, actor Actor) (Proposal, error) {
	if err := validText("note", note); err != nil {
		return Proposal{}, err
	}
	var p Proposal
	err := f.write(ctx, func() (err error) {
		record := f.audit(actor, "proposal.withdraw", "")
		record.Subject, record.Note = "proposal "+clip(id), note
		if p, err = f.readProposal(ctx, id); err != nil {
			f.refused(ctx, record, err)
			return err
		}
		record.Detail = fmt.Sprintf("%s %s, %d devices, by %s", p.Order.Verb, p.Order.target(), p.Count, p.Actor)
		return f.config.Store.Commit(ctx, registry.Change{
			Documents: []registry.Document{{Kind: registry.KindProposal, ID: id}}, Audit: []registry.AuditRecord{record},
		})
	})
	return p, err
}
