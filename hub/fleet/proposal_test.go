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
	if _, err := r.Approve(t.Context(), p.ID, 80, ann); !errors.Is(err, ErrSameEyes) {
		t.Errorf("her own: error = %v", err)
	}
	if _, err := r.Approve(t.Context(), p.ID, 79, ben); !errors.Is(err, ErrCount) {
		t.Errorf("another count: error = %v", err)
	}
	if _, err := r.Approve(t.Context(), "order-2", 80, ben); !errors.Is(err, ErrNoProposal) {
		t.Errorf("no such proposal: error = %v", err)
	}
	for _, record := range r.log()[1:] {
		if record.Action != "proposal.approve" || record.Outcome != registry.OutcomeRefused {
			t.Errorf("audit record = %+v", record)
		}
	}
	result, err := r.Approve(t.Context(), p.ID, 80, ben)
	if err != nil || result.Receipt.Count != 80 || result.Receipt.Actor != ann.Name || result.Receipt.Approver != ben.Name || result.Receipt.ReceiptID != p.ID {
		t.Fatalf("result = %+v, %v", result.Receipt, err)
	}
	if got := r.inState(registry.StateRevoked); len(got) != 100 {
		t.Fatalf("%d are revoked", len(got))
	}
	if list, err := r.Proposals(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("proposals = %+v, %v", list, err)
	}
	if again, err := r.Approve(t.Context(), p.ID, 80, ben); err != nil || again.Receipt.Count != 80 {
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
	if _, err := r.Approve(t.Context(), p.ID, 80, ben); !errors.Is(err, ErrCount) {
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
		"approve":  func() error { _, err := r.Approve(t.Context(), p.ID, 80, ben); return err }(),
		"withdraw": func() error { _, err := r.Withdraw(t.Context(), p.ID, "", ben); return err }(),
	} {
		if !errors.Is(err, ErrNoProposal) {
			t.Errorf("%s once it is withdrawn: error = %v", name, err)
		}
	}
	late, lateProposal := propose(t)
	expired := time.Now().Add(proposalLifetime + time.Hour)
	late.config.Now = func() time.Time { return expired }
	if _, err := late.Approve(t.Context(), lateProposal.ID, 80, ben); !errors.Is(err, ErrNoProposal) {
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
			_, errs[i] = r.Approve(t.Context(), p.ID, 80, actor)
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
