package fleet

import (
	"context"
	"fmt"

	"github.com/fleethub/fleethub/hub/registry"
)

// Leave is an operator's word that a device may come back.
type Leave struct {
	Device     string
	Note       string
	IfRevision string // as of an Order
}

// Allow lets a device that was cut off for good come back, with a new certificate for a
// new key and nothing else: until a station's manifest has that, it stays out. The leave
// is used up by it.
func (f *Fleet) Allow(ctx context.Context, leave Leave, actor Actor) (registry.Device, error) {
	id, note := leave.Device, leave.Note
	if err := validText("note", note); err != nil {
		return registry.Device{}, err
	}
	var d registry.Device
	err := f.write(ctx, func() (err error) {
		record := f.audit(actor, "device.reinstate", id)
		record.Note = note
		if d, err = f.record(ctx, id); err == nil {
			record.Before, record.After = d.State, d.State
			record.Detail = "may come back with a new certificate"
			err = f.unchanged(d, leave.IfRevision)
		}
		if err == nil {
			err = d.Allow(registry.Cause{Actor: actor.Name, Note: note, At: record.Time})
		}
		if err != nil {
			f.refused(ctx, record, err)
			return err
		}
		if err := f.config.Store.Commit(ctx, registry.Change{Devices: []registry.Device{d}, Audit: []registry.AuditRecord{record}}); err != nil {
			return fmt.Errorf("reinstate %s: %w", id, err)
		}
		f.publish(&d)
		return nil
	})
	if err == nil {
		f.judge(&d)
	}
	return d, err
}
