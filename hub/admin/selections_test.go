package admin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
)

func (h *hub) admin(name string) *Client {
	return h.client(h.pki.Operator(name, certtest.WithOU("admin")))
}

func TestSelectionIsPlannedThenCarriedOut(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	c := h.admin("ann")
	ids := []string{"online"}
	for i := range 5 {
		ids = append(ids, fmt.Sprint("pi-", i))
	}
	if _, err := c.Import(t.Context(), h.manifest(ids...)); err != nil {
		t.Fatal(err)
	}
	page, err := c.Select(t.Context(), "id=pi-*,model=pi4", "pi-1", 2)
	if err != nil || len(page.Devices) != 2 || page.Devices[0].ID != "pi-2" || page.Next != "pi-3" || page.Devices[0].History != nil || page.Devices[0].Certificates[0].Standing != registry.StandingUsable {
		t.Fatalf("page = %+v, %v", page, err)
	}
	request := SelectionRequest{Select: "id=online|pi-1|pi-2", Reason: "keyCompromise", Note: "stolen"}
	answer, err := c.Order(t.Context(), fleet.VerbRevoke, request)
	if err != nil || answer.Plan == nil || !answer.Plan.DryRun || answer.Plan.Count != 3 || answer.Plan.Online != 1 || answer.Receipt != nil || h.state("pi-1") != registry.StateRegistered {
		t.Fatalf("plan = %+v, %v", answer.Plan, err)
	}
	request.Confirm, request.ID = true, "order-1"
	for round := range 2 { // repeated, it is not done again
		answer, err = c.Order(t.Context(), fleet.VerbRevoke, request)
		if err != nil || answer.Receipt == nil || answer.Receipt.Count != 3 || answer.Receipt.SessionsClosed != 1 || answer.Receipt.ReceiptID != "order-1" || h.state("pi-1") != registry.StateRevoked || h.closed.Load() != 1 {
			t.Fatalf("round %d: receipt = %+v, %v", round, answer.Receipt, err)
		}
	}
	receipts, err := c.Receipts(t.Context(), "", 0)
	if err != nil || len(receipts.Receipts) != 1 || receipts.Receipts[0].Devices != nil {
		t.Fatalf("receipts = %+v, %v", receipts, err)
	}
	receipt, err := c.Receipt(t.Context(), "order-1")
	if err != nil || len(receipt.Devices) != 3 || receipt.Actor != "spiffe://fleet.example/operator/ann" || !strings.HasPrefix(receipt.Address, "127.0.0.1:") {
		t.Fatalf("receipt = %+v, %v", receipt, err)
	}
	if data, err := c.SignedReceipt(t.Context(), "order-1"); err != nil || data[0] != '{' { // this hub signs nothing
		t.Fatalf("signed = %.40s, %v", data, err)
	}
	if answer, err := c.Order(t.Context(), fleet.VerbSuspend, SelectionRequest{Select: "state=registered", Confirm: true, Count: 3}); err != nil || answer.Receipt.Count != 3 {
		t.Fatalf("suspend = %+v, %v", answer, err)
	}
	if answer, err := c.Order(t.Context(), fleet.VerbResume, SelectionRequest{Select: "state=suspended", Confirm: true}); err != nil || answer.Receipt.Count != 3 {
		t.Fatalf("resume = %+v, %v", answer, err)
	}
	// Lastly one at a time.
	retired, err := c.End(t.Context(), EndRequest{Device: "pi-0", Verb: fleet.VerbRetire, Note: "worn"})
	if err != nil || retired.State != registry.StateRetired {
		t.Fatalf("retire = %+v, %v", retired, err)
	}
	plan, err := c.PlanEnd(t.Context(), EndRequest{Device: "pi-3", Verb: fleet.VerbReplace, By: "pi-4"})
	if err != nil || !plan.DryRun || plan.Verb != fleet.VerbReplace {
		t.Fatalf("plan = %+v, %v", plan, err)
	}
	if replaced, err := c.End(t.Context(), EndRequest{Device: "pi-3", Verb: fleet.VerbReplace, By: "pi-4"}); err != nil || replaced.State != registry.StateReplaced {
		t.Fatalf("replace = %+v, %v", replaced, err)
	}
	if answer, err := c.Reinstate(t.Context(), "pi-0", "", false); err != nil || !answer.DryRun || answer.Device.Permit != nil {
		t.Fatalf("reinstate = %+v, %v", answer, err)
	}
	if answer, err := c.Reinstate(t.Context(), "pi-0", "repaired", true); err != nil || answer.DryRun || answer.Device.Permit == nil || answer.Device.State != registry.StateRetired {
		t.Fatalf("reinstate = %+v, %v", answer, err)
	}
	d, err := c.Device(t.Context(), "pi-3")
	if err != nil || d.ReplacedBy != "pi-4" || len(d.History) != 4 || d.History[3].Reason != "superseded" {
		t.Fatalf("device = %+v, %v", d, err)
	}
}

