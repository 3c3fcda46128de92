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

func (a *api) labelDevice(r *http.Request, body LabelRequest) (LabelAnswer, error) {
	if body.Select != "" || body.Count != 0 || body.Confirm {
		return LabelAnswer{}, invalid("select, count and confirm are for /v1/selections/label")
	}
	relabel := body.relabel()
	relabel.Device = r.PathValue("id")
	var err error
	if relabel.IfRevision, err = expectedRevision(r); err != nil {
		return LabelAnswer{}, err
	}
	changed, err := a.config.Fleet.Relabel(r.Context(), relabel, actor(r))
	return LabelAnswer{Changed: changed}, err
}

func (a *api) labelSelection(r *http.Request, body LabelRequest) (answer LabelAnswer, err error) {
	relabel := body.relabel()
	if relabel.Select, err = selector(body.Select); err != nil {
		return answer, err
	}
	if body.Confirm {
		answer.Changed, err = a.config.Fleet.Relabel(r.Context(), relabel, actor(r))
		return answer, err
	}
	answer.DryRun = true
	answer.Changed, answer.Sample, err = a.config.Fleet.RehearseRelabel(r.Context(), relabel)
	return answer, err
}
