package console

import (
	"crypto/rand"
	"net/http"
	"net/url"
	"slices"

	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
)

// rehearsal is the page between an order and its execution.
type rehearsal struct {
	Verb    fleet.Verb
	Device  device
	Plan    *fleet.Plan // of what is for good
	Reason  string
	Note    string
	Tag     string // of the record that the operator has seen
	Key     string // of idempotency: the form sent twice is one order
	Reasons []string
}

// order rehearses what is to be done to a device, and with confirm=yes does it. Both go by the
// record as the operator has seen it.
func (c *console) order(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		c.refuse(w, r, &refusal{Status: http.StatusBadRequest, Title: "Bad Request", Detail: "the form can't be read; go back and send it again"})
		return
	}
	id, verb := r.PathValue("id"), fleet.Verb(r.PathValue("verb"))
	if !slices.Contains([]fleet.Verb{fleet.VerbApprove, fleet.VerbSuspend, fleet.VerbResume, fleet.VerbRevoke, fleet.VerbRetire}, verb) {
		c.refuse(w, r, &refusal{Status: http.StatusNotFound, Title: "Not Found", Detail: "there is no such order"})
		return
	}
	page := rehearsal{
		Verb: verb, Reason: r.PostFormValue("reason"), Note: r.PostFormValue("note"), Tag: r.PostFormValue("tag"), Key: r.PostFormValue("key"), Reasons: reasons(),
	}
	body := map[string]any{"note": page.Note}
	if verb == fleet.VerbRevoke {
		if page.Reason == "" {
			page.Reason = revocation.Unspecified.String()
		}
		body["reason"] = page.Reason
	}
	if r.PostFormValue("confirm") == "yes" {
		c.carryOut(w, r, page, body)
		return
	}
	page.Key = rand.Text()
	_, err := c.ask(r, request{method: http.MethodGet, path: devicePath(id, "")}, &page.Device)
	if err == nil && final(verb) {
		var answer struct {
			Plan *fleet.Plan `json:"plan"`
		}
		_, err = c.ask(r, request{method: http.MethodPost, path: devicePath(id, "/"+string(verb)), body: body, header: map[string]string{"If-Match": page.Tag}}, &answer)
		page.Plan = answer.Plan
	}
	if err != nil {
		c.refuse(w, r, err)
		return
	}
	c.show(w, r, http.StatusOK, "rehearsal", view{Title: string(verb) + " " + id, Page: page})
}

func final(verb fleet.Verb) bool { return verb == fleet.VerbRevoke || verb == fleet.VerbRetire }

// carryOut does it, and leads back to the device.
func (c *console) carryOut(w http.ResponseWriter, r *http.Request, page rehearsal, body map[string]any) {
	id := r.PathValue("id")
	if page.Key == "" || page.Tag == "" {
		c.refuse(w, r, &refusal{Status: http.StatusBadRequest, Title: "Bad Request", Detail: "this is not a form of the console; look at the device again, and give the order there"})
		return
	}
	if final(page.Verb) {
		body["confirm"] = true
	}
	// The receipt of a suspension is the answer itself; a resumption has the device.
	var answer struct {
		ReceiptID string `json:"receipt_id"`
		Receipt   *struct {
			ReceiptID string `json:"receipt_id"`
		} `json:"receipt"`
	}
	_, err := c.ask(r, request{
		method: http.MethodPost, path: devicePath(id, "/"+string(page.Verb)), body: body,
		header: map[string]string{"If-Match": page.Tag, "Idempotency-Key": page.Key},
	}, &answer)
	if err != nil {
		c.refuse(w, r, err)
		return
	}
	if answer.Receipt != nil {
		answer.ReceiptID = answer.Receipt.ReceiptID
	}
	target := "/console/devices/" + url.PathEscape(id)
	if answer.ReceiptID != "" {
		target += "?" + url.Values{"done": {answer.ReceiptID}}.Encode()
	}
	http.Redirect(w, r, target, http.StatusSeeOther)
}

// reasons are those that a revocation may have.
func reasons() (names []string) {
	for r := range revocation.Reason(11) {
		if _, err := revocation.ParseReason(r.String()); err == nil && r.String() != registry.ReasonHold {
			names = append(names, r.String())
		}
	}
	return names
}