func TestSelectionsThatMakeNoSenseAreRefused(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	c := h.admin("ann")
	if _, err := c.Import(t.Context(), h.manifest("pi-1", "pi-2")); err != nil {
		t.Fatal(err)
	}
	order := func(verb fleet.Verb, r SelectionRequest) error {
		_, err := c.Order(t.Context(), verb, r)
		return err
	}
	for name, tt := range map[string]struct {
		err    error
		status int
		say    string
	}{
		"no selector":       {order(fleet.VerbRevoke, SelectionRequest{Reason: "superseded", Confirm: true}), 400, "at least one term"},
		"unknown field":     {order(fleet.VerbRevoke, SelectionRequest{Select: "bacth=x", Reason: "superseded"}), 400, "there is no field"},
		"no reason":         {order(fleet.VerbRevoke, SelectionRequest{Select: "id=*"}), 400, "keyCompromise"},
		"reason to suspend": {order(fleet.VerbSuspend, SelectionRequest{Select: "id=*", Reason: "keyCompromise"}), 400, "note"},
		"another count":     {order(fleet.VerbRevoke, SelectionRequest{Select: "id=*", Reason: "superseded", Confirm: true, Count: 3}), 409, "2 devices now, not 3"},
		"nobody":            {order(fleet.VerbResume, SelectionRequest{Select: "id=*", Confirm: true}), 409, "no device to change"},
		"no such receipt":   {func() error { _, err := c.Receipt(t.Context(), "r-9"); return err }(), 404, "r-9"},
		"no such proposal":  {func() error { _, err := c.Approve(t.Context(), "r-9", "0", 1); return err }(), 404, "r-9"},
		"replace by nobody": {func() error {
			_, err := c.End(t.Context(), EndRequest{Device: "pi-1", Verb: fleet.VerbReplace})
			return err
		}(), 400, "another device"},
		"reinstate the good": {func() error { _, err := c.Reinstate(t.Context(), "pi-1", "", false); return err }(), 409, "registered"},
		"list by nonsense":   {func() error { _, err := c.Select(t.Context(), "x<1", "", 0); return err }(), 400, "there is no field"},
		"label with confirm": {func() error { _, err := c.Label(t.Context(), "pi-1", LabelRequest{Confirm: true}); return err }(), 400, "selections"},
	} {
		var p *Problem
		if !errors.As(tt.err, &p) || p.Status != tt.status || !strings.Contains(p.Detail, tt.say) || strings.Contains(p.Detail, "\n") {
			t.Errorf("%s: error = %v (%+v), want %d with %q", name, tt.err, p, tt.status, tt.say)
		}
		if errors.Is(tt.err, ErrCount) != (name == "another count") {
			t.Errorf("%s: it matches ErrCount wrongly", name)
		}
	}
	if h.state("pi-1") != registry.StateRegistered || h.state("pi-2") != registry.StateRegistered {
		t.Fatal("somebody was changed")
	}
}

func TestSecondOperatorApprovesOverTheAPI(t *testing.T) {
	h := newHubOver(t, operatorsOnly, nil, func(c *fleet.Config) { c.FourEyesOver = 1 })
	ann, ben := h.admin("ann"), h.admin("ben")
	if _, err := ann.Import(t.Context(), h.manifest("pi-1", "pi-2")); err != nil {
		t.Fatal(err)
	}
	request := SelectionRequest{Select: "id=pi-*", Reason: "keyCompromise"}
	if plan, err := ann.Order(t.Context(), fleet.VerbRevoke, request); err != nil || !plan.Plan.FourEyes {
		t.Fatalf("plan = %+v, %v", plan.Plan, err)
	}
	request.Confirm = true
	answer, err := ann.Order(t.Context(), fleet.VerbRevoke, request)
	if err != nil || answer.Proposal == nil || answer.Receipt != nil || h.state("pi-1") != registry.StateRegistered {
		t.Fatalf("answer = %+v, %v", answer, err)
	}
	waiting, err := ben.Proposals(t.Context())
	if err != nil || len(waiting) != 1 || waiting[0].Order.Select.String() != "id=pi-*" || waiting[0].Order.Reason != revocation.KeyCompromise {
		t.Fatalf("waiting = %+v, %v", waiting, err)
	}
	var p *Problem
	if _, err := ann.Approve(t.Context(), waiting[0].ID, waiting[0].Tag, 2); !errors.As(err, &p) || p.Status != 403 {
		t.Fatalf("her own: %v", err)
	}
	// An approval says what was reviewed, or nothing is done.
	client := h.operatorClient("ben")
	path := "/v1/proposals/" + waiting[0].ID
	if tag := h.tag(client, path); tag != `"`+waiting[0].Tag+`"` {
		t.Errorf("entity tag %s, tag %s", tag, waiting[0].Tag)
	}
	for match, want := range map[string]int{"": 428, "*": 428, `"0123456789abcdef"`: 412, waiting[0].Tag: 400} {
		headers := []string{"If-Match", match}
		if match == "" {
			headers = nil
		}
		if got := h.post(client, path+"/approve", `{"count":2}`, "", headers...); got.status != want {
			t.Errorf("If-Match %s: %+v, want %d", match, got, want)
		}
	}
	suspend := `{"id":"` + waiting[0].ID + `"}`
	if got := h.post(client, "/v1/devices/pi-1/suspend", suspend, ""); got.status != http.StatusConflict || h.state("pi-1") != registry.StateRegistered {
		t.Errorf("an order under the ID of the proposal: %+v", got)
	}
	receipt, err := ben.Approve(t.Context(), waiting[0].ID, waiting[0].Tag, 2)
	if err != nil || receipt.Count != 2 || receipt.Approver != "spiffe://fleet.example/operator/ben" || h.state("pi-1") != registry.StateRevoked {
		t.Fatalf("receipt = %+v, %v", receipt, err)
	}
	answer, err = ann.Order(t.Context(), fleet.VerbRetire, SelectionRequest{Select: "id=pi-*", Confirm: true})
	if !errors.As(err, &p) || p.Status != 409 {
		t.Fatalf("answer = %+v, %v", answer, err)
	}
}

