package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/registry"
)

// maxMetadata bounds the metadata of one device.
const maxMetadata = 32

// Relabel is what an operator wants to know devices by: labels, model, batch and
// metadata of one device or of those that a selector picks. Nobody's admission changes
// by it; what policy allows may.
type Relabel struct {
	Device string            // or
	Select registry.Selector // if Device is empty; it has a term
	Count  int               // as of an Order

	IfRevision string // of the one device, as of an Order

	Labels   map[string]string // to set; an empty value removes the label
	Metadata map[string]string // likewise
	Model    *string           // nil: as it is
	Batch    *string
	Note     string
}

// check returns an error that says what is wrong, whatever the fleet is.
func (r Relabel) check() error {
	if (r.Device == "") == r.Select.Any() {
		return fmt.Errorf("%w: name one device, or a selector with at least one term (id=* is every device)", ErrOrder)
	}
	if len(r.Labels)+len(r.Metadata) == 0 && r.Model == nil && r.Batch == nil {
		return fmt.Errorf("%w: it changes nothing; give a label, metadata, a model or a batch", ErrOrder)
	}
	if len(r.Labels) > maxLabels || len(r.Metadata) > maxMetadata {
		return fmt.Errorf("%w: at most %d labels and %d metadata are kept", ErrText, maxLabels, maxMetadata)
	}
	for _, key := range slices.Sorted(maps.Keys(r.Labels)) {
		if value := r.Labels[key]; identity.ValidID(key) != nil || value != "" && identity.ValidID(value) != nil {
			return fmt.Errorf("%w: label %.80q=%.80q is not made of 1 to 64 letters, digits and (after the first) . _ - on each side", ErrText, key, value)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.Metadata)) {
		if identity.ValidID(key) != nil {
			return fmt.Errorf("%w: the name of metadata %.80q is not made of 1 to 64 letters, digits and (after the first) . _ -", ErrText, key)
		}
		if err := validText("metadata "+key, r.Metadata[key]); err != nil {
			return err
		}
	}
	for what, text := range map[string]*string{"model": r.Model, "batch": r.Batch} {
		if text != nil {
			if err := validText(what, *text); err != nil {
				return err
			}
		}
	}
	return validText("note", r.Note)
}

// Relabel changes what devices are known by, a bounded number of them a transaction, and
// returns how many are changed. A crash leaves the rest as it was: doing it again
// changes those.
func (f *Fleet) Relabel(ctx context.Context, r Relabel, actor Actor) (changed int, err error) {
	if err := r.check(); err != nil {
		return 0, err
	}
	var done []string
	err = f.write(ctx, func() error {
		record := f.audit(actor, "device.label", r.Device)
		record.Note = r.Note
		ids, err := f.labelled(ctx, r)
		if err != nil {
			f.refused(ctx, record, err)
			return err
		}
		for chunk := range slices.Chunk(ids, orderChunk) {
			n, err := f.relabelChunk(ctx, chunk, r, record)
			if err != nil {
				return fmt.Errorf("label %d of %d devices: %w", changed, len(ids), err)
			}
			done, changed = append(done, chunk...), changed+n
		}
		return nil
	})
	if f.config.Changed != nil && len(done) > 0 {
		f.config.Changed(done)
	}
	if err == nil {
		f.config.Log.Info("devices labelled", "devices", changed, "actor", actor.Name)
	}
	return changed, err
}

// RehearseRelabel returns for how many devices a relabelling is, and the first ten, and
// changes nothing.
func (f *Fleet) RehearseRelabel(ctx context.Context, r Relabel) (count int, sample []string, err error) {
	if err := r.check(); err != nil {
		return 0, nil, err
	}
	ids, err := f.chosenBy(ctx, r)
	return len(ids), ids[:min(10, len(ids))], err
}

func (f *Fleet) chosenBy(ctx context.Context, r Relabel) (ids []string, err error) {
	if r.Device != "" {
		d, err := f.record(ctx, r.Device)
		if err == nil {
			err = f.unchanged(d, r.IfRevision)
		}
		return []string{r.Device}, err
	}
	err = f.choose(ctx, r.Select, "", func(facts *registry.Facts) bool {
		ids = append(ids, facts.ID)
		return true
	})
	return ids, err
}

// labelled returns whom a relabelling is for, if their count is what was meant.
func (f *Fleet) labelled(ctx context.Context, r Relabel) ([]string, error) {
	ids, err := f.chosenBy(ctx, r)
	if err != nil || r.Device != "" {
		return ids, err
	}
	switch n := len(ids); {
	case n == 0:
		return nil, fmt.Errorf("%w: %s picks none", ErrNobody, r.Select)
	case n > MaxUncounted && r.Count == 0:
		return nil, fmt.Errorf("%w: %s picks %d devices; say that you mean them all with --count %d", ErrCount, r.Select, n, n)
	case r.Count != 0 && r.Count != n:
		return nil, fmt.Errorf("%w: %s picks %d devices now, not %d", ErrCount, r.Select, n, r.Count)
	}
	return ids, nil
}

func (f *Fleet) relabelChunk(ctx context.Context, ids []string, r Relabel, record registry.AuditRecord) (changed int, err error) {
	records, err := f.config.Store.Records(ctx, ids)
	if err != nil {
		return 0, err
	}
	var change registry.Change
	for _, d := range records {
		before := describe(&d)
		if err := r.apply(&d); err != nil {
			return 0, err
		}
		after := describe(&d)
		if before == after {
			continue
		}
		d.Updated = record.Time
		record.Device, record.Before, record.After = d.ID, d.State, d.State
		record.Detail = clip(before + " → " + after)
		change.Devices, change.Audit = append(change.Devices, d), append(change.Audit, record)
	}
	if len(change.Devices) == 0 {
		return 0, nil
	}
	if err := f.config.Store.Commit(ctx, change); err != nil {
		return 0, err
	}
	for i := range change.Devices {
		f.publish(&change.Devices[i])
	}
	return len(change.Devices), nil
}

func (r Relabel) apply(d *registry.Device) error {
	d.Labels, d.Metadata = merged(d.Labels, r.Labels), merged(d.Metadata, r.Metadata)
	if len(d.Labels) > maxLabels || len(d.Metadata) > maxMetadata {
		return fmt.Errorf("%w: %s would have %d labels and %d metadata, at most %d and %d are kept", ErrText, d.ID, len(d.Labels), len(d.Metadata), maxLabels, maxMetadata)
	}
	if r.Model != nil {
		d.Model = *r.Model
	}
	if r.Batch != nil {
		d.Batch = *r.Batch
	}
	return nil
}

// merged returns a copy of m with what set has in it, and without what it has empty.
func merged(m, set map[string]string) map[string]string {
	next := maps.Clone(m)
	for key, value := range set {
		switch {
		case value == "":
			delete(next, key)
		case next == nil:
			next = map[string]string{key: value}
		default:
			next[key] = value
		}
	}
	return next
}

// describe returns what Relabel changes, as JSON for the audit log.
func describe(d *registry.Device) string {
	text, err := json.Marshal(struct {
		Model    string            `json:"model,omitempty"`
		Batch    string            `json:"batch,omitempty"`
		Labels   map[string]string `json:"labels,omitempty"`
		Metadata map[string]string `json:"metadata,omitempty"`
	}{d.Model, d.Batch, d.Labels, d.Metadata})
	if err != nil {
		return err.Error() // strings and maps of them always encode
	}
	return string(text)
}
