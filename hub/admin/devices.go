package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
)

func (a *api) listDevices(w http.ResponseWriter, r *http.Request) {
	after := r.FormValue("after")
	if after != "" && identity.ValidID(after) != nil {
		a.fail(w, r, invalid("after=%.80q is not a device ID", after))
		return
	}
	limit, err := number(r, "limit")
	if err != nil {
		a.fail(w, r, err)
		return
	}
	page, err := a.config.Fleet.Devices(r.Context(), after, int(min(limit, 1<<20)))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	answer := DevicePage{Devices: make([]Device, 0, len(page.Devices)), Next: page.Next}
	for _, d := range page.Devices {
		for i := range d.Certificates {
			d.Certificates[i].DER = nil
		}
		answer.Devices = append(answer.Devices, a.live(d))
	}
	writeJSON(w, answer)
}

func (a *api) showDevice(w http.ResponseWriter, r *http.Request) {
	d, err := a.config.Fleet.Device(r.Context(), r.PathValue("id"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	answer := a.live(d)
	if account, ok := a.config.Handshakes(d.ID); ok {
		answer.Handshakes = &account
	}
	writeJSON(w, answer)
}

func (a *api) suspendDevice(w http.ResponseWriter, r *http.Request) {
	var body change
	if err := readJSON(w, r, &body); err != nil {
		a.fail(w, r, err)
		return
	}
	receipt, err := a.config.Fleet.Suspend(r.Context(), r.PathValue("id"), body.Reason, actor(r))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, receipt)
}

func (a *api) resumeDevice(w http.ResponseWriter, r *http.Request) {
	var body change
	if err := readJSON(w, r, &body); err != nil {
		a.fail(w, r, err)
		return
	}
	d, err := a.config.Fleet.Resume(r.Context(), r.PathValue("id"), body.Reason, actor(r))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, a.live(d))
}

func (a *api) revokeDevice(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	var body change
	if err := readJSON(w, r, &body); err != nil {
		a.fail(w, r, err)
		return
	}
	reason, err := revocation.ParseReason(body.Reason)
	if err != nil {
		a.fail(w, r, invalid("%v", err))
		return
	}
	if !body.Confirm {
		plan, err := a.config.Fleet.PlanRevoke(r.Context(), id, reason)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		writeJSON(w, Revocation{Plan: &RevokePlan{Plan: plan, Session: a.session(id)}})
		return
	}
	receipt, err := a.config.Fleet.Revoke(r.Context(), id, reason, actor(r))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, Revocation{Receipt: &receipt})
}

func (a *api) importManifest(w http.ResponseWriter, r *http.Request) {
	if err := contentType(r, ManifestMediaType); err != nil {
		a.fail(w, r, err)
		return
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	if err != nil {
		a.fail(w, r, bodyProblem(err))
		return
	}
	report, err := a.config.Fleet.Import(r.Context(), data, actor(r))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, report)
}

func (a *api) listAudit(w http.ResponseWriter, r *http.Request) {
	after, err := number(r, "after")
	if err != nil {
		a.fail(w, r, err)
		return
	}
	limit, err := number(r, "limit")
	if err != nil {
		a.fail(w, r, err)
		return
	}
	records, err := a.config.Fleet.Audit(r.Context(), after, int(min(limit, 1<<20)))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	answer := AuditPage{Records: records}
	if len(records) == 0 {
		answer.Records = []registry.AuditRecord{}
	} else {
		answer.Next = records[len(records)-1].Number
	}
	writeJSON(w, answer)
}

func (a *api) live(d registry.Device) Device { return Device{Device: d, Session: a.session(d.ID)} }

func (a *api) session(id string) *Session {
	if s, ok := a.config.Live(id); ok {
		return &s
	}
	return nil
}

func invalid(format string, args ...any) error {
	return problem(http.StatusBadRequest, "invalid", fmt.Sprintf(format, args...))
}

// number reads a query parameter that counts; absent is 0.
func number(r *http.Request, name string) (uint64, error) {
	text := r.FormValue(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, invalid("%s=%.40q is not a count", name, text)
	}
	return n, nil
}

func contentType(r *http.Request, want string) error {
	if got, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || got != want {
		return problem(http.StatusUnsupportedMediaType, "media-type", "the content type must be "+want)
	}
	return nil
}

// readJSON reads the body strictly: one object, known members, nothing after it. An
// empty body is the zero value.
func readJSON(w http.ResponseWriter, r *http.Request, into any) error {
	if r.ContentLength == 0 {
		return nil
	}
	if err := contentType(r, "application/json"); err != nil {
		return err
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return bodyProblem(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return invalid("something follows the JSON object in the body")
	}
	return nil
}

func bodyProblem(err error) error {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return problem(http.StatusRequestEntityTooLarge, "too-large", fmt.Sprintf("the body has more than the %d bytes allowed", tooLarge.Limit))
	}
	return invalid("the body can't be read: %v", err)
}

func writeJSON(w http.ResponseWriter, answer any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(answer) // a client that is gone needs no answer
}