func TestLabelsOverTheAPI(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	c := h.admin("ann")
	if _, err := c.Import(t.Context(), h.manifest("pi-1", "pi-2")); err != nil {
		t.Fatal(err)
	}
	batch := "lot-1"
	if answer, err := c.Label(t.Context(), "pi-1", LabelRequest{Labels: map[string]string{"site": "north"}, Batch: &batch}); err != nil || answer.Changed != 1 || answer.DryRun {
		t.Fatalf("answer = %+v, %v", answer, err)
	}
	request := LabelRequest{Select: "id=pi-*", Metadata: map[string]string{"shelf": "3"}}
	if answer, err := c.Label(t.Context(), "", request); err != nil || answer.Changed != 2 || !answer.DryRun || len(answer.Sample) != 2 {
		t.Fatalf("answer = %+v, %v", answer, err)
	}
	request.Confirm = true
	if answer, err := c.Label(t.Context(), "", request); err != nil || answer.Changed != 2 || answer.DryRun {
		t.Fatalf("answer = %+v, %v", answer, err)
	}
	page, err := c.Select(t.Context(), "label.site=north,batch=lot-1", "", 0)
	if err != nil || len(page.Devices) != 1 || page.Devices[0].Metadata["shelf"] != "3" {
		t.Fatalf("page = %+v, %v", page, err)
	}
}

