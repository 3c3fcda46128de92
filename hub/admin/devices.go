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
	"github.com/fleethub/fleethub/hub/fleet"
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
	s, err := selector(r.FormValue("select"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	page, err := a.config.Fleet.Devices(r.Context(), s, after, int(min(limit, 1<<20)))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	answer := DevicePage{Devices: make([]Device, 0, len(page.Devices)), Next: page.Next}
	for _, d := range page.Devices {
		d.History = nil // the answer for one device has it
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
	a.execute(w, r, fleet.Order{ID: body.ID, Verb: fleet.VerbSuspend, Note: body.words()}, func(receipt *fleet.Receipt) any { return receipt })
}

func (a *api) resumeDevice(w http.ResponseWriter, r *http.Request) {
	var body change
	if err := readJSON(w, r, &body); err != nil {
		a.fail(w, r, err)
		return
	}
	d, err := a.config.Fleet.Resume(r.Context(), r.PathValue("id"), body.words(), actor(r))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, a.live(d))
}

// end serves the verbs that take a device out for good, each with its dry run.
func (a *api) end(verb fleet.Verb) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var body change
		if err := readJSON(w, r, &body); err != nil {
			a.fail(w, r, err)
			return
		}
		order := fleet.Order{ID: body.ID, Verb: verb, Device: r.PathValue("id"), Note: body.Note, By: body.By}
		if verb == fleet.VerbRevoke {
			var err error
			if order.Reason, err = revocation.ParseReason(body.Reason); err != nil {
				a.fail(w, r, invalid("%v", err))
				return
			}
		} else if body.Reason != "" {
			a.fail(w, r, invalid("reason is for revoke; say why in note"))
			return
		}
		if !body.Confirm {
			plan, err := a.config.Fleet.Plan(r.Context(), order)
			if err != nil {
				a.fail(w, r, err)
				return
			}
			writeJSON(w, Revocation{Plan: &RevokePlan{Plan: plan, Session: a.session(order.Device)}})
			return
		}
		a.execute(w, r, order, func(receipt *fleet.Receipt) any { return Revocation{Receipt: receipt} })
	}
}

// execute carries out an order for the device in the path, and answers with what answer
// makes of the receipt.
func (a *api) execute(w http.ResponseWriter, r *http.Request, o fleet.Order, answer func(*fleet.Receipt) any) {
	o.Device = r.PathValue("id")
	result, err := a.config.Fleet.Execute(r.Context(), o, actor(r))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, answer(result.Receipt))
}

// reinstateDevice lets a device that was cut off for good come back with a new
// certificate.
func (a *api) reinstateDevice(w http.ResponseWriter, r *http.Request) {
	var body change
	if err := readJSON(w, r, &body); err != nil {
		a.fail(w, r, err)
		return
	}
	var d registry.Device
	var err error
	if body.Confirm {
		d, err = a.config.Fleet.Allow(r.Context(), r.PathValue("id"), body.words(), actor(r))
	} else if d, err = a.config.Fleet.Device(r.Context(), r.PathValue("id")); err == nil && !d.State.Final() {
		err = &registry.TransitionError{ID: d.ID, From: d.State, To: registry.StateRegistered}
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, Reinstatement{DryRun: !body.Confirm, Device: a.live(d)})
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
