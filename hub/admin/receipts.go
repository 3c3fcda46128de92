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

// ProposalList is every order that waits for a second operator.
type ProposalList struct {
	Proposals []fleet.Proposal `json:"proposals"`
}

// decision is the body of approve and withdraw.
type decision struct {
	Count int    `json:"count,omitempty"` // of approve: how many devices the order is for
	Note  string `json:"note,omitempty"`
}

func (a *api) listReceipts(w http.ResponseWriter, r *http.Request) {
	after := r.FormValue("after")
	if after != "" && identity.ValidID(after) != nil {
		a.fail(w, r, invalid("after=%.80q is not a receipt's ID", after))
		return
	}
	limit, err := number(r, "limit")
	if err != nil {
		a.fail(w, r, err)
		return
	}
	page, next, err := a.config.Fleet.Receipts(r.Context(), after, int(min(limit, 1<<20)))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	if page == nil {
		page = []fleet.Receipt{}
	}
	writeJSON(w, ReceiptPage{Receipts: page, Next: next})
}

func (a *api) showReceipt(w http.ResponseWriter, r *http.Request) {
	receipt, err := a.config.Fleet.Receipt(r.Context(), r.PathValue("id"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, receipt)
}

// signedReceipt serves a receipt as it was signed. One that the hub couldn't sign is
// plain JSON, and says so by its type.
func (a *api) signedReceipt(w http.ResponseWriter, r *http.Request) {
	data, err := a.config.Fleet.SignedReceipt(r.Context(), r.PathValue("id"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", ReceiptMediaType)
	if data[0] == '{' {
		w.Header().Set("Content-Type", "application/json")
	}
	w.Write(data) // a client that is gone needs no answer
}

func (a *api) listProposals(w http.ResponseWriter, r *http.Request) {
	proposals, err := a.config.Fleet.Proposals(r.Context())
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, ProposalList{Proposals: proposals})
}

func (a *api) approveProposal(w http.ResponseWriter, r *http.Request) {
	var body decision
	if err := readJSON(w, r, &body); err != nil {
		a.fail(w, r, err)
		return
	}
	result, err := a.config.Fleet.Approve(r.Context(), r.PathValue("id"), body.Count, actor(r))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, SelectionAnswer{Receipt: result.Receipt})
}

func (a *api) withdrawProposal(w http.ResponseWriter, r *http.Request) {
	var body decision
	if err := readJSON(w, r, &body); err != nil {
		a.fail(w, r, err)
		return
	}
	proposal, err := a.config.Fleet.Withdraw(r.Context(), r.PathValue("id"), body.Note, actor(r))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, proposal)
}