func TestAuditIsFilteredVerifiedAndExported(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	c := h.admin("ann")
	if _, err := c.Import(t.Context(), h.manifest("pi-1", "pi-2", "pi-3")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Suspend(t.Context(), "pi-2", "lost <&> found"); err != nil {
		t.Fatal(err)
	}
	actions := func(q registry.AuditQuery) (all []string) {
		t.Helper()
		for {
			page, err := c.AuditWhere(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range page.Records {
				all = append(all, r.Device+" "+r.Action)
			}
			if q.After = page.Next; q.After == 0 {
				return all
			}
		}
	}
	for _, tt := range []struct {
		q    registry.AuditQuery
		want []string
	}{
		{registry.AuditQuery{Device: "pi-2", Limit: 1}, []string{"pi-2 manifest.import", "pi-2 device.suspend"}},
		{registry.AuditQuery{Action: "device."}, []string{"pi-2 device.suspend"}},
		{registry.AuditQuery{Actor: "ben"}, nil},
		{registry.AuditQuery{Actor: "ann", Action: "device.suspend", Outcome: registry.OutcomeDone}, []string{"pi-2 device.suspend"}},
		{registry.AuditQuery{Outcome: registry.OutcomeRefused}, nil},
		{registry.AuditQuery{Since: time.Now().Add(time.Hour)}, nil},
		{registry.AuditQuery{Until: time.Now().Add(time.Hour), Device: "pi-3"}, []string{"pi-3 manifest.import"}},
	} {
		if got := actions(tt.q); !slices.Equal(got, tt.want) {
			t.Errorf("%+v finds %v, want %v", tt.q, got, tt.want)
		}
	}
	var p *Problem
	if _, err := c.AuditWhere(t.Context(), registry.AuditQuery{Outcome: "maybe"}); !errors.As(err, &p) || p.Status != 400 {
		t.Errorf("an outcome that isn't one: %v", err)
	}
	head, err := c.AuditHead(t.Context())
	if err != nil || head.Number != 4 {
		t.Fatalf("head = %+v, %v", head, err)
	}
	if v, err := c.VerifyAudit(t.Context()); err != nil || v.Head != head || v.Receipts != 1 {
		t.Fatalf("verification = %+v, %v", v, err)
	}
	var export bytes.Buffer
	if end, err := c.ExportAudit(t.Context(), 0, &export, registry.AuditHead{}); err != nil || end != head || strings.Count(export.String(), "\n") != 5 {
		t.Fatalf("export ends at %+v, %v:\n%s", end, err, &export)
	}
	if end, err := ReadAuditExport(bytes.NewReader(export.Bytes()), head); err != nil || end != head {
		t.Fatalf("it reads back to %+v, %v", end, err)
	}
	if end, err := c.ExportAudit(t.Context(), 2, io.Discard, registry.AuditHead{}); err != nil || end != head {
		t.Errorf("from the middle on it ends at %+v, %v", end, err)
	}
	if end, err := c.ExportAudit(t.Context(), 4, io.Discard, registry.AuditHead{}); err != nil || end.Number != 4 {
		t.Errorf("from the end on it ends at %+v, %v", end, err)
	}
	lines := strings.SplitAfter(export.String(), "\n")
	for name, tt := range map[string]struct {
		text  string
		want  registry.AuditHead
		named bool // as tampering
	}{
		"a word changed":     {strings.Replace(export.String(), "operator/ann", "operator/ben", 1), registry.AuditHead{}, true},
		"a line missing":     {lines[0] + lines[2] + lines[3] + lines[4], registry.AuditHead{}, true},
		"the first missing":  {strings.Join(lines[1:], ""), registry.AuditHead{}, true},
		"the last missing":   {strings.Join(lines[:3], "") + lines[4], registry.AuditHead{}, true},
		"no end":             {strings.Join(lines[:4], ""), registry.AuditHead{}, false},
		"nothing":            {"", registry.AuditHead{}, false},
		"something else":     {"hello\n", registry.AuditHead{}, true},
		"an empty object":    {"{}\n", registry.AuditHead{}, true},
		"not what was noted": {export.String(), registry.AuditHead{Number: 2, Hash: head.Hash}, true},
	} {
		_, err := ReadAuditExport(strings.NewReader(tt.text), tt.want)
		if err == nil || errors.Is(err, registry.ErrTampered) != tt.named {
			t.Errorf("%s: error = %v", name, err)
		}
	}
}

// FuzzReadAuditExport: no file crashes it, and only a whole log is accepted.
func FuzzReadAuditExport(f *testing.F) {
	f.Add([]byte(`{"end":{"number":0,"hash":"0000000000000000000000000000000000000000000000000000000000000000"}}`))
	f.Add([]byte(`{"number":1,"hash":"00","record":{}}`))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		end, err := ReadAuditExport(bytes.NewReader(data), registry.AuditHead{})
		if err == nil && end.Number > 0 && !bytes.Contains(data, []byte(end.Hash.String())) {
			t.Fatalf("it ends at %+v", end)
		}
	})
}

func TestIssuerIsRevokedWithItsDevices(t *testing.T) {
	issuers := &fakeIssuers{}
	h := newHub(t, operatorsOnly, func(c *Config) { c.Issuers = issuers })
	c := h.admin("ann")
	if _, err := c.Import(t.Context(), h.manifest("pi-1", "pi-2")); err != nil {
		t.Fatal(err)
	}
	answer, err := c.RevokeIssuer(t.Context(), certtest.StationName, SelectionRequest{Reason: "cACompromise"})
	if err != nil || answer.Plan == nil || answer.Plan.Count != 2 || len(issuers.removed) != 0 || h.state("pi-1") != registry.StateRegistered {
		t.Fatalf("plan = %+v, %v", answer.Plan, err)
	}
	if _, err := c.RevokeIssuer(t.Context(), certtest.StationName, SelectionRequest{Reason: "cACompromise", Confirm: true, Count: 7}); !errors.Is(err, ErrCount) || len(issuers.removed) != 0 {
		t.Fatalf("another count: %v", err)
	}
	answer, err = c.RevokeIssuer(t.Context(), certtest.StationName, SelectionRequest{Reason: "cACompromise", Confirm: true, Count: 2})
	if err != nil || answer.Issuer == nil || answer.Receipt == nil || answer.Receipt.Count != 2 || answer.Receipt.Reason != "cACompromise" || len(issuers.removed) != 1 || h.state("pi-2") != registry.StateRevoked {
		t.Fatalf("answer = %+v, %v", answer, err)
	}
	if _, err := c.RevokeIssuer(t.Context(), "nobody", SelectionRequest{Reason: "cACompromise"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
}
