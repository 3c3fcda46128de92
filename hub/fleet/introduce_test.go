package fleet

import (
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
)

func introductionOf(c certtest.Credential) Introduction {
	return Introduction{Certificate: c.Leaf, Issuer: c.Issuer, Address: "192.0.2.9:1"}
}

func (r *rig) introduce(c certtest.Credential) registry.State {
	r.t.Helper()
	state, err := r.Introduce(r.t.Context(), introductionOf(c))
	if err != nil {
		r.t.Fatal(err)
	}
	return state
}

func (r *rig) approve(id string) error {
	_, err := r.Execute(r.t.Context(), Order{Verb: VerbApprove, Device: id, Note: "bench 3"}, ann)
	return err
}

func TestNewcomerWaitsForApproval(t *testing.T) {
	r := newRig(t)
	d := r.pki.Device("pi-1")
	for range 2 { // it comes again
		if state := r.introduce(d); state != registry.StateQuarantined || r.admits(d.Leaf) {
			t.Fatalf("it is %s", state)
		}
	}
	r.restart()
	if r.state("pi-1") != registry.StateQuarantined || r.admits(d.Leaf) || r.quarantined() != 1 {
		t.Fatal("a restart has let it in, or forgotten it")
	}
	if _, _, ok := r.Resumable(fingerprintOf(d)); ok {
		t.Error("a ticket would do")
	}
	if err := r.approve("pi-1"); err != nil || !r.admits(d.Leaf) || r.state("pi-1") != registry.StateRegistered {
		t.Fatalf("it is %s, %v", r.state("pi-1"), err)
	}
	if err := r.approve("pi-1"); !errors.Is(err, registry.ErrTransition) {
		t.Errorf("approved again: %v", err)
	}
	r.restart()
	if !r.admits(d.Leaf) {
		t.Error("the approval was forgotten")
	}
	var actions []string
	for _, a := range r.log() {
		actions = append(actions, string(a.Action+" "+string(a.Before)+">"+string(a.After)))
	}
	if got := strings.Join(actions, ", "); got != "device.introduce >quarantined, device.approve quarantined>registered, device.approve >" {
		t.Errorf("audit log: %s", got)
	}
	if a := r.log()[0]; a.Actor != "spiffe://fleet.example/device/pi-1" || a.Address != "192.0.2.9:1" || !strings.Contains(a.Detail, "by station bench-1, key protection unproven") {
		t.Errorf("audit: %+v", a)
	}
}

func fingerprintOf(c certtest.Credential) []byte {
	sum := registryCertificate(c.Leaf).Fingerprint
	f, _ := registry.ParseFingerprint(sum)
	return f[:]
}

func TestApprovalIsForQuarantinedDevicesOnly(t *testing.T) {
	r := newRig(t)
	r.register("pi-1")
	if err := r.approve("pi-1"); !errors.Is(err, registry.ErrTransition) {
		t.Errorf("a registered one: %v", err)
	}
	if err := r.approve("nobody"); !errors.Is(err, ErrUnknownDevice) {
		t.Errorf("an unknown one: %v", err)
	}
	r.introduce(r.pki.Device("pi-2"))
	for _, verb := range []Verb{VerbSuspend, VerbResume} {
		if _, err := r.Execute(t.Context(), Order{Verb: verb, Device: "pi-2"}, ann); !errors.Is(err, registry.ErrTransition) {
			t.Errorf("%s of a quarantined one: %v", verb, err)
		}
	}
	if _, err := r.Revoke(t.Context(), "pi-2", revocation.Unspecified, ann); err != nil || r.quarantined() != 0 {
		t.Errorf("turned away: %v, %d wait", err, r.quarantined())
	}
	if err := r.approve("pi-2"); !errors.Is(err, registry.ErrTransition) {
		t.Errorf("one that was turned away: %v", err)
	}
}

