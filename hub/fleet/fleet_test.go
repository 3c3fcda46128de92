package fleet

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/boltstore"
	"github.com/fleethub/fleethub/hub/registry"
)

func TestRevokeIsDurableEffectiveAndDisconnects(t *testing.T) {
	r := newRig(t)
	c := r.register("pi-1", "pi-2")[0]
	r.sessions.live["pi-1"] = 1
	fingerprint, serial := sha256.Sum256(c.Leaf.Raw), identity.SerialString(c.Leaf.SerialNumber)
	if status, ok := r.Status("pi-1"); !ok || !status.Admits(fingerprint) || status.Labels["line"] != "a" || status.Model != "pi4" {
		t.Fatalf("status before = %+v, %v", status, ok)
	}

	plan, err := r.PlanRevoke(t.Context(), "pi-1", revocation.KeyCompromise)
	if err != nil || plan.Already || plan.State != registry.StateRegistered || !slices.Equal(plan.Serials, []string{serial}) || plan.Reason != "keyCompromise" {
		t.Fatalf("plan = %+v, %v", plan, err)
	}
	if r.state("pi-1") != registry.StateRegistered || len(r.sessions.calls) != 0 || len(r.log()) != 2 {
		t.Fatal("a plan changed something")
	}

	receipt, err := r.Revoke(t.Context(), "pi-1", revocation.KeyCompromise, ann)
	if err != nil {
		t.Fatal(err)
	}
	if receipt.ID != "pi-1" || receipt.State != registry.StateRevoked || receipt.Already || receipt.Reason != "keyCompromise" ||
		!slices.Equal(receipt.Serials, []string{serial}) || receipt.SessionsClosed != 1 {
		t.Fatalf("receipt = %+v", receipt)
	}
	order := []time.Time{receipt.RequestedAt, receipt.DurableAt, receipt.EffectiveAt, receipt.LastSessionClosedAt}
	if !slices.IsSortedFunc(order, time.Time.Compare) || receipt.RequestedAt.IsZero() {
		t.Fatalf("the receipt's times are out of order: %v", order)
	}
	check := func() {
		t.Helper()
		if status, ok := r.Status("pi-1"); !ok || r.state("pi-1") != registry.StateRevoked || status.Admits(fingerprint) || len(status.Fingerprints) != 0 {
			t.Fatalf("status after = %+v, %v", status, ok)
		}
		if r.state("pi-2") != registry.StateRegistered {
			t.Fatal("another device was revoked, too")
		}
	}
	check()
	last := r.log()[2]
	if last.Actor != ann.Name || last.Address != ann.Address || last.Action != "device.revoke" || last.Device != "pi-1" || last.Time.IsZero() ||
		last.Before != registry.StateRegistered || last.After != registry.StateRevoked || last.Reason != "keyCompromise" || last.Outcome != registry.OutcomeDone {
		t.Fatalf("audit record = %+v", last)
	}
	r.restart()
	check()
}

func TestRevokingAgainReturnsTheFirstRevocation(t *testing.T) {
	r := newRig(t)
	r.register("pi-1")
	first, err := r.Revoke(t.Context(), "pi-1", revocation.KeyCompromise, ann)
	if err != nil {
		t.Fatal(err)
	}
	r.sessions.live["pi-1"] = 1 // as if a crash had come before the disconnect
	again, err := r.Revoke(t.Context(), "pi-1", revocation.Superseded, ann)
	if err != nil || !again.Already || again.Reason != "keyCompromise" || !again.DurableAt.Equal(again.EffectiveAt) ||
		again.DurableAt.After(first.DurableAt) || !slices.Equal(again.Serials, first.Serials) || again.SessionsClosed != 1 {
		t.Fatalf("receipt = %+v, %v", again, err)
	}
	if plan, err := r.PlanRevoke(t.Context(), "pi-1", revocation.KeyCompromise); err != nil || !plan.Already || len(plan.Serials) != 0 {
		t.Fatalf("plan = %+v, %v", plan, err)
	}
	if n := len(r.log()); n != 2 {
		t.Fatalf("%d audit records, want 2", n)
	}
}

