package fleet

import "context"

// Remark appends to the audit log what was noticed about a device and is no change of
// it, such as an anomaly.
func (f *Fleet) Remark(ctx context.Context, actor Actor, action, device, detail string) error {
	record := f.audit(actor, action, device)
	record.Detail = clip(detail)
	return f.append(ctx, record)
}