func TestSelectionOfNewcomersIsApproved(t *testing.T) {
	r := newRig(t)
	r.register("pi-1")
	for _, id := range []string{"pi-2", "pi-3"} {
		r.introduce(r.pki.Device(id))
	}
	s, err := registry.ParseSelector("state=quarantined,station=bench-1")
	if err != nil {
		t.Fatal(err)
	}
	result, err := r.Execute(t.Context(), Order{Verb: VerbApprove, Select: s}, ann)
	if err != nil || result.Receipt.Count != 2 || r.state("pi-2") != registry.StateRegistered || r.state("pi-3") != registry.StateRegistered {
		t.Errorf("%+v, %v", result, err)
	}
}

func TestNewcomersAreBounded(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*rig)
		in     func(*rig) Introduction
		reason string
	}{
		"too many wait": {func(r *rig) { r.config.Quarantine = func() int { return 2 } }, func(r *rig) Introduction { return introductionOf(r.pki.Device("pi-3")) }, RefusedForQuarantine},
		"another may, which waits for nobody": {func(r *rig) { r.config.Quarantine = func() int { return 2 } }, func(r *rig) Introduction {
			in := introductionOf(r.pki.Device("pi-3"))
			in.Activate = true
			return in
		}, ""},
		"a certificate by the hub": {nil, func(r *rig) Introduction {
			return introductionOf(r.pki.Device("pi-3", certtest.WithIssuer(r.pki.Operational)))
		}, RefusedForIssuer},
		"a key anywhere": {func(r *rig) { r.config.NeedsTPM = func(model string) bool { return model == "" } }, func(r *rig) Introduction { return introductionOf(r.pki.Device("pi-3")) }, RefusedForProtection},
		"a key in a TPM": {func(r *rig) { r.config.NeedsTPM = func(model string) bool { return model == "" } }, func(r *rig) Introduction {
			return introductionOf(r.pki.Device("pi-3", certtest.WithTPM()))
		}, ""},
		"another's serial number": {nil, func(r *rig) Introduction {
			d, err := r.record(r.t.Context(), "pi-1")
			if err != nil {
				r.t.Fatal(err)
			}
			in := introductionOf(r.pki.Device("pi-3"))
			copied := *in.Certificate
			copied.SerialNumber, _ = new(big.Int).SetString(d.Certificates[0].Serial, 16)
			in.Certificate = &copied
			return in
		}, RefusedForSerial},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			for _, id := range []string{"pi-1", "pi-2"} {
				r.introduce(r.pki.Device(id))
			}
			if test.change != nil {
				test.change(r)
			}
			_, err := r.Introduce(t.Context(), test.in(r))
			refusal, _ := errors.AsType[*IntroductionRefusal](err)
			if test.reason == "" && err != nil || test.reason != "" && (refusal == nil || refusal.Reason != test.reason) {
				t.Errorf("error = %v", err)
			}
			if r.Knows("pi-3") != (test.reason == "") {
				t.Error("taken down, or not")
			}
		})
	}
}

