package admin

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
)

// SelectionRequest is an order for the devices that a selector picks.
type SelectionRequest struct {
	ID      string `json:"id,omitempty"`     // of the receipt; repeating the request under it repeats nothing
	Select  string `json:"select"`           // see registry.Selector
	Reason  string `json:"reason,omitempty"` // of revoke: RFC 5280 §5.3.1
	Note    string `json:"note,omitempty"`
	Confirm bool   `json:"confirm,omitempty"` // without it, the answer is a plan
	Count   int    `json:"count,omitempty"`   // how many devices are meant; required above 100
}

// SelectionPlan is what an order for a selection would do, those connected included.
type SelectionPlan struct {
	fleet.BlastRadius
	Online int `json:"online"` // devices whose session it would close
}

// SelectionAnswer is the answer to such an order: a plan without confirmation, else a
// receipt, or a proposal if it takes a second operator.
type SelectionAnswer struct {
	Plan     *SelectionPlan  `json:"plan,omitempty"`
	Receipt  *fleet.Receipt  `json:"receipt,omitempty"`
	Proposal *fleet.Proposal `json:"proposal,omitempty"`
	Issuer   *IssuerReceipt  `json:"issuer,omitempty"` // if the order was for an issuer's devices, and it was removed
}

// selection serves a verb for those that a selector picks.
func (a *api) selection(verb fleet.Verb) func(*http.Request, SelectionRequest) (SelectionAnswer, error) {
	return func(r *http.Request, body SelectionRequest) (SelectionAnswer, error) {
		order, err := body.order(verb)
		if err != nil {
			return SelectionAnswer{}, err
		}
		return a.carryOut(r, order, body.Confirm)
	}
}

func (b SelectionRequest) order(verb fleet.Verb) (fleet.Order, error) {
	s, err := selector(b.Select)
	if err != nil {
		return fleet.Order{}, err
	}
	o := fleet.Order{ID: b.ID, Verb: verb, Select: s, Note: b.Note, Count: b.Count}
	if verb == fleet.VerbRevoke {
		if o.Reason, err = revocation.ParseReason(b.Reason); err != nil {
			return o, invalid("%v", err)
		}
	} else if b.Reason != "" {
		return o, invalid("reason is for revoke; say why in note")
	}
	return o, nil
}

func selector(text string) (registry.Selector, error) {
	s, err := registry.ParseSelector(text)
	if err != nil {
		return s, invalid("%v", err)
	}
	return s, nil
}

// carryOut rehearses an order for a selection, or executes it.
func (a *api) carryOut(r *http.Request, o fleet.Order, confirmed bool) (SelectionAnswer, error) {
	if !confirmed {
		plan, err := a.rehearse(r, o)
		return SelectionAnswer{Plan: &plan}, err
	}
	o.ID = orderID(r, o.ID)
	result, err := a.config.Fleet.Execute(r.Context(), o, actor(r))
	return SelectionAnswer{Receipt: result.Receipt, Proposal: result.Proposal}, err
}

func (a *api) rehearse(r *http.Request, o fleet.Order) (SelectionPlan, error) {
	radius, err := a.config.Fleet.Rehearse(r.Context(), o)
	plan := SelectionPlan{BlastRadius: radius}
	for _, id := range radius.IDs {
		if _, online := a.config.Live(id); online {
			plan.Online++
		}
	}
	return plan, err
}

// revokeIssuer takes the trust from an issuing CA and revokes the devices by it: the
// first cuts them off at once, whatever their number; the second is for good, and may
// take a second operator.
func (a *api) revokeIssuer(r *http.Request, body SelectionRequest) (answer SelectionAnswer, err error) {
	name := r.PathValue("name")
	if body.Select != "" {
		return answer, invalid("an issuer's devices are revoked all together; select is for /v1/selections")
	}
	plan, err := a.config.Issuers.PlanRemoval(r.Context(), name)
	if errors.Is(err, ErrNoIssuer) { // a kill may have come between its removal and the order below
		return answer, fmt.Errorf("%w; if it was removed and its devices are not revoked, revoke them by its key, the subject key identifier of its certificate in issuers/removed: hub device revoke --select issuer=KEY", err)
	}
	if err != nil {
		return answer, err
	}
	if plan.Note != "" {
		return answer, fmt.Errorf("%w: %q: %s", ErrIssuerNeeded, name, plan.Note)
	}
	ids := a.config.Fleet.IssuersNamed(name)
	if len(ids) != 1 {
		return answer, fmt.Errorf("%w: %.80q names %d of them", ErrNoIssuer, name, len(ids))
	}
	// Whoever is out for good already keeps no usable certificate and is not among them.
	body.Select = registry.Equals("issuer", ids[0]).String()
	o, err := body.order(fleet.VerbRevoke)
	if err != nil {
		return answer, err
	}
	rehearsed, err := a.rehearse(r, o)
	if err != nil || !body.Confirm {
		answer.Plan = &rehearsed
		return answer, err
	}
	if body.Count != rehearsed.Count && (body.Count != 0 || rehearsed.Count > fleet.MaxUncounted) {
		return answer, fmt.Errorf("%w: %d devices are by issuer %s; repeat it with --count %[2]d", fleet.ErrCount, rehearsed.Count, name)
	}
	note := fleet.Note{Action: "issuer.remove", Subject: "issuer " + name, Reason: body.Note}
	err = a.config.Fleet.Audited(r.Context(), actor(r), note, func() (string, error) {
		removed, err := a.config.Issuers.Remove(r.Context(), name)
		answer.Issuer = &removed
		return fmt.Sprintf("serial %s, connections cut: %d", removed.Issuer.Serial, removed.SessionsClosed), err
	})
	if err != nil {
		return answer, err
	}
	o.ID = orderID(r, o.ID)
	result, err := a.config.Fleet.Execute(r.Context(), o, actor(r))
	answer.Receipt, answer.Proposal = result.Receipt, result.Proposal
	if errors.Is(err, fleet.ErrNobody) {
		err = nil // it had no devices
	}
	if err != nil {
		err = fmt.Errorf("issuer %s is no longer trusted, but its devices are not revoked: %w", name, err)
	}
	return answer, err
}
