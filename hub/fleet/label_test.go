package fleet

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/registry"
)

func TestLabelsAreSetAndRemovedAndAudited(t *testing.T) {
	r := newRig(t)
	r.register("pi-1", "pi-2")
	var changed []string
	r.config.Changed = func(ids []string) { changed = append(changed, ids...) }
	model, batch := "pi5", "lot-9"
	n, err := r.Relabel(t.Context(), Relabel{
		Device: "pi-1", Labels: map[string]string{"site": "north", "line": ""}, Metadata: map[string]string{"shelf": "3rd, left ü"}, Model: &model, Batch: &batch, Note: "moved",
	}, ann)
	if err != nil || n != 1 || !slices.Equal(changed, []string{"pi-1"}) {
		t.Fatalf("%d changed %v, %v", n, changed, err)
	}
	check := func() {
		t.Helper()
		d, err := r.Device(t.Context(), "pi-1")
		if err != nil || !maps.Equal(d.Labels, map[string]string{"site": "north"}) || d.Metadata["shelf"] != "3rd, left ü" || d.Model != "pi5" || d.Batch != "lot-9" || len(d.Certificates[0].DER) == 0 {
			t.Fatalf("device = %+v, %v", d, err)
		}
		status, _ := r.Status("pi-1")
		if !maps.Equal(status.Labels, d.Labels) || status.Model != "pi5" || status.Batch != "lot-9" {
			t.Fatalf("status = %+v", status)
		}
		if other, _ := r.Status("pi-2"); other.Labels["line"] != "a" || other.Model != "pi4" {
			t.Fatalf("the other's status = %+v", other)
		}
	}
	check()
	log := r.log()
	last := log[len(log)-1]
	if last.Action != "device.label" || last.Note != "moved" || last.Before != registry.StateRegistered || last.After != last.Before ||
		!strings.Contains(last.Detail, `"labels":{"line":"a"}`) || !strings.Contains(last.Detail, `→ {"model":"pi5","batch":"lot-9","labels":{"site":"north"}`) {
		t.Fatalf("audit record = %+v", last)
	}
	r.restart()
	check()
	// Once more changes nothing, and leaves no record.
	if n, err := r.Relabel(t.Context(), Relabel{Device: "pi-1", Model: &model}, ann); err != nil || n != 0 || len(r.log()) != len(log) {
		t.Fatalf("%d changed, %v", n, err)
	}
}

func TestSelectionIsLabelledInBoundedSteps(t *testing.T) {
	r := newRig(t)
	n := orderChunk + 50
	r.populate(n)
	relabel := Relabel{Select: selecting(t, "id=*"), Labels: map[string]string{"ring": "canary"}}
	if count, sample, err := r.RehearseRelabel(t.Context(), relabel); err != nil || count != n || len(sample) != 10 {
		t.Fatalf("rehearsal: %d, %v, %v", count, sample, err)
	}
	for count, want := range map[int]error{0: ErrCount, n - 1: ErrCount} {
		relabel.Count = count
		if _, err := r.Relabel(t.Context(), relabel, ann); !errors.Is(err, want) {
			t.Errorf("count %d: error = %v", count, err)
		}
	}
	relabel.Count = n
	if changed, err := r.Relabel(t.Context(), relabel, ann); err != nil || changed != n {
		t.Fatalf("%d changed, %v", changed, err)
	}
	radius, err := r.Rehearse(t.Context(), Order{Verb: VerbSuspend, Select: selecting(t, "label.ring=canary")})
	if err != nil || radius.Count+radius.Barred != n {
		t.Fatalf("radius = %+v, %v", radius, err)
	}
	if _, err := r.Relabel(t.Context(), Relabel{Select: selecting(t, "id=x"), Labels: relabel.Labels}, ann); !errors.Is(err, ErrNobody) {
		t.Errorf("nobody: error = %v", err)
	}
}

func TestLabelsHaveTheGrammarOfTopicLevels(t *testing.T) {
	r := newRig(t)
	r.register("pi-1")
	many := make(map[string]string)
	for i := range maxLabels + 1 {
		many[fmt.Sprint("k", i)] = "v"
	}
	long := strings.Repeat("x", 300)
	two := "a\nb"
	for name, tt := range map[string]struct {
		relabel Relabel
		want    error
	}{
		"nothing":               {Relabel{Device: "pi-1"}, ErrOrder},
		"nobody":                {Relabel{Labels: map[string]string{"a": "b"}}, ErrOrder},
		"unknown":               {Relabel{Device: "pi-9", Labels: map[string]string{"a": "b"}}, ErrUnknownDevice},
		"wildcard":              {Relabel{Device: "pi-1", Labels: map[string]string{"a": "+"}}, ErrText},
		"slash":                 {Relabel{Device: "pi-1", Labels: map[string]string{"a/b": "c"}}, ErrText},
		"empty name":            {Relabel{Device: "pi-1", Labels: map[string]string{"": "c"}}, ErrText},
		"too many":              {Relabel{Device: "pi-1", Labels: many}, ErrText},
		"too many metadata":     {Relabel{Device: "pi-1", Metadata: many}, ErrText},
		"metadata of two lines": {Relabel{Device: "pi-1", Metadata: map[string]string{"a": two}}, ErrText},
		"metadata of no name":   {Relabel{Device: "pi-1", Metadata: map[string]string{"a b": "c"}}, ErrText},
		"long model":            {Relabel{Device: "pi-1", Model: &long}, ErrText},
		"batch of two lines":    {Relabel{Device: "pi-1", Batch: &two}, ErrText},
		"long note":             {Relabel{Device: "pi-1", Model: new(string), Note: long}, ErrText},
	} {
		if _, err := r.Relabel(t.Context(), tt.relabel, ann); !errors.Is(err, tt.want) {
			t.Errorf("%s: error = %v, want %v", name, err, tt.want)
		}
	}
	// As many as fit, one at a time, and no more.
	for i := range maxLabels {
		_, err := r.Relabel(t.Context(), Relabel{Device: "pi-1", Labels: map[string]string{fmt.Sprint("k", i): "v"}}, ann)
		if full := i == maxLabels-1; (err != nil) != full { // it came with one
			t.Fatalf("label %d: error = %v", i+1, err)
		}
	}
}