func TestNewcomersCountAgainstTheirStationsBudget(t *testing.T) {
	r := newRig(t)
	_, key := r.pki.IssuingCA(identity.KindFactory, certtest.StationName)
	small, err := r.pki.Root.IssueCA(issuance.CARequest{Kind: identity.KindFactory, Name: certtest.StationName, TrustDomain: certtest.TrustDomain, PublicKey: key.Public(), MaxDevices: 3})
	if err != nil {
		t.Fatal(err)
	}
	of, err := issuance.NewIssuer(small, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		in := introductionOf(r.pki.Device(fmt.Sprint("pi-", i), certtest.WithIssuer(of)))
		in.Activate = i == 0
		if _, err := r.Introduce(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	for _, state := range []string{"quarantined", "turned away"} {
		for _, activate := range []bool{false, true} {
			in := introductionOf(r.pki.Device("pi-9", certtest.WithIssuer(of)))
			in.Activate = activate
			_, err := r.Introduce(t.Context(), in)
			if refusal, ok := errors.AsType[*IntroductionRefusal](err); !ok || refusal.Reason != RefusedForBudget {
				t.Errorf("the others %s, activated %v: %v", state, activate, err)
			}
		}
		if _, err := r.Revoke(t.Context(), "pi-2", revocation.Unspecified, ann); err != nil {
			t.Fatal(err)
		}
	}
}

func TestManifestNamesNewcomers(t *testing.T) {
	r := newRig(t)
	waiting, liar, genuine, approved := r.pki.Device("pi-1"), r.pki.Device("pi-2"), r.pki.Device("pi-2"), r.pki.Device("pi-3")
	r.introduce(waiting)
	r.introduce(liar)
	r.introduce(approved)
	if err := r.approve("pi-3"); err != nil {
		t.Fatal(err)
	}
	var changed []string
	r.config.Changed = func(ids []string) { changed = append(changed, ids...) }
	data := r.sign(entryOf(waiting), entryOf(genuine), entryOf(approved), entryOf(r.pki.Device("pi-4")))
	for _, registered := range []int{4, 0} { // the same manifest again changes nothing
		report, err := r.Import(t.Context(), data, ann)
		if err != nil || report.Registered != registered || report.Registered+report.Unchanged != 4 {
			t.Fatalf("%+v, %v", report, err)
		}
	}
	for _, d := range []certtest.Credential{waiting, genuine, approved} {
		if !r.admits(d.Leaf) {
			t.Errorf("%s is refused", d.Identity.ID)
		}
	}
	if r.admits(liar.Leaf) {
		t.Error("who came under another's name is let in")
	}
	if d, err := r.Device(t.Context(), "pi-3"); err != nil || d.Model != "pi4" || d.Labels["line"] != "a" || d.Manifest != 1 || d.Batch != "bench-1.1" {
		t.Errorf("%+v, %v", d, err)
	}
	if strings.Join(changed, " ") != "pi-1 pi-2 pi-3" {
		t.Errorf("policy is decided again for %v", changed)
	}
	// They count once.
	if n, err := r.madeBy(t.Context(), certtest.StationName, 100); err != nil || n != 4 {
		t.Errorf("the station has made %d, %v", n, err)
	}
}

func TestManifestOfAReplacementComesAfterTheFirst(t *testing.T) {
	r := newRig(t)
	first, second := r.pki.Device("pi-1"), r.pki.Device("pi-1")
	r.introduce(second)
	e := instead(first, entryOf(second))
	if _, err := r.Import(t.Context(), r.sign(e), ann); !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "earlier manifests first") {
		t.Fatalf("error = %v", err)
	}
	r.mustImport(entryOf(first))
	r.mustImport(e)
	if !r.admits(second.Leaf) || r.admits(first.Leaf) || r.quarantined() != 0 {
		t.Error("the replacement is refused, or what it replaced isn't")
	}
}

// Whoever is faster, a device that was turned away stays out.
func TestRevocationWinsAgainstApproval(t *testing.T) {
	r := newRig(t)
	for round := range 20 {
		d := r.pki.Device(fmt.Sprint("pi-", round))
		id := d.Identity.ID
		r.introduce(d)
		var both sync.WaitGroup
		both.Go(func() {
			if err := r.approve(id); err != nil && !errors.Is(err, registry.ErrTransition) {
				t.Error(err)
			}
		})
		both.Go(func() {
			if _, err := r.Revoke(t.Context(), id, revocation.KeyCompromise, ann); err != nil {
				t.Error(err)
			}
		})
		both.Go(func() {
			if _, err := r.Introduce(t.Context(), introductionOf(d)); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
		if r.state(id) != registry.StateRevoked || r.admits(d.Leaf) {
			t.Fatalf("%s is %s", id, r.state(id))
		}
	}
}

func TestNewcomerThatCannotBeStoredIsNotThere(t *testing.T) {
	r := newRig(t)
	d := r.pki.Device("pi-1")
	r.store.broken.Store(true)
	if _, err := r.Introduce(t.Context(), introductionOf(d)); err == nil || r.Knows("pi-1") {
		t.Errorf("in memory alone: %v", err)
	}
	r.store.broken.Store(false)
	if r.introduce(d) != registry.StateQuarantined {
		t.Error("not afterwards either")
	}
}