func TestSuspendAndResume(t *testing.T) {
	r := newRig(t)
	c := r.register("pi-1")[0]
	fingerprint := sha256.Sum256(c.Leaf.Raw)
	r.sessions.live["pi-1"] = 2
	receipt, err := r.Suspend(t.Context(), "pi-1", "lost on site", ann)
	if err != nil || receipt.SessionsClosed != 2 || receipt.State != registry.StateSuspended || len(receipt.Serials) != 0 {
		t.Fatalf("receipt = %+v, %v", receipt, err)
	}
	r.restart()
	if status, _ := r.Status("pi-1"); r.state("pi-1") != registry.StateSuspended || status.Admits(fingerprint) {
		t.Fatalf("status = %+v", status)
	}
	if again, err := r.Suspend(t.Context(), "pi-1", "once more", ann); err != nil || !again.Already || again.Reason != registry.ReasonHold || again.Note != "lost on site" {
		t.Fatalf("receipt = %+v, %v", again, err)
	}
	if d, err := r.Resume(t.Context(), "pi-1", "found", ann); err != nil || d.State != registry.StateRegistered || d.Reason != "" {
		t.Fatalf("device = %+v, %v", d, err)
	}
	if status, _ := r.Status("pi-1"); !status.Admits(fingerprint) {
		t.Fatalf("status = %+v", status)
	}
	log := r.log()
	if last := log[len(log)-1]; last.Action != "device.resume" || last.Before != registry.StateSuspended || last.After != registry.StateRegistered || last.Note != "found" {
		t.Fatalf("audit record = %+v", last)
	}
}

func TestRefusedVerbsChangeNothingAndAreAudited(t *testing.T) {
	r := newRig(t)
	r.register("pi-1", "pi-2")
	if _, err := r.Revoke(t.Context(), "pi-1", revocation.KeyCompromise, ann); err != nil {
		t.Fatal(err)
	}
	verbs := map[string]func(id string) error{
		"device.revoke": func(id string) error {
			_, err := r.Revoke(t.Context(), id, revocation.KeyCompromise, ann)
			return err
		},
		"device.suspend": func(id string) error { _, err := r.Suspend(t.Context(), id, "", ann); return err },
		"device.resume":  func(id string) error { _, err := r.Resume(t.Context(), id, "", ann); return err },
	}
	for _, tt := range []struct {
		action, id string
		want       error
	}{
		{"device.revoke", "nobody", ErrUnknownDevice},
		{"device.suspend", "nobody", ErrUnknownDevice},
		{"device.resume", "nobody", ErrUnknownDevice},
		{"device.resume", "../pi-1", ErrUnknownDevice},
		{"device.suspend", "pi-1", registry.ErrTransition},
		{"device.resume", "pi-1", registry.ErrTransition},
		{"device.resume", "pi-2", registry.ErrTransition},
	} {
		before, log := r.devices(), len(r.log())
		if err := verbs[tt.action](tt.id); !errors.Is(err, tt.want) {
			t.Errorf("%s %s: error = %v, want %v", tt.action, tt.id, err, tt.want)
		}
		if !reflect.DeepEqual(r.devices(), before) {
			t.Errorf("%s %s changed a record", tt.action, tt.id)
		}
		records := r.log()
		if last := records[len(records)-1]; len(records) != log+1 || last.Outcome != registry.OutcomeRefused || last.Action != tt.action || last.Device != tt.id || last.Detail == "" {
			t.Errorf("%s %s: audit record = %+v", tt.action, tt.id, last)
		}
	}
	for _, reason := range []string{"two\nlines", "\xff", string(make([]byte, 1000))} {
		if _, err := r.Suspend(t.Context(), "pi-2", reason, ann); !errors.Is(err, ErrText) {
			t.Errorf("reason %.10q: error = %v", reason, err)
		}
	}
	if _, err := r.PlanRevoke(t.Context(), "nobody", 0); !errors.Is(err, ErrUnknownDevice) {
		t.Errorf("plan: error = %v", err)
	}
}

func TestCutOffHoldsInMemoryWhileTheDiskIsFull(t *testing.T) {
	for _, verb := range []struct {
		name  string
		state registry.State
		do    func(*rig) (Receipt, error)
	}{
		{"revoke", registry.StateRevoked, func(r *rig) (Receipt, error) {
			return r.Revoke(t.Context(), "pi-1", revocation.KeyCompromise, ann)
		}},
		{"suspend", registry.StateSuspended, func(r *rig) (Receipt, error) { return r.Suspend(t.Context(), "pi-1", "", ann) }},
	} {
		t.Run(verb.name, func(t *testing.T) {
			r := newRig(t)
			r.register("pi-1")
			r.sessions.live["pi-1"] = 1
			r.store.broken.Store(true)
			if _, err := verb.do(r); !errors.Is(err, ErrNotDurable) {
				t.Fatalf("error = %v, want ErrNotDurable", err)
			}
			if status, _ := r.Status("pi-1"); status.State != verb.state {
				t.Fatalf("status = %+v", status)
			}
			if len(r.sessions.live) != 0 {
				t.Fatal("the session is still open")
			}
			// Nothing else lifts the block: not a late sighting, not an import.
			r.store.broken.Store(false)
			if err := r.flush([]string{"pi-1"}, map[string]time.Time{"pi-1": time.Now()}); err != nil {
				t.Fatal(err)
			}
			if status, _ := r.Status("pi-1"); status.State != verb.state {
				t.Fatalf("a sighting made it %+v", status)
			}
			if receipt, err := verb.do(r); err != nil || receipt.Already {
				t.Fatalf("receipt = %+v, %v", receipt, err)
			}
			if r.state("pi-1") != verb.state {
				t.Fatal("it isn't durable after the second try")
			}
		})
	}
}

