package fleet

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
)

// propose makes a fleet in which ann wants to revoke more devices than she may alone.
func propose(t *testing.T) (*rig, Proposal) {
	t.Helper()
	r := newRig(t)
	r.populate(200)
	r.config.FourEyesOver = 20
	o := Order{ID: "order-1", Verb: VerbRevoke, Select: selecting(t, "protection=tpm,state=active"), Reason: revocation.KeyCompromise, Count: 80}
	radius, err := r.Rehearse(t.Context(), o)
	if err != nil || !radius.FourEyes || radius.Count != 80 {
		t.Fatalf("radius = %+v, %v", radius, err)
	}
	result, err := r.Execute(t.Context(), o, ann)
	if err != nil || result.Receipt != nil || result.Proposal == nil || result.Proposal.Count != 80 || result.Proposal.Actor != ann.Name {
		t.Fatalf("result = %+v, %v", result, err)
	}
	if got := r.inState(registry.StateRevoked); len(got) != 20 || len(r.sessions.calls) != 0 {
		t.Fatalf("a proposal revoked somebody: %d", len(got))
	}
	return r, *result.Proposal
}

func TestSecondOperatorCarriesOutTheProposalOfTheFirst(t *testing.T) {
	r, p := propose(t)
	// The request repeated is the same proposal.
	again, err := r.Execute(t.Context(), p.Order, ann)
	if err != nil || again.Proposal == nil || again.Proposal.ID != p.ID || !again.Proposal.Made.Equal(p.Made) {
		t.Fatalf("again = %+v, %v", again, err)
	}
	if list, err := r.Proposals(t.Context()); err != nil || len(list) != 1 || list[0].Order.Select.String() != p.Order.Select.String() {
		t.Fatalf("proposals = %+v, %v", list, err)
	}
	r.restart()
	r.config.FourEyesOver = 20
	if _, err := r.Approve(t.Context(), p.ID, p.Tag, 80, ann); !errors.Is(err, ErrSameEyes) {
		t.Errorf("her own: error = %v", err)
	}
	if _, err := r.Approve(t.Context(), p.ID, p.Tag, 79, ben); !errors.Is(err, ErrCount) {
		t.Errorf("another count: error = %v", err)
	}
	if _, err := r.Approve(t.Context(), "order-2", p.Tag, 80, ben); !errors.Is(err, ErrNoProposal) {
		t.Errorf("no such proposal: error = %v", err)
	}
	for _, record := range r.log()[1:] {
		if record.Action != "proposal.approve" || record.Outcome != registry.OutcomeRefused {
			t.Errorf("audit record = %+v", record)
		}
	}
	result, err := r.Approve(t.Context(), p.ID, p.Tag, 80, ben)
	if err != nil || result.Receipt.Count != 80 || result.Receipt.Actor != ann.Name || result.Receipt.Approver != ben.Name || result.Receipt.ReceiptID != p.ID {
		t.Fatalf("result = %+v, %v", result.Receipt, err)
	}
	if got := r.inState(registry.StateRevoked); len(got) != 100 {
		t.Fatalf("%d are revoked", len(got))
	}
	if list, err := r.Proposals(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("proposals = %+v, %v", list, err)
	}
	if again, err := r.Approve(t.Context(), p.ID, p.Tag, 80, ben); err != nil || again.Receipt.Count != 80 {
		t.Fatalf("approved again: %+v, %v", again.Receipt, err)
	}
}

func TestProposalIsForThoseWhomItWasMadeFor(t *testing.T) {
	r, p := propose(t)
	// One falls out and another comes in: the count is the same.
	d := plain(1, nil)
	if _, err := r.Revoke(t.Context(), d.ID, 0, ann); err != nil {
		t.Fatal(err)
	}
	in := plain(5000, []byte{1})
	in.Protection = "tpm"
	if err := r.bolt.Commit(t.Context(), registry.Change{Devices: []registry.Device{in}}); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if _, err := r.Approve(t.Context(), p.ID, p.Tag, 80, ben); !errors.Is(err, ErrCount) {
		t.Fatalf("error = %v", err)
	}
	if status, _ := r.Status(in.ID); status.State != registry.StateActive {
		t.Fatal("the newcomer was revoked")
	}
}

func TestProposalEnds(t *testing.T) {
	r, p := propose(t)
	if withdrawn, err := r.Withdraw(t.Context(), p.ID, "a mistake", ben); err != nil || withdrawn.ID != p.ID {
		t.Fatalf("%+v, %v", withdrawn, err)
	}
	for name, err := range map[string]error{
		"approve":  func() error { _, err := r.Approve(t.Context(), p.ID, p.Tag, 80, ben); return err }(),
		"withdraw": func() error { _, err := r.Withdraw(t.Context(), p.ID, "", ben); return err }(),
	} {
		if !errors.Is(err, ErrNoProposal) {
			t.Errorf("%s once it is withdrawn: error = %v", name, err)
		}
	}
	late, lateProposal := propose(t)
	expired := time.Now().Add(proposalLifetime + time.Hour)
	late.config.Now = func() time.Time { return expired }
	if _, err := late.Approve(t.Context(), lateProposal.ID, lateProposal.Tag, 80, ben); !errors.Is(err, ErrNoProposal) {
		t.Errorf("a day later: error = %v", err)
	}
	if list, err := late.Proposals(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("a day later: %+v, %v", list, err)
	}
	if got := late.inState(registry.StateRevoked); len(got) != 20 {
		t.Errorf("%d are revoked", len(got))
	}
}

