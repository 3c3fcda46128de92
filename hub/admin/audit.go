package admin

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
)

// AuditPage is one page of the audit log, oldest first. Next is the after of the
// following page, 0 at the log's end. With a filter a page may be empty and still have a
// next one.
type AuditPage = registry.AuditPage

// exportChunk is how many lines of the audit log are read in one transaction.
const exportChunk = 2000

func (a *api) listAudit(r *http.Request) (AuditPage, error) {
	q, err := auditQuery(r)
	if err != nil {
		return AuditPage{}, err
	}
	return a.config.Fleet.Audit(r.Context(), q)
}

func auditQuery(r *http.Request) (q registry.AuditQuery, err error) {
	if q.After, err = number(r, "after"); err != nil {
		return q, err
	}
	limit, err := number(r, "limit")
	if err != nil {
		return q, err
	}
	q.Limit = int(min(limit, 1<<20))
	q.Device, q.Actor, q.Action, q.Subject = r.FormValue("device"), r.FormValue("actor"), r.FormValue("action"), r.FormValue("subject")
	q.Receipt = r.FormValue("receipt")
	switch q.Outcome = registry.Outcome(r.FormValue("outcome")); q.Outcome {
	case "", registry.OutcomeDone, registry.OutcomeRefused, registry.OutcomeRequested:
	default:
		return q, invalid("outcome=%.40q is none of done, refused, requested", q.Outcome)
	}
	for name, into := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		if text := r.FormValue(name); text != "" {
			if *into, err = time.Parse(time.RFC3339, text); err != nil {
				return q, invalid("%s=%.40q is no time such as 2026-03-01T08:00:00Z", name, text)
			}
		}
	}
	return q, nil
}

func (a *api) auditHead(r *http.Request) (registry.AuditHead, error) {
	return a.config.Fleet.AuditHead(r.Context())
}

func (a *api) verifyAudit(r *http.Request) (fleet.Verification, error) {
	return a.config.Fleet.VerifyAudit(r.Context())
}

// AuditExportLine is one line of an exported audit log: a record as it is stored, or, as
// the last line, the log's end.
type AuditExportLine struct {
	*registry.AuditLine
	End *registry.AuditHead `json:"end,omitempty"`
}

// exportAudit streams the audit log, one JSON object a line, each with its hash. A
// stream without its last line was cut short.
func (a *api) exportAudit(w http.ResponseWriter, r *http.Request) {
	after, err := number(r, "after")
	if err != nil {
		a.fail(w, r, err)
		return
	}
	control, encoder := http.NewResponseController(w), json.NewEncoder(w)
	w.Header().Set("Content-Type", streamMediaType)
	end := registry.AuditHead{Number: after}
	for {
		var lines []registry.AuditLine
		err := a.config.Fleet.AuditLines(r.Context(), end.Number, func(line registry.AuditLine) bool {
			line.Record = append(json.RawMessage(nil), line.Record...)
			lines = append(lines, line)
			return len(lines) < exportChunk
		})
		if err != nil {
			a.config.Log.Error("API request failed", "method", r.Method, "path", r.URL.Path, "error", err)
			return // the missing last line tells
		}
		if len(lines) == 0 {
			break
		}
		if err := control.SetWriteDeadline(time.Now().Add(writeDeadline)); err != nil {
			return
		}
		for i := range lines {
			if encoder.Encode(AuditExportLine{AuditLine: &lines[i]}) != nil {
				return
			}
			end = registry.AuditHead{Number: lines[i].Number, Hash: lines[i].Hash}
		}
	}
	encoder.Encode(AuditExportLine{End: &end})
}