func TestImportThatCannotBeStoredRegistersNobody(t *testing.T) {
	r := newRig(t)
	data := r.sign(entryOf(r.pki.Device("pi-1")))
	r.store.broken.Store(true)
	if _, err := r.Import(t.Context(), data, ann); err == nil || errors.Is(err, ErrRejected) {
		t.Fatalf("error = %v", err)
	}
	if _, known := r.Status("pi-1"); known {
		t.Fatal("the index knows a device that the store doesn't")
	}
	r.store.broken.Store(false)
	if report, err := r.Import(t.Context(), data, ann); err != nil || report.Registered != 1 {
		t.Fatalf("report = %+v, %v", report, err)
	}
}

func TestVerbsGiveUpWhenTheirContextEnds(t *testing.T) {
	r := newRig(t)
	r.register("pi-1")
	data := r.sign(entryOf(r.pki.Device("pi-2")))
	r.turn <- struct{}{} // somebody writes and doesn't come back
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Revoke(ctx, "pi-1", revocation.KeyCompromise, ann); !errors.Is(err, context.Canceled) {
		t.Errorf("revoke: error = %v", err)
	}
	if _, err := r.Import(ctx, data, ann); !errors.Is(err, context.Canceled) {
		t.Errorf("import: error = %v", err)
	}
	if status, ok := r.Status("pi-1"); !ok || status.State != registry.StateRegistered {
		t.Errorf("status = %+v", status)
	}
	<-r.turn
}

func TestPagesListEveryDeviceOnce(t *testing.T) {
	r := newRig(t)
	r.register("a", "b", "c", "d", "e")
	var ids []string
	for after := ""; ; {
		page, err := r.Devices(t.Context(), registry.Selector{}, after, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range page.Devices {
			ids = append(ids, d.ID)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if !slices.Equal(ids, []string{"a", "b", "c", "d", "e"}) {
		t.Fatalf("pages list %v", ids)
	}
}

func TestOpenRefusesAnIncompleteConfigAndAnUnreadableStore(t *testing.T) {
	pki := certtest.New(t)
	bolt, err := boltstore.Open(filepath.Join(t.TempDir(), "hub.db"))
	if err != nil {
		t.Fatal(err)
	}
	good := Config{Store: bolt, Sessions: &sessions{}, TrustDomain: certtest.TrustDomain, Roots: func() []*x509.Certificate { return pki.Trust().Roots }}
	for name, spoil := range map[string]func(*Config){
		"store":        func(c *Config) { c.Store = nil },
		"sessions":     func(c *Config) { c.Sessions = nil },
		"trust domain": func(c *Config) { c.TrustDomain = "" },
		"roots":        func(c *Config) { c.Roots = nil },
	} {
		config := good
		spoil(&config)
		if _, err := Open(config); err == nil {
			t.Errorf("opened without %s", name)
		}
	}
	bolt.Close()
	if _, err := Open(good); err == nil {
		t.Error("opened on a store that can't be read")
	}
}

// TestConcurrentUse is for the race detector: every verb and look-up at once.
func TestConcurrentUse(t *testing.T) {
	r := newRig(t)
	r.register("pi-1", "pi-2")
	var users sync.WaitGroup
	for range 4 {
		users.Go(func() {
			for range 10 {
				r.Seen("pi-1", time.Now())
				r.Status("pi-1")
				r.Suspend(t.Context(), "pi-1", "", ann)
				r.Resume(t.Context(), "pi-1", "", ann)
				r.Devices(t.Context(), registry.Selector{}, "", 0)
				r.PlanRevoke(t.Context(), "pi-2", 0)
			}
		})
	}
	users.Wait()
	r.sessions.tooEarly = nil // who suspends closes sessions though somebody has resumed since
	if _, err := r.Resume(t.Context(), "pi-1", "", ann); err != nil && !errors.Is(err, registry.ErrTransition) {
		t.Fatal(err)
	}
	if !r.state("pi-1").MayConnect() {
		t.Fatal("the device is not back")
	}
}
