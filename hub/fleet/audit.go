package fleet

import (
	"context"
	"errors"
	"fmt"

	"github.com/fleethub/fleethub/hub/registry"
)

// ErrNotAudited is in the chain of the error of a change that was made and is missing
// in the audit log.
var ErrNotAudited = errors.New("the audit log can't be written")

// Note is what the audit log says of a change to something that is no device record.
type Note struct {
	Action  string // such as issuer.remove
	Subject string // such as issuer bench-1
	Reason  string // the operator's, a line of text
}

// Audited makes a change that can't be one transaction with its audit record, such as
// one to files: the request is recorded, the change made, and its outcome recorded,
// with the detail that do returns. A reason that is no line of text is refused, and
// nothing done. A log that can't be written stops nothing, for do may be what cuts a
// thief off: the error then matches ErrNotAudited.
func (f *Fleet) Audited(ctx context.Context, actor Actor, n Note, do func() (detail string, err error)) error {
	if err := validText("reason", n.Reason); err != nil {
		return err
	}
	record := f.audit(actor, n.Action, "")
	record.Subject, record.Reason, record.Outcome = clip(n.Subject), n.Reason, registry.OutcomeRequested
	requested := f.append(ctx, record)
	detail, err := do()
	record.Time, record.Outcome, record.Detail = f.config.Now(), registry.OutcomeDone, clip(detail)
	if err != nil {
		record.Outcome, record.Detail = registry.OutcomeRefused, clip(err.Error())
	}
	unwritten := errors.Join(requested, f.append(ctx, record))
	if err != nil {
		return err
	}
	if unwritten != nil {
		return fmt.Errorf("%s %s was done, but %w: %w", n.Action, n.Subject, ErrNotAudited, unwritten)
	}
	return nil
}

// append writes one audit record. A caller that has gone away doesn't stop it.
func (f *Fleet) append(ctx context.Context, record registry.AuditRecord) error {
	err := f.config.Store.Commit(context.WithoutCancel(ctx), registry.Change{Audit: []registry.AuditRecord{record}})
	if err != nil {
		f.config.Log.Error("an audit record could not be written", "action", record.Action, "subject", record.Subject, "outcome", record.Outcome, "actor", record.Actor, "error", err)
	}
	return err
}
