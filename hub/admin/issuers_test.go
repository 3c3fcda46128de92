package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/ticket"
)

// fakeIssuers is a hub that trusts one removable issuer.
type fakeIssuers struct{ removed []string }

func (f *fakeIssuers) Issuers(context.Context) ([]Issuer, error) {
	return []Issuer{{Name: "bench 1/a", Kind: "factory", Devices: 3}}, nil
}

func (f *fakeIssuers) named(name string) error {
	switch name {
	case "bench 1/a", certtest.StationName:
		return nil
	case "hub":
		return fmt.Errorf("%w: hub", ErrIssuerNeeded)
	}
	return fmt.Errorf("%w: %s", ErrNoIssuer, name)
}

func (f *fakeIssuers) PlanRemoval(_ context.Context, name string) (IssuerPlan, error) {
	return IssuerPlan{Issuer: Issuer{Name: name}, Breaks: 3}, f.named(name)
}

func (f *fakeIssuers) Remove(_ context.Context, name string) (IssuerReceipt, error) {
	if err := f.named(name); err != nil {
		return IssuerReceipt{}, err
	}
	f.removed = append(f.removed, name)
	return IssuerReceipt{Issuer: Issuer{Name: name, Serial: "2a"}, SessionsClosed: 2}, nil
}

func TestOperatorRemovesAnIssuer(t *testing.T) {
	issuers := &fakeIssuers{}
	h := newHub(t, operatorsOnly, func(c *Config) { c.Issuers = issuers })
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	const name = "bench 1/a" // as awkward as a path element gets
	if list, err := c.Issuers(t.Context()); err != nil || len(list) != 1 || list[0].Devices != 3 {
		t.Errorf("issuers %+v, %v", list, err)
	}
	if plan, err := c.PlanIssuerRemoval(t.Context(), name); err != nil || plan.Issuer.Name != name || plan.Breaks != 3 {
		t.Errorf("plan %+v, %v", plan, err)
	}
	// A removal without confirmation is a rehearsal.
	answer, err := post[IssuerRemoval](t.Context(), c, issuerPath(name, "/remove"), change{})
	if err != nil || answer.Plan == nil || answer.Receipt != nil || len(issuers.removed) > 0 {
		t.Errorf("unconfirmed: %+v, %v, removed %v", answer, err, issuers.removed)
	}
	receipt, err := c.RemoveIssuer(t.Context(), name, "key stolen")
	if err != nil || receipt.SessionsClosed != 2 || !slices.Equal(issuers.removed, []string{name}) {
		t.Errorf("receipt %+v, %v, removed %v", receipt, err, issuers.removed)
	}
	for _, tt := range []struct {
		name, reason string
		status       int
		kind         error
	}{
		{"nobody", "", http.StatusNotFound, ErrNotFound},
		{"hub", "", http.StatusConflict, nil},
		{name, "two\nlines", http.StatusBadRequest, ErrInvalid},
	} {
		_, err := c.RemoveIssuer(t.Context(), tt.name, tt.reason)
		p, ok := errors.AsType[*Problem](err)
		if !ok || p.Status != tt.status || tt.kind != nil && !errors.Is(err, tt.kind) {
			t.Errorf("remove %q for %q: %v", tt.name, tt.reason, err)
		}
	}
	page, err := c.Audit(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, r := range page.Records {
		said = append(said, fmt.Sprintf("%s %s %s %s", r.Action, r.Subject, r.Outcome, r.Reason))
	}
	want := []string{
		"issuer.remove issuer bench 1/a requested key stolen", "issuer.remove issuer bench 1/a done key stolen",
		"issuer.remove issuer nobody requested ", "issuer.remove issuer nobody refused ",
		"issuer.remove issuer hub requested ", "issuer.remove issuer hub refused ",
	}
	if !slices.Equal(said, want) {
		t.Errorf("the audit log says\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
	}
}

func TestOperatorRotatesTickets(t *testing.T) {
	ring, err := ticket.OpenRing(filepath.Join(t.TempDir(), "tickets.json"), ticket.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var stats ticket.Stats
	stats.Minted.Store(7)
	stats.Rejected.Store(2)
	h := newHub(t, operatorsOnly, func(c *Config) { c.Tickets, c.TicketStats = ring, &stats })
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	state, err := c.Tickets(t.Context())
	if err != nil || len(state.Keys) != 1 || state.Minted != 7 || state.Rejected != 2 || state.LifetimeSeconds != int64(ring.Lifetime()/time.Second) {
		t.Errorf("tickets %+v, %v", state, err)
	}
	if state, err := c.RotateTickets(t.Context(), ""); err != nil || len(state.Keys) != 2 || ring.Len() != 2 {
		t.Errorf("rotated to %+v, %v", state, err)
	}
	if state, err := c.DropTickets(t.Context(), ""); err != nil || len(state.Keys) != 1 || ring.Len() != 1 {
		t.Errorf("dropped to %+v, %v", state, err)
	}
	// No key ever leaves the hub.
	data, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.ToLower(string(data)), "secret") || len(state.Keys[0].ID) > 8 {
		t.Errorf("the answer has more of a key than its name: %s", data)
	}
}

func TestWhatTheHubHasNotIsNoPath(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	_, issuers := c.Issuers(t.Context())
	_, tickets := c.Tickets(t.Context())
	for _, err := range []error{issuers, tickets} {
		if p, ok := errors.AsType[*Problem](err); !ok || p.Status != http.StatusNotFound {
			t.Errorf("got %v, want a problem with status 404", err)
		}
	}
}

func TestDeviceIsShownWithItsHandshakes(t *testing.T) {
	h := newHub(t, operatorsOnly, func(c *Config) {
		c.Handshakes = func(id string) (Handshakes, bool) { return Handshakes{Full: 2}, id == "pi-1" }
	})
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	if _, err := c.Import(t.Context(), h.manifest("pi-1", "pi-2")); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"pi-1": true, "pi-2": false} {
		d, err := c.Device(t.Context(), id)
		if err != nil || d.State != registry.StateRegistered || (d.Handshakes != nil) != want || want && d.Handshakes.Full != 2 {
			t.Errorf("%s: %+v, %v", id, d, err)
		}
	}
}

// A stream lasts for hours; what it was opened with may end sooner.
func TestWatchEndsWithTheTrustInItsOperator(t *testing.T) {
	var verifier *mtls.Verifier
	h, f := newWatchedHub(t, func(c *Config) { verifier, c.Heartbeat = c.Verifier, 5*time.Millisecond })
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	ended := make(chan error)
	go func() {
		ended <- c.Watch(t.Context(), "#", func(Message) error { return nil })
	}()
	<-f.filters
	trust := verifier.Trust()
	trust.Issuers = trust.Issuers[1:] // the operational CA is gone
	h.must(verifier.SetTrust(trust))
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "no longer accepted") {
		t.Errorf("the watch ended with %v", err)
	}
	<-f.left
}
