package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/fleethub/fleethub/certs/receipt"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
)

// Proposals returns the orders that wait for a second operator.
func (c *Client) Proposals(ctx context.Context) ([]fleet.Proposal, error) {
	return all(ctx, c, "/v1/proposals", nil, func(l ProposalList) ([]fleet.Proposal, string) { return l.Proposals, l.Next })
}

// Approve carries out another operator's proposal for so many devices. The tag is that of the
// proposal as it was looked at (fleet.Proposal.Tag).
func (c *Client) Approve(ctx context.Context, id, tag string, count int) (fleet.Receipt, error) {
	body, err := json.Marshal(decision{Count: count})
	if err != nil {
		return fleet.Receipt{}, err
	}
	answer, err := exchange[SelectionAnswer](ctx, c, call{
		method: http.MethodPost, path: "/v1/proposals/" + url.PathEscape(id) + "/approve", body: body, contentType: "application/json",
		header: http.Header{"If-Match": {`"` + tag + `"`}}, timeout: importTimeout,
	})
	if err == nil && answer.Receipt == nil {
		err = fmt.Errorf("the hub at %s answered without a receipt", c.base)
	}
	if err != nil {
		return fleet.Receipt{}, err
	}
	return *answer.Receipt, nil
}

// Withdraw removes a proposal.
func (c *Client) Withdraw(ctx context.Context, id, note string) (fleet.Proposal, error) {
	return post[fleet.Proposal](ctx, c, "/v1/proposals/"+url.PathEscape(id)+"/withdraw", decision{Note: note})
}

// Receipts returns a page of receipts after an ID, oldest first.
func (c *Client) Receipts(ctx context.Context, after string, limit int) (ReceiptPage, error) {
	query := url.Values{"limit": {strconv.Itoa(max(limit, 0))}}
	if after != "" {
		query.Set("after", after)
	}
	return get[ReceiptPage](ctx, c, "/v1/receipts", query)
}

// Receipt returns a receipt, or an error that matches ErrNotFound.
func (c *Client) Receipt(ctx context.Context, id string) (fleet.Receipt, error) {
	return get[fleet.Receipt](ctx, c, "/v1/receipts/"+url.PathEscape(id), nil)
}

// SignedReceipt returns a receipt as it was signed, for package certs/receipt.
func (c *Client) SignedReceipt(ctx context.Context, id string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	response, err := c.send(ctx, call{method: http.MethodGet, path: "/v1/receipts/" + url.PathEscape(id) + "/signed"})
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, receipt.MaxSize))
	if err != nil {
		return nil, fmt.Errorf("the answer of the hub at %s can't be read: %w", c.base, err)
	}
	return data, nil
}

// Audit returns a page of the audit log after a record number.
func (c *Client) Audit(ctx context.Context, after uint64, limit int) (AuditPage, error) {
	return c.AuditWhere(ctx, registry.AuditQuery{After: after, Limit: limit})
}

// AuditWhere returns a page of the records that a query picks.
func (c *Client) AuditWhere(ctx context.Context, q registry.AuditQuery) (AuditPage, error) {
	query := url.Values{"after": {strconv.FormatUint(q.After, 10)}, "limit": {strconv.Itoa(max(q.Limit, 0))}}
	for name, value := range map[string]string{
		"device": q.Device, "actor": q.Actor, "action": q.Action, "subject": q.Subject, "outcome": string(q.Outcome), "receipt": q.Receipt,
	} {
		if value != "" {
			query.Set(name, value)
		}
	}
	for name, at := range map[string]time.Time{"since": q.Since, "until": q.Until} {
		if !at.IsZero() {
			query.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	return get[AuditPage](ctx, c, "/v1/audit", query)
}

// AuditHead returns the end of the audit log.
func (c *Client) AuditHead(ctx context.Context) (registry.AuditHead, error) {
	return get[registry.AuditHead](ctx, c, "/v1/audit/head", nil)
}

// VerifyAudit has the hub verify its whole audit log.
func (c *Client) VerifyAudit(ctx context.Context) (fleet.Verification, error) {
	return exchange[fleet.Verification](ctx, c, call{method: http.MethodGet, path: "/v1/audit/verify", timeout: importTimeout})
}

// ExportAudit writes the audit log after a record number to w, as the hub sends it: one
// line a record, and a last one with the log's end, which it returns. What comes is
// verified as ReadAuditExport does it.
func (c *Client) ExportAudit(ctx context.Context, after uint64, w io.Writer, want registry.AuditHead) (end registry.AuditHead, err error) {
	query := url.Values{"after": {strconv.FormatUint(after, 10)}}
	response, err := c.send(ctx, call{method: http.MethodGet, path: "/v1/audit/export", query: query})
	if err != nil {
		return end, err
	}
	defer response.Body.Close()
	return readAuditExport(io.TeeReader(response.Body, w), after, want)
}

// ReadAuditExport verifies an exported audit log: every line and every link from the
// first record on, that the record that want names has that hash (if it is not zero and
// the log is so long), and that it has its end, which it returns. An error that matches
// registry.ErrTampered says what doesn't fit.
func ReadAuditExport(r io.Reader, want registry.AuditHead) (end registry.AuditHead, err error) {
	return readAuditExport(r, 0, want)
}

// readAuditExport is ReadAuditExport for an export from any record on. What was before it
// can't be linked to then.
func readAuditExport(r io.Reader, after uint64, want registry.AuditHead) (registry.AuditHead, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	chain := registry.ChainFrom(registry.AuditHead{Number: after})
	first := after > 0
	for lines.Scan() {
		var line AuditExportLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return chain.Head(), fmt.Errorf("%w: what follows record %d is no line of an export", registry.ErrTampered, chain.Head().Number)
		}
		if line.End != nil {
			if *line.End != chain.Head() && !(first && line.End.Number == after) {
				return chain.Head(), fmt.Errorf("%w: the export says that it ends at record %d, and it has %d", registry.ErrTampered, line.End.Number, chain.Head().Number)
			}
			return chain.Head(), nil
		}
		if line.AuditLine == nil {
			return chain.Head(), fmt.Errorf("%w: what follows record %d is no line of an export", registry.ErrTampered, chain.Head().Number)
		}
		if first { // nothing to hold its link against
			chain, first = registry.ChainFrom(registry.AuditHead{Number: line.Number, Hash: line.Hash}), false
			continue
		}
		if err := chain.Next(*line.AuditLine); err != nil {
			return chain.Head(), err
		}
		if want.Number == line.Number && want.Hash != line.Hash {
			return chain.Head(), fmt.Errorf("%w: record %d is not the one expected", registry.ErrTampered, line.Number)
		}
	}
	if err := lines.Err(); err != nil {
		return chain.Head(), fmt.Errorf("the export can't be read to its end: %w", err)
	}
	return chain.Head(), fmt.Errorf("the export was cut short after record %d; export it again", chain.Head().Number)
}