func TestLabellingDoesNotLiftACutOffThatIsNotDurable(t *testing.T) {
	r := newRig(t)
	r.register("pi-1")
	r.store.broken.Store(true)
	if _, err := r.Revoke(t.Context(), "pi-1", 0, ann); !errors.Is(err, ErrNotDurable) {
		t.Fatal(err)
	}
	r.store.broken.Store(false)
	if _, err := r.Relabel(t.Context(), Relabel{Device: "pi-1", Labels: map[string]string{"a": "b"}}, ann); err != nil {
		t.Fatal(err)
	}
	if status, _ := r.Status("pi-1"); status.State != registry.StateRevoked || status.Labels["a"] != "b" {
		t.Fatalf("status = %+v", status)
	}
	if d, err := r.Device(t.Context(), "pi-1"); err != nil || d.State != registry.StateRevoked {
		t.Fatalf("it is shown as %s, %v", d.State, err)
	}
}

func TestDeviceComesBackWithANewCertificateAndLeaveOnly(t *testing.T) {
	r := newRig(t)
	old := r.register("pi-1")[0]
	next := r.pki.Device("pi-1")
	if _, err := r.Allow(t.Context(), Leave{Device: "pi-1"}, ann); !errors.Is(err, registry.ErrTransition) {
		t.Fatalf("leave for a device in good standing: error = %v", err)
	}
	if _, err := r.Revoke(t.Context(), "pi-1", 1, ann); err != nil {
		t.Fatal(err)
	}
	manifest := r.sign(entryOf(next))
	if _, err := r.Import(t.Context(), manifest, ann); !errors.Is(err, ErrRejected) {
		t.Fatalf("without leave: error = %v", err)
	}
	d, err := r.Allow(t.Context(), Leave{Device: "pi-1", Note: "repaired"}, ben)
	if err != nil || d.State != registry.StateRevoked || d.Permit.Actor != ben.Name || d.Permit.Note != "repaired" {
		t.Fatalf("device = %+v, %v", d, err)
	}
	r.restart()
	if r.state("pi-1") != registry.StateRevoked {
		t.Fatal("the leave alone brought it back")
	}
	// Its own old certificate is known, and changes nothing.
	if report, err := r.Import(t.Context(), r.sign(entryOf(old)), ann); err != nil || report.Unchanged != 1 || r.state("pi-1") != registry.StateRevoked {
		t.Fatalf("report = %+v, %v", report, err)
	}
	report, err := r.Import(t.Context(), manifest, ann)
	if err != nil || report.Reinstated != 1 || report.Registered != 0 {
		t.Fatalf("report = %+v, %v", report, err)
	}
	check := func() {
		t.Helper()
		if r.state("pi-1") != registry.StateRegistered {
			t.Fatal("it is not back")
		}
		status, _ := r.Status("pi-1")
		if status.Admits(sha256.Sum256(old.Leaf.Raw)) || !status.Admits(sha256.Sum256(next.Leaf.Raw)) {
			t.Fatalf("status = %+v", status)
		}
		r.mustResume(old, false)
		r.mustResume(next, true)
		if owner, err := r.Certificate(t.Context(), IssuerID(r.pki.Factory.Certificate()), identity.SerialString(old.Leaf.SerialNumber)); err != nil || owner.Revoked.IsZero() || owner.Reason != "keyCompromise" {
			t.Fatalf("the old certificate: %+v, %v", owner, err)
		}
	}
	check()
	r.restart()
	check()
	log := r.log()
	if last := log[len(log)-1]; last.Before != registry.StateRevoked || last.After != registry.StateRegistered {
		t.Errorf("audit record = %+v", last)
	}
	// The leave is used up.
	if _, err := r.Revoke(t.Context(), "pi-1", 1, ann); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Import(t.Context(), r.sign(entryOf(r.pki.Device("pi-1"))), ann); !errors.Is(err, ErrRejected) {
		t.Fatalf("the leave was used twice: %v", err)
	}
}