func TestProposalIsApprovedOnce(t *testing.T) {
	r, p := propose(t)
	carol := Actor{Name: "spiffe://fleet.example/operator/carol"}
	var both sync.WaitGroup
	errs := make([]error, 6)
	for i := range errs {
		both.Go(func() {
			actor := ben
			if i%2 == 1 {
				actor = carol
			}
			_, errs[i] = r.Approve(t.Context(), p.ID, p.Tag, 80, actor)
		})
	}
	both.Wait()
	for _, err := range errs {
		if err != nil { // who is slower gets the receipt of who was faster
			t.Error(err)
		}
	}
	page, err := r.Audit(t.Context(), registry.AuditQuery{Receipt: p.ID, Outcome: registry.OutcomeDone, Limit: 1000})
	if err != nil || len(page.Records) != 81 {
		t.Errorf("%d records of it, %v", len(page.Records), err)
	}
}

func TestSecondOperatorIsNotNeededForWhatCanBeUndone(t *testing.T) {
	r := newRig(t)
	r.populate(200)
	r.config.FourEyesOver = 20
	for _, verb := range []Verb{VerbSuspend, VerbResume} {
		s := map[Verb]string{VerbSuspend: "state=active", VerbResume: "state=suspended"}[verb]
		if result, err := r.Execute(t.Context(), Order{Verb: verb, Select: selecting(t, s), Count: 180}, ann); err != nil || result.Receipt == nil {
			t.Errorf("%s: %+v, %v", verb, result, err)
		}
	}
	result, err := r.Execute(t.Context(), Order{Verb: VerbRevoke, Select: selecting(t, "id=board-0000001*"), Count: 9}, ann)
	if err != nil || result.Receipt == nil {
		t.Errorf("fewer than the limit: %+v, %v", result, err)
	}
	if result, err := r.Execute(t.Context(), Order{Verb: VerbRetire, Select: selecting(t, "state=registered"), Count: 171}, ann); err != nil || result.Proposal == nil {
		t.Errorf("retire: %+v, %v", result, err)
	}
}

func TestNumberOfProposalsIsBounded(t *testing.T) {
	r, p := propose(t)
	for i := range maxProposals {
		doc := registry.Document{Kind: registry.KindProposal, ID: "x" + string(rune('0'+i%10)) + newOrderID(time.Now()), Data: []byte(`{"expires":"2999-01-01T00:00:00Z"}`)}
		if err := r.bolt.Commit(t.Context(), registry.Change{Documents: []registry.Document{doc}}); err != nil {
			t.Fatal(err)
		}
	}
	o := p.Order
	o.ID = ""
	if _, err := r.Execute(t.Context(), o, ann); !errors.Is(err, ErrOrder) {
		t.Errorf("error = %v", err)
	}
	if !slices.Contains([]int{maxProposals, maxProposals + 1}, func() int {
		documents, err := r.bolt.Documents(t.Context(), registry.KindProposal, "", 2*maxProposals)
		if err != nil {
			t.Fatal(err)
		}
		return len(documents)
	}()) {
		t.Error("it was stored all the same")
	}
}

// TestApprovalIsOfWhatWasReviewed: ann puts another order under the ID that ben has looked at.
func TestApprovalIsOfWhatWasReviewed(t *testing.T) {
	r, p := propose(t)
	if _, err := r.Withdraw(t.Context(), p.ID, "", ann); err != nil {
		t.Fatal(err)
	}
	other := Order{ID: p.ID, Verb: VerbRevoke, Select: selecting(t, "protection=tpm,state=registered"), Reason: revocation.KeyCompromise}
	for _, o := range []Order{other, p.Order} {
		if result, err := r.Execute(t.Context(), o, ann); !errors.Is(err, ErrTaken) {
			t.Errorf("the ID of a withdrawn proposal: %+v, %v", result, err)
		}
	}
	// Had she got it in all the same, by a hub that forgot the ID: it has another tag.
	o := p.Order
	o.ID = "order-2"
	result, err := r.Execute(t.Context(), o, ann)
	if err != nil || result.Proposal == nil || result.Proposal.Tag == p.Tag || len(p.Tag) != tagDigits {
		t.Fatalf("%+v, %v", result.Proposal, err)
	}
	for _, tag := range []string{"", p.Tag, p.Tag[:8]} {
		if _, err := r.Approve(t.Context(), "order-2", tag, 80, ben); !errors.Is(err, ErrReviewed) {
			t.Errorf("tag %q: error = %v", tag, err)
		}
	}
	if got := r.inState(registry.StateRevoked); len(got) != 20 {
		t.Fatalf("%d are revoked", len(got))
	}
	r.restart()
	again, err := r.Proposal(t.Context(), "order-2")
	if err != nil || again.Tag != result.Proposal.Tag {
		t.Fatalf("after a restart: %+v, %v", again, err)
	}
	if _, err := r.Approve(t.Context(), "order-2", again.Tag, 80, ben); err != nil {
		t.Fatal(err)
	}
	r.config.FourEyesOver = 20
	if result, err := r.Execute(t.Context(), Order{ID: "order-2", Verb: VerbSuspend, Device: plain(1, nil).ID}, ann); err == nil {
		t.Errorf("the ID of an approved proposal: %+v", result)
	}
	if _, err := r.Approve(t.Context(), "order-2", p.Tag, 80, ben); !errors.Is(err, ErrNoProposal) {
		t.Errorf("approved again by another tag: error = %v", err)
	}
}

