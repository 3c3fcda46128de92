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
func (f *Fleet) append(ctx context.Context, records ...registry.AuditRecord) error {
	err := f.config.Store.Commit(context.WithoutCancel(ctx), registry.Change{Audit: records})
	if err != nil {
		for _, r := range records {
			f.config.Log.Error("an audit record could not be written", "action", r.Action, "subject", r.Subject, "outcome", r.Outcome, "actor", r.Actor, "error", err)
		}
	}
	return err
}

// Audit returns the audit records that a query picks, oldest first. Its limit is that of
// Devices.
func (f *Fleet) Audit(ctx context.Context, q registry.AuditQuery) (registry.AuditPage, error) {
	q.Limit = pageSize(q.Limit)
	return f.config.Store.Audit(ctx, q)
}

// AuditHead returns the end of the audit log: whoever keeps it elsewhere can prove later
// that nothing before it was changed.
func (f *Fleet) AuditHead(ctx context.Context) (registry.AuditHead, error) {
	return f.config.Store.AuditHead(ctx)
}

// AuditLines calls visit with each line of the audit log after a number, as stored, until
// it returns false. It holds a read transaction: visit must be quick, and copy what it
// keeps.
func (f *Fleet) AuditLines(ctx context.Context, after uint64, visit func(registry.AuditLine) bool) error {
	return f.config.Store.AuditLines(ctx, after, visit)
}

// Verification is what VerifyAudit found: a log that is as it was written.
type Verification struct {
	Head     registry.AuditHead `json:"head"`
	Receipts int                `json:"receipts"` // whose note of the log's end at their time fits it
}

// VerifyAudit reads the whole audit log and checks every link of it, against the heads
// that receipts have noted, too. An error that matches registry.ErrTampered says what
// doesn't fit. Who can write the store can write a log that fits itself: hold the head,
// or a receipt, that was kept elsewhere against it.
func (f *Fleet) VerifyAudit(ctx context.Context) (Verification, error) {
	noted := make(map[uint64][]Receipt)
	v := Verification{}
	for after := ""; ; {
		page, next, err := f.Receipts(ctx, after, maxPage)
		if err != nil {
			return v, err
		}
		for _, r := range page {
			if r.AuditHead != nil {
				noted[r.AuditHead.Number] = append(noted[r.AuditHead.Number], r)
				v.Receipts++
			}
		}
		if after = next; after == "" {
			break
		}
	}
	var chain registry.AuditChain
	var broken error
	err := f.config.Store.AuditLines(ctx, 0, func(line registry.AuditLine) bool {
		if broken = chain.Next(line); broken != nil {
			return false
		}
		for _, r := range noted[line.Number] {
			if r.AuditHead.Hash != line.Hash {
				broken = fmt.Errorf("%w: record %d is not the one that receipt %s has noted", registry.ErrTampered, line.Number, r.ReceiptID)
				return false
			}
		}
		delete(noted, line.Number)
		return true
	})
	if err = errors.Join(err, broken); err != nil {
		return v, err
	}
	v.Head = chain.Head()
	for number, receipts := range noted {
		return v, fmt.Errorf("%w: it ends at record %d, and receipt %s has noted number %d", registry.ErrTampered, v.Head.Number, receipts[0].ReceiptID, number)
	}
	head, err := f.config.Store.AuditHead(ctx)
	if err != nil {
		return v, err
	}
	if head.Number < v.Head.Number {
		return v, fmt.Errorf("%w: its end has changed while it was read", registry.ErrTampered)
	}
	return v, nil
}
