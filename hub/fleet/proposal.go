package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
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
	ErrReviewed   = errors.New("this is not the proposal that was reviewed")
	ErrTaken      = errors.New("the ID is a proposal's")
)

// endedPrefix begins the ID of what is left of a proposal that was decided: no device's or
// order's ID begins so, and every one comes before it.
const endedPrefix = "~"

// ended is what is left of a proposal, for ever, so that its ID is never another's.
type ended struct {
	Tag      string    `json:"tag"`
	Approver string    `json:"approver,omitempty"` // empty: it was withdrawn, or nobody decided in time
	At       time.Time `json:"at"`
}

// tagDigits is how much of a proposal's digest an operator types, in hex: 64 bits, whose moment
// of making nobody chooses.
const tagDigits = 16

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
	Tag     string    `json:"tag"` // what an approval repeats: the beginning of a digest of all of the above
}

// seal returns the tag of the proposal as it is: whoever approves by it has seen this verb,
// selector, reason, devices and operator, and not others under the same ID.
func (p Proposal) seal() (string, error) {
	p.Tag = ""
	p.Made, p.Expires = p.Made.UTC(), p.Expires.UTC()
	data, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])[:tagDigits], nil
}

// parseProposal reads a stored proposal, and seals it anew: one of an older hub has no tag.
func parseProposal(data []byte) (p Proposal, err error) {
	if err = json.Unmarshal(data, &p); err == nil {
		p.Tag, err = p.seal()
	}
	return p, err
}

// end is what a decision does to the stored proposal.
func (p Proposal) end(approver string, at time.Time) ([]registry.Document, error) {
	data, err := json.Marshal(ended{p.Tag, approver, at})
	return []registry.Document{{Kind: registry.KindProposal, ID: p.ID}, {Kind: registry.KindProposal, ID: endedPrefix + p.ID, Data: data}}, err
}

// decided returns what is left of a proposal under an ID, nil if there was none.
func (f *Fleet) decided(ctx context.Context, id string) (*ended, error) {
	data, err := f.config.Store.Document(ctx, registry.KindProposal, endedPrefix+id)
	if errors.Is(err, registry.ErrUnknown) {
		return nil, nil
	}
	var e ended
	if err == nil {
		err = json.Unmarshal(data, &e)
	}
	return &e, err
}

// proposed returns the proposal that the order is already, nil if it is none. An ID that is
// another's, or was a proposal's, is refused: an approval, or a receipt, must not be taken
// for that of another order.
func (f *Fleet) proposed(ctx context.Context, o Order) (*Proposal, error) {
	p, err := f.readProposal(ctx, o.ID)
	switch {
	case err == nil && p.Order.same(o):
		return &p, nil // the request was repeated
	case err == nil:
		return nil, fmt.Errorf("%w: %s waits for a second operator, and is another order; give this one another ID", ErrTaken, o.ID)
	case !errors.Is(err, ErrNoProposal):
		return nil, err
	}
	if e, err := f.decided(ctx, o.ID); e != nil || err != nil {
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %s was proposed and is decided since %s; give this order another ID", ErrTaken, o.ID, e.At.UTC().Format(time.RFC3339))
	}
	return nil, nil
}

// needsFourEyes reports whether an order for so many needs a second operator.
func (f *Fleet) needsFourEyes(v Verb, n int) bool {
	return f.config.FourEyesOver > 0 && n > f.config.FourEyesOver && verbs[v].state.Final()
}

// propose stores the order of a run as a proposal. It runs in the writer's turn.
func (f *Fleet) propose(ctx context.Context, r *run, n int) (*Proposal, error) {
	now := f.config.Now()
	waiting, err := f.config.Store.Documents(ctx, registry.KindProposal, "", maxProposals)
	if err != nil {
		return nil, err
	}
	change, live := registry.Change{}, 0
	for _, d := range waiting {
		if strings.HasPrefix(d.ID, endedPrefix) {
			break // nothing but such follows
		}
		p, err := parseProposal(d.Data)
		if err == nil && !now.After(p.Expires) {
			live++
			continue
		}
		p.ID = d.ID
		gone, err := p.end("", now)
		if err != nil {
			return nil, err
		}
		change.Documents = append(change.Documents, gone...)
	}
	if live >= maxProposals {
		return nil, fmt.Errorf("%w: %d proposals wait already; approve or withdraw some", ErrOrder, maxProposals)
	}
	p := &Proposal{
		ID: r.order.ID, Order: r.order, Actor: r.actor.Name, Address: r.actor.Address, Count: n, Digest: digest(r.ids),
		Made: now, Expires: now.Add(proposalLifetime),
	}
	if p.Tag, err = p.seal(); err != nil {
		return nil, err
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
		p, err = parseProposal(data)
	}
	if strings.HasPrefix(id, endedPrefix) {
		err = registry.ErrUnknown
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
		if strings.HasPrefix(d.ID, endedPrefix) {
			break // nothing but such follows
		}
		p, err := parseProposal(d.Data)
		if err != nil {
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
// operator than that, and says for how many devices it is and by its Tag which proposal was
// reviewed: an ID alone could be another order's by now. If the selector picks others by
// now, it is refused. Approving again returns the receipt.
func (f *Fleet) Approve(ctx context.Context, id, tag string, count int, actor Actor) (Result, error) {
	end, err := f.underWay.begin(ctx, id)
	if err != nil {
		return Result{}, err
	}
	defer end()
	p, err := f.readProposal(ctx, id)
	if errors.Is(err, ErrNoProposal) {
		if e, failed := f.decided(ctx, id); failed == nil && e != nil && e.Approver != "" && e.Tag == tag {
			if r, failed := f.Receipt(ctx, id); failed == nil {
				return Result{Receipt: &r}, nil // the request was repeated
			}
		}
	}
	if err == nil { // one of an order that was given before the proposal, under its ID
		var r *Receipt
		if r, err = f.formerly(ctx, p.Order); r != nil {
			err = fmt.Errorf("%w: %s has a receipt already", ErrTaken, id)
		}
	}
	if err == nil && p.Actor == actor.Name {
		err = fmt.Errorf("%w: %s proposed %s", ErrSameEyes, actor.Name, id)
	}
	if err == nil && tag != p.Tag {
		err = fmt.Errorf("%w: %s is %s %s by %s with the digest %s, not %.40q; look at it again", ErrReviewed, id, p.Order.Verb, p.Order.target(), p.Actor, p.Tag, tag)
	}
	if err == nil && count != p.Count {
		err = fmt.Errorf("%w: %s is for %d devices, not %d", ErrCount, id, p.Count, count)
	}
	var ending []registry.Document
	if err == nil {
		ending, err = p.end(actor.Name, f.config.Now())
	}
	if err != nil {
		record := f.audit(actor, "proposal.approve", "")
		record.Subject = "proposal " + clip(id)
		f.refused(ctx, record, err)
		return Result{}, err
	}
	p.Order.Count = count
	r := &run{fleet: f, order: p.Order, actor: Actor{Name: p.Actor, Address: p.Address}, proposal: &p, approver: actor, ending: ending}
	return r.carryOut(ctx)
}

// Withdraw removes a proposal. Any operator may. Its ID stays taken.
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
		gone, err := p.end("", f.config.Now())
		if err != nil {
			return err
		}
		return f.config.Store.Commit(ctx, registry.Change{Documents: gone, Audit: []registry.AuditRecord{record}})
	})
	return p, err
}
