package fleet

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/fleethub/fleethub/hub/registry"
)

func TestOrderByAnOldRevisionIsRefusedAndAudited(t *testing.T) {
	r := newRig(t)
	r.register("pi-1", "pi-2")
	seen, err := r.Device(t.Context(), "pi-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Suspend(t.Context(), "pi-1", "lost", ben); err != nil {
		t.Fatal(err)
	}
	old := seen.Revision()
	before := len(r.log())
	for name, do := range map[string]func() error{
		"suspend": func() error {
			_, err := r.Execute(t.Context(), Order{Verb: VerbSuspend, Device: "pi-1", IfRevision: old}, ann)
			return err
		},
		"revoke": func() error {
			_, err := r.Execute(t.Context(), Order{Verb: VerbRevoke, Device: "pi-1", IfRevision: old}, ann)
			return err
		},
		"label": func() error {
			_, err := r.Relabel(t.Context(), Relabel{Device: "pi-1", Labels: map[string]string{"a": "b"}, IfRevision: old}, ann)
			return err
		},
		"reinstate": func() error {
			_, err := r.Allow(t.Context(), Leave{Device: "pi-1", IfRevision: old}, ann)
			return err
		},
	} {
		if err := do(); !errors.Is(err, registry.ErrChanged) || !strings.Contains(err.Error(), ben.Name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if log := r.log(); len(log) != before+4 || log[len(log)-1].Outcome != registry.OutcomeRefused {
		t.Errorf("the refusals are not in the audit log: %+v", log[before:])
	}
	if r.state("pi-1") != registry.StateSuspended {
		t.Errorf("it is %s", r.state("pi-1"))
	}
	if _, err := r.Execute(t.Context(), Order{Verb: VerbSuspend, Select: registry.Equals("model", "pi4"), IfRevision: old}, ann); !errors.Is(err, ErrOrder) {
		t.Errorf("a revision of several: %v", err)
	}
	r.restart()
	now, err := r.Device(t.Context(), "pi-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Execute(t.Context(), Order{Verb: VerbRevoke, Device: "pi-1", IfRevision: now.Revision()}, ann); err != nil {
		t.Errorf("by the revision as it is after a restart: %v", err)
	}
}

// An order that is repeated under its ID is the same order, whatever it has changed itself.
func TestRepeatedOrderIsNotHeldAgainstItsOwnChange(t *testing.T) {
	r := newRig(t)
	r.register("pi-1")
	seen, err := r.Device(t.Context(), "pi-1")
	if err != nil {
		t.Fatal(err)
	}
	order := Order{ID: "o-1", Verb: VerbRevoke, Device: "pi-1", IfRevision: seen.Revision()}
	first, err := r.Execute(t.Context(), order, ann)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.Execute(t.Context(), order, ann); err != nil || !again.Receipt.DurableAt.Equal(first.Receipt.DurableAt) || again.Receipt.Already {
		t.Errorf("again: %+v, %v", again.Receipt, err)
	}
}

func TestOfOrdersByOneRevisionOneIsCarriedOut(t *testing.T) {
	r := newRig(t)
	r.register("pi-1")
	seen, err := r.Device(t.Context(), "pi-1")
	if err != nil {
		t.Fatal(err)
	}
	results := make([]error, 8)
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() {
			verb := []Verb{VerbSuspend, VerbRevoke, VerbRetire}[i%3]
			_, results[i] = r.Execute(t.Context(), Order{Verb: verb, Device: "pi-1", IfRevision: seen.Revision()}, ann)
		})
	}
	all.Wait()
	done := 0
	for i, err := range results {
		if err == nil {
			done++
		} else if !errors.Is(err, registry.ErrChanged) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if done != 1 {
		t.Errorf("%d were carried out", done)
	}
}