// TestTagStandsForAllThatIsReviewed: whatever differs, the tag does.
func TestTagStandsForAllThatIsReviewed(t *testing.T) {
	_, p := propose(t)
	for name, change := range map[string]func(*Proposal){
		"id":       func(p *Proposal) { p.ID = "order-2" },
		"verb":     func(p *Proposal) { p.Order.Verb = VerbRetire },
		"selector": func(p *Proposal) { p.Order.Select = selecting(t, "id=*") },
		"reason":   func(p *Proposal) { p.Order.Reason = revocation.Superseded },
		"note":     func(p *Proposal) { p.Order.Note = "recall" },
		"operator": func(p *Proposal) { p.Actor = ben.Name },
		"count":    func(p *Proposal) { p.Count++ },
		"devices":  func(p *Proposal) { p.Digest = digest([]string{"x"}) },
		"moment":   func(p *Proposal) { p.Made = p.Made.Add(1) },
	} {
		other := p
		change(&other)
		if tag, err := other.seal(); err != nil || tag == p.Tag {
			t.Errorf("%s: the tag is %s too, %v", name, tag, err)
		}
	}
}

// TestReceiptDoesNotShadowAProposal: an order under the ID of one that waits is refused, and an
// approval is never answered with another order's receipt.
func TestReceiptDoesNotShadowAProposal(t *testing.T) {
	r, p := propose(t)
	suspend := Order{ID: p.ID, Verb: VerbSuspend, Device: plain(1, nil).ID}
	if result, err := r.Execute(t.Context(), suspend, ann); !errors.Is(err, ErrTaken) {
		t.Fatalf("the ID of a proposal: %+v, %v", result, err)
	}
	// Nor is the same order carried out by one operator when the rule is lifted meanwhile.
	r.config.FourEyesOver = 0
	if result, err := r.Execute(t.Context(), p.Order, ann); err != nil || result.Proposal == nil || result.Receipt != nil {
		t.Fatalf("%+v, %v", result, err)
	}
	r.config.FourEyesOver = 20
	// A hub of before has let a receipt in.
	if _, err := r.Execute(t.Context(), Order{ID: "order-2", Verb: VerbSuspend, Device: plain(2, nil).ID}, ann); err != nil {
		t.Fatal(err)
	}
	data, err := r.SignedReceipt(t.Context(), "order-2")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.bolt.Commit(t.Context(), registry.Change{Documents: []registry.Document{{Kind: registry.KindReceipt, ID: p.ID, Data: data}}}); err != nil {
		t.Fatal(err)
	}
	if result, err := r.Approve(t.Context(), p.ID, p.Tag, 80, ben); err == nil {
		t.Errorf("approved by another order's receipt: %+v", result.Receipt)
	}
}

// TestDecidedProposalsAreNotListed: what is kept of them takes no place of those that wait.
func TestDecidedProposalsAreNotListed(t *testing.T) {
	r, p := propose(t)
	if _, err := r.Withdraw(t.Context(), p.ID, "", ann); err != nil {
		t.Fatal(err)
	}
	if list, err := r.Proposals(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if left, err := r.Proposal(t.Context(), endedPrefix+p.ID); !errors.Is(err, ErrNoProposal) {
		t.Errorf("%+v, %v", left, err)
	}
	o := p.Order
	o.ID = "zzz"
	if result, err := r.Execute(t.Context(), o, ann); err != nil || result.Proposal == nil {
		t.Fatalf("%+v, %v", result, err)
	}
	if list, err := r.Proposals(t.Context()); err != nil || len(list) != 1 || list[0].ID != "zzz" {
		t.Errorf("%+v, %v", list, err)
	}
	// One that nobody decided in time is not another's either.
	late := time.Now().Add(proposalLifetime + time.Hour)
	r.config.Now = func() time.Time { return late }
	o.ID = "order-3"
	if _, err := r.Execute(t.Context(), o, ann); err != nil {
		t.Fatal(err)
	}
	o.ID = "zzz"
	if result, err := r.Execute(t.Context(), o, ann); !errors.Is(err, ErrTaken) {
		t.Errorf("%+v, %v", result, err)
	}
}
