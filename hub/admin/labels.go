package admin

import (
	"net/http"

	"github.com/fleethub/fleethub/hub/fleet"
)

// LabelRequest says what devices are to be known by. An empty value removes a label or
// metadata.
type LabelRequest struct {
	Labels   map[string]string `json:"labels,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Model    *string           `json:"model,omitempty"`
	Batch    *string           `json:"batch,omitempty"`
	Note     string            `json:"note,omitempty"`

	// For a selection only.
	Select  string `json:"select,omitempty"`
	Confirm bool   `json:"confirm,omitempty"` // without it, the answer is a plan
	Count   int    `json:"count,omitempty"`   // how many devices are meant; required above 100
}

// LabelAnswer is the answer: how many devices were changed, or would be looked at.
type LabelAnswer struct {
	DryRun  bool     `json:"dry_run,omitempty"`
	Changed int      `json:"changed"`          // of a dry run: devices that are picked
	Sample  []string `json:"sample,omitempty"` // of a dry run: the first ten
}

func (b LabelRequest) relabel() fleet.Relabel {
	return fleet.Relabel{Labels: b.Labels, Metadata: b.Metadata, Model: b.Model, Batch: b.Batch, Note: b.Note, Count: b.Count}
}

func (a *api) labelDevice(w http.ResponseWriter, r *http.Request) {
	var body LabelRequest
	err := readJSON(w, r, &body)
	if err == nil && (body.Select != "" || body.Count != 0 || body.Confirm) {
		err = invalid("select, count and confirm are for /v1/selections/label")
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	relabel := body.relabel()
	relabel.Device = r.PathValue("id")
	changed, err := a.config.Fleet.Relabel(r.Context(), relabel, actor(r))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, LabelAnswer{Changed: changed})
}

func (a *api) labelSelection(w http.ResponseWriter, r *http.Request) {
	var body LabelRequest
	if err := readJSON(w, r, &body); err != nil {
		a.fail(w, r, err)
		return
	}
	relabel := body.relabel()
	var err error
	if relabel.Select, err = selector(body.Select); err != nil {
		a.fail(w, r, err)
		return
	}
	var answer LabelAnswer
	if body.Confirm {
		answer.Changed, err = a.config.Fleet.Relabel(r.Context(), relabel, actor(r))
	} else {
		answer.DryRun = true
		answer.Changed, answer.Sample, err = a.config.Fleet.RehearseRelabel(r.Context(), relabel)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, answer)
}
