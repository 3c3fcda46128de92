package admin

import (
	"net/http"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/fleet"
)

// ReceiptMediaType is the content type of a signed receipt.
const ReceiptMediaType = "application/jose"

// ReceiptPage is one page of receipts, oldest first, without the devices that they name.
// Next is the after of the following page, empty on the last.
type ReceiptPage struct {
	Receipts []fleet.Receipt `json:"receipts"`
	Next     string          `json:"next,omitempty"`
}

// ProposalList is one page of the orders that wait for a second operator, oldest first. Next
// is the after of the following page, empty on the last.
type ProposalList struct {
	Proposals []fleet.Proposal `json:"proposals"`
	Next      string           `json:"next,omitempty"`
}

// decision is the body of approve and withdraw.
type decision struct {
	Count int    `json:"count,omitempty"` // of approve: how many devices the order is for
	Note  string `json:"note,omitempty"`
}

func (a *api) listReceipts(r *http.Request) (ReceiptPage, error) {
	after := r.FormValue("after")
	if after != "" && identity.ValidID(after) != nil {
		return ReceiptPage{}, invalid("after=%.80q is not a receipt's ID", after)
	}
	limit, err := number(r, "limit")
	if err != nil {
		return ReceiptPage{}, err
	}
	page, next, err := a.config.Fleet.Receipts(r.Context(), after, int(min(limit, 1<<20)))
	if page == nil {
		page = []fleet.Receipt{}
	}
	return ReceiptPage{Receipts: page, Next: next}, err
}

func (a *api) showReceipt(r *http.Request) (fleet.Receipt, error) {
	return a.config.Fleet.Receipt(r.Context(), r.PathValue("id"))
}

// signedReceipt serves a receipt as it was signed. One that the hub couldn't sign is
// plain JSON, and says so by its type.
func (a *api) signedReceipt(w http.ResponseWriter, r *http.Request) {
	data, err := a.config.Fleet.SignedReceipt(r.Context(), r.PathValue("id"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Set("ETag", hashTag(data))
	if matches(r.Header.Get("If-None-Match"), hashTag(data), weakly) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", ReceiptMediaType)
	if data[0] == '{' {
		w.Header().Set("Content-Type", "application/json")
	}
	w.Write(data) // a client that is gone needs no answer
}

func (a *api) listProposals(r *http.Request) (ProposalList, error) {
	proposals, err := a.config.Fleet.Proposals(r.Context())
	if err != nil {
		return ProposalList{}, err
	}
	page, next, err := pageOf(r, proposals, func(p fleet.Proposal) string { return p.ID })
	return ProposalList{Proposals: page, Next: next}, err
}

// proposalTag is the entity tag of a proposal: what an approval repeats.
func proposalTag(p fleet.Proposal) string { return `"` + p.Tag + `"` }

// showProposal is for whoever must decide about one.
func (a *api) showProposal(r *http.Request) (fleet.Proposal, error) {
	return a.config.Fleet.Proposal(r.Context(), r.PathValue("id"))
}

func (a *api) approveProposal(r *http.Request, body decision) (SelectionAnswer, error) {
	tag, err := expectedTag(r)
	if err != nil {
		return SelectionAnswer{}, err
	}
	if tag == "" {
		return SelectionAnswer{}, problem(http.StatusPreconditionRequired, "precondition", `say If-Match: "DIGEST" with the entity tag of the proposal as you looked at it, which is its member tag`)
	}
	result, err := a.config.Fleet.Approve(r.Context(), r.PathValue("id"), tag, body.Count, actor(r))
	return SelectionAnswer{Receipt: result.Receipt}, err
}

func (a *api) withdrawProposal(r *http.Request, body decision) (fleet.Proposal, error) {
	return a.config.Fleet.Withdraw(r.Context(), r.PathValue("id"), body.Note, actor(r))
}
