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

func (a *api) listDevices(r *http.Request) (DevicePage, error) {
	after := r.FormValue("after")
	if after != "" && identity.ValidID(after) != nil {
		return DevicePage{}, invalid("after=%.80q is not a device ID", after)
	}
	limit, err := number(r, "limit")
	if err != nil {
		return DevicePage{}, err
	}
	s, err := selector(r.FormValue("select"))
	if err != nil {
		return DevicePage{}, err
	}
	page, err := a.config.Fleet.Devices(r.Context(), s, after, int(min(limit, 1<<20)))
	if err != nil {
		return DevicePage{}, err
	}
	answer := DevicePage{Devices: make([]Device, 0, len(page.Devices)), Next: page.Next}
	for _, d := range page.Devices {
		d.History = nil // the answer for one device has it
		answer.Devices = append(answer.Devices, a.live(d))
	}
	return answer, nil
}

func (a *api) showDevice(r *http.Request) (Device, error) {
	d, err := a.config.Fleet.Device(r.Context(), r.PathValue("id"))
	if err != nil {
		return Device{}, err
	}
	answer := a.live(d)
	if account, ok := a.config.Handshakes(d.ID); ok {
		answer.Handshakes = &account
	}
	return answer, nil
}

func (a *api) suspendDevice(r *http.Request, body change) (*fleet.Receipt, error) {
	return a.execute(r, fleet.Order{ID: body.ID, Verb: fleet.VerbSuspend, Note: body.words()})
}

func (a *api) resumeDevice(r *http.Request, body change) (Device, error) {
	if _, err := a.execute(r, fleet.Order{ID: body.ID, Verb: fleet.VerbResume, Note: body.words()}); err != nil {
		return Device{}, err
	}
	d, err := a.config.Fleet.Device(r.Context(), r.PathValue("id"))
	return a.live(d), err
}

func (a *api) approveDevice(r *http.Request, body change) (Device, error) {
	if _, err := a.execute(r, fleet.Order{ID: body.ID, Verb: fleet.VerbApprove, Note: body.words()}); err != nil {
		return Device{}, err
	}
	d, err := a.config.Fleet.Device(r.Context(), r.PathValue("id"))
	return a.live(d), err
}

// end serves the verbs that take a device out for good, each with its dry run.
func (a *api) end(verb fleet.Verb) func(*http.Request, change) (Revocation, error) {
	return func(r *http.Request, body change) (Revocation, error) {
		order := fleet.Order{ID: body.ID, Verb: verb, Device: r.PathValue("id"), Note: body.Note, By: body.By}
		var err error
		if order.IfRevision, err = expectedRevision(r); err != nil {
			return Revocation{}, err
		}
		if verb == fleet.VerbRevoke {
			if order.Reason, err = revocation.ParseReason(body.Reason); err != nil {
				return Revocation{}, invalid("%v", err)
			}
		} else if body.Reason != "" {
			return Revocation{}, invalid("reason is for revoke; say why in note")
		}
		if !body.Confirm {
			plan, err := a.config.Fleet.Plan(r.Context(), order)
			return Revocation{Plan: &RevokePlan{Plan: plan, Session: a.session(order.Device)}}, err
		}
		receipt, err := a.execute(r, order)
		return Revocation{Receipt: receipt}, err
	}
}

// execute carries out an order for the device in the path.
func (a *api) execute(r *http.Request, o fleet.Order) (*fleet.Receipt, error) {
	o.Device = r.PathValue("id")
	var err error
	if o.IfRevision, err = expectedRevision(r); err != nil {
		return nil, err
	}
	o.ID = orderID(r, o.ID)
	result, err := a.config.Fleet.Execute(r.Context(), o, actor(r))
	return result.Receipt, err
}

// reinstateDevice lets a device that was cut off for good come back with a new
// certificate.
func (a *api) reinstateDevice(r *http.Request, body change) (Reinstatement, error) {
	var d registry.Device
	revision, err := expectedRevision(r)
	if err != nil {
		return Reinstatement{}, err
	}
	if body.Confirm {
		d, err = a.config.Fleet.Allow(r.Context(), fleet.Leave{Device: r.PathValue("id"), Note: body.words(), IfRevision: revision}, actor(r))
	} else if d, err = a.config.Fleet.Device(r.Context(), r.PathValue("id")); err == nil && !d.State.Final() {
		err = &registry.TransitionError{ID: d.ID, From: d.State, To: registry.StateRegistered}
	} else if err == nil && revision != "" && d.Revision() != revision {
		err = fmt.Errorf("%w: device %s is %s, not as you have seen it", registry.ErrChanged, d.ID, d.State)
	}
	return Reinstatement{DryRun: !body.Confirm, Device: a.live(d)}, err
}

func (a *api) importManifest(r *http.Request, data []byte) (fleet.ImportReport, error) {
	return a.config.Fleet.Import(r.Context(), data, actor(r))
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
