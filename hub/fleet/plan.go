package fleet

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
)

// Plan is what an order for one device would do. Nothing has been changed.
type Plan struct {
	DryRun    bool           `json:"dry_run"` // always true
	Verb      Verb           `json:"verb"`
	ID        string         `json:"id"`
	State     registry.State `json:"state"`
	Model     string         `json:"model,omitempty"`
	Batch     string         `json:"batch,omitempty"`
	Station   string         `json:"station,omitempty"`
	Serials   []string       `json:"serials"` // certificates that would be revoked
	Reason    string         `json:"reason"`
	Already   bool           `json:"already,omitempty"` // it is done; nothing would change
	FirstSeen time.Time      `json:"first_seen,omitzero"`
	LastSeen  time.Time      `json:"last_seen,omitzero"`
}

// PlanRevoke returns what Revoke would do and changes nothing.
func (f *Fleet) PlanRevoke(ctx context.Context, id string, reason revocation.Reason) (Plan, error) {
	return f.Plan(ctx, Order{Verb: VerbRevoke, Device: id, Reason: reason})
}

// Plan returns what Execute would do with an order for one device, and changes nothing.
func (f *Fleet) Plan(ctx context.Context, o Order) (Plan, error) {
	if err := o.check(); err != nil {
		return Plan{}, err
	}
	d, err := f.Device(ctx, o.Device)
	if err == nil {
		err = f.unchanged(d, o.IfRevision)
	}
	if err != nil {
		return Plan{}, err
	}
	p := Plan{
		DryRun: true, Verb: o.Verb, ID: d.ID, State: d.State, Model: d.Model, Batch: d.Batch, Station: d.Station, Serials: []string{}, Reason: o.reason(),
		Already: d.State == verbs[o.Verb].state, FirstSeen: d.FirstSeen, LastSeen: d.LastSeen,
	}
	if !p.Already && !o.Verb.legal(d.State) {
		return Plan{}, &registry.TransitionError{ID: d.ID, From: d.State, To: verbs[o.Verb].state}
	}
	if !verbs[o.Verb].state.Final() {
		return p, nil
	}
	for _, c := range d.Certificates {
		if c.Revoked.IsZero() {
			p.Serials = append(p.Serials, c.Serial)
		}
	}
	return p, nil
}

// BlastRadius is what an order for those that a selector picks would do. Nothing has
// been changed.
type BlastRadius struct {
	DryRun      bool                   `json:"dry_run"` // always true
	Verb        Verb                   `json:"verb"`
	Select      string                 `json:"select"`
	Reason      string                 `json:"reason,omitempty"`
	Count       int                    `json:"count"`             // devices that would change
	Already     int                    `json:"already,omitempty"` // to whom it was done before
	Barred      int                    `json:"barred,omitempty"`  // to whom it can't be done
	Usable      int                    `json:"usable"`            // certificates that they may present now
	SeenLately  int                    `json:"seen_lately"`       // within the last 24 hours
	States      map[registry.State]int `json:"states"`
	Models      []Share                `json:"models"` // the largest ten of each
	Batches     []Share                `json:"batches"`
	Stations    []Share                `json:"stations"`
	Protections []Share                `json:"protections"`
	Sample      []string               `json:"sample"`               // the first ten
	MustCount   bool                   `json:"must_count,omitempty"` // the order needs the count
	FourEyes    bool                   `json:"four_eyes,omitempty"`  // it needs a second operator
	IDs         []string               `json:"-"`                    // all who would change, in order
}

// Share is how many devices have something in common.
type Share struct {
	Name    string `json:"name"`
	Devices int    `json:"devices"`
}

// Rehearse returns what Execute would do with an order for those that its selector
// picks, and changes nothing.
func (f *Fleet) Rehearse(ctx context.Context, o Order) (BlastRadius, error) {
	if err := o.check(); err != nil {
		return BlastRadius{}, err
	}
	b := BlastRadius{DryRun: true, Verb: o.Verb, Select: o.Select.String(), Reason: o.reason(), States: make(map[registry.State]int), Sample: []string{}}
	var models, batches, stations, protections tally
	lately := f.config.Now().Add(-24 * time.Hour)
	c, err := f.chooseFor(ctx, o.Select, o.Verb, func(facts *registry.Facts) {
		a := facts.Attributes
		b.States[facts.State]++
		b.Usable += len(facts.Usable)
		if facts.LastSeen.After(lately) {
			b.SeenLately++
		}
		models.add(a.Model)
		batches.add(a.Batch)
		stations.add(a.Station)
		protections.add(a.Protection)
	})
	if err != nil {
		return BlastRadius{}, err
	}
	b.IDs, b.Count, b.Already, b.Barred = c.ids, len(c.ids), c.already, c.barred
	b.Sample = append(b.Sample, c.ids[:min(10, len(c.ids))]...)
	b.Models, b.Batches, b.Stations, b.Protections = models.largest(), batches.largest(), stations.largest(), protections.largest()
	b.MustCount, b.FourEyes = b.Count > MaxUncounted, f.needsFourEyes(o.Verb, b.Count)
	return b, nil
}

// tally counts names.
type tally map[string]int

func (t *tally) add(name string) {
	if *t == nil {
		*t = make(tally)
	}
	(*t)[name]++
}

// largest returns the ten names with the most devices.
func (t tally) largest() []Share {
	shares := make([]Share, 0, len(t))
	for name, n := range t {
		shares = append(shares, Share{name, n})
	}
	slices.SortFunc(shares, func(a, b Share) int {
		return cmp.Or(cmp.Compare(b.Devices, a.Devices), strings.Compare(a.Name, b.Name))
	})
	return shares[:min(10, len(shares))]
}
