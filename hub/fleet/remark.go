package fleet

import (
	"context"

	"github.com/fleethub/fleethub/hub/registry"
)

// Remark is what was noticed about a device and is no change of it, such as an anomaly.
type Remark struct {
	Device string
	Detail string
}

// Remark appends remarks to the audit log, all of them or none.
func (f *Fleet) Remark(ctx context.Context, actor Actor, action string, remarks ...Remark) error {
	records := make([]registry.AuditRecord, len(remarks))
	for i, r := range remarks {
		records[i] = f.audit(actor, action, r.Device)
		records[i].Detail = clip(r.Detail)
	}
	return f.append(ctx, records...)
}
