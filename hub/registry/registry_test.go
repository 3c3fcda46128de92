package registry

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func board() Device {
	return Device{
		ID: "pi-1", State: StateRegistered, Created: epoch, Updated: epoch, Model: "pi4",
		Labels:       map[string]string{"line": "a"},
		Certificates: []Certificate{{Serial: "01", Fingerprint: "aa", Issuer: "ee"}},
	}
}

func TestTransitionsAreExactlyTheLegalOnes(t *testing.T) {
	verbs := map[string]func(*Device) error{
		"activate": func(d *Device) error { return d.Activate(epoch) },
		"suspend":  func(d *Device) error { return d.Suspend("lost", epoch) },
		"resume":   func(d *Device) error { return d.Resume(epoch) },
		"revoke":   func(d *Device) error { return d.Revoke("keyCompromise", epoch) },
	}
	for _, tt := range []struct {
		from State
		verb string
		to   State // empty: refused
	}{
		{StateRegistered, "activate", StateActive},
		{StateRegistered, "suspend", StateSuspended},
		{StateRegistered, "resume", ""},
		{StateRegistered, "revoke", StateRevoked},
		{StateActive, "activate", ""},
		{StateActive, "suspend", StateSuspended},
		{StateActive, "resume", ""},
		{StateActive, "revoke", StateRevoked},
		{StateSuspended, "suspend", ""},
		{StateSuspended, "resume", StateRegistered}, // never seen
		{StateSuspended, "revoke", StateRevoked},
		{StateRevoked, "activate", ""},
		{StateRevoked, "suspend", ""},
		{StateRevoked, "resume", ""},
		{StateRevoked, "revoke", ""},
		{"nonsense", "activate", ""},
		{"", "revoke", ""},
	} {
		t.Run(string(tt.from)+"/"+tt.verb, func(t *testing.T) {
			d := board()
			d.State = tt.from
			before := d.Clone()
			err := verbs[tt.verb](&d)
			if tt.to == "" {
				if !errors.Is(err, ErrTransition) {
					t.Fatalf("error = %v, want ErrTransition", err)
				}
				if !reflect.DeepEqual(d, before) {
					t.Fatalf("a refused %s changed the record to %+v", tt.verb, d)
				}
				return
			}
			if err != nil || d.State != tt.to {
				t.Fatalf("state %s, error %v; want %s", d.State, err, tt.to)
			}
		})
	}
}

func TestResumeReturnsASeenDeviceToActive(t *testing.T) {
	d := board()
	d.State, d.FirstSeen = StateSuspended, epoch
	if err := d.Resume(epoch); err != nil || d.State != StateActive {
		t.Fatalf("state %s, error %v", d.State, err)
	}
}

// TestLifeKeepsItsInvariants drives a device through random operations and checks
// what must hold whatever the order: final is final, a revoked device has no usable
// certificate, only registered and active devices are admitted.
func TestLifeKeepsItsInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, now, serial := board(), epoch, 1
		step := func(verb func() error) {
			before := d.Clone()
			now = now.Add(time.Second)
			err := verb()
			switch {
			case err != nil && !reflect.DeepEqual(before, d):
				t.Fatalf("refused operation (%v) changed the record", err)
			case err == nil && !before.State.MayBecome(d.State) && before.State != d.State:
				t.Fatalf("moved from %s to %s", before.State, d.State)
			case before.State.Final() && err == nil:
				t.Fatalf("something was done to a device that is %s", before.State)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"activate": func(*rapid.T) { step(func() error { return d.Activate(now) }) },
			"suspend":  func(*rapid.T) { step(func() error { return d.Suspend("x", now) }) },
			"resume":   func(*rapid.T) { step(func() error { return d.Resume(now) }) },
			"revoke": func(t *rapid.T) {
				if rapid.IntRange(0, 4).Draw(t, "rarely") == 0 {
					step(func() error { return d.Revoke("keyCompromise", now) })
				}
			},
			"supersede": func(*rapid.T) {
				serial++
				next := Certificate{Serial: string(rune('0' + serial)), Fingerprint: string(rune('a' + serial))}
				step(func() error { return d.Supersede(d.Certificates[len(d.Certificates)-1].Serial, next, now) })
			},
			"see": func(*rapid.T) { d.FirstSeen = now },
			"": func(t *rapid.T) {
				usable := 0
				for _, c := range d.Certificates {
					if c.Usable() {
						usable++
					}
				}
				status := d.Status()
				if d.State == StateRevoked && (usable != 0 || len(status.Fingerprints) != 0) {
					t.Fatalf("a revoked device has %d usable certificates", usable)
				}
				if d.State != StateRevoked && usable != 1 {
					t.Fatalf("a device that is %s has %d usable certificates", d.State, usable)
				}
				for _, c := range d.Certificates {
					want := c.Usable() && (d.State == StateRegistered || d.State == StateActive)
					if status.Admits(c.Fingerprint) != want {
						t.Fatalf("admits certificate %+v in state %s: %v", c, d.State, !want)
					}
				}
			},
		})
	})
}

func TestZeroStatusAdmitsNobody(t *testing.T) {
	if (Status{}).Admits("") || (Status{Fingerprints: []string{"aa"}}).Admits("aa") || State("").MayConnect() || State("").Final() {
		t.Fatal("a zero status admits")
	}
}

func TestCloneAndStatusShareNothingThatChanges(t *testing.T) {
	d := board()
	clone, status := d.Clone(), d.Status()
	if err := d.Revoke("keyCompromise", epoch); err != nil {
		t.Fatal(err)
	}
	d.Labels["line"] = "b"
	if !clone.Certificates[0].Usable() || clone.Labels["line"] != "a" || status.Labels["line"] != "a" {
		t.Fatal("changing a record changed its copies")
	}
	if !slices.Equal(d.Serials(), []string{"01"}) || !d.Holds("aa") || d.Holds("bb") {
		t.Fatal("the record lost its certificate")
	}
}
