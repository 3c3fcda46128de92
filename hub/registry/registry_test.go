package registry

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// certificates returns certificates of one device, each for a key of its own.
func certificates(t testing.TB, n int) []Certificate {
	t.Helper()
	pki := certtest.New(t)
	var all []Certificate
	for range n {
		leaf := pki.Device("pi-1").Leaf
		all = append(all, Certificate{
			Serial: identity.SerialString(leaf.SerialNumber), Fingerprint: identity.Fingerprint(leaf), Issuer: "ee",
			NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, DER: leaf.Raw,
		})
	}
	return all
}

func board(c Certificate) Device {
	d := Device{ID: "pi-1", Model: "pi4", Labels: map[string]string{"line": "a"}, Metadata: map[string]string{"shelf": "3"}, Certificates: []Certificate{c}}
	if err := d.Register(Cause{Actor: "ann", At: epoch}); err != nil {
		panic(err)
	}
	return d
}

func verbs(by string) map[string]func(*Device, Cause) error {
	return map[string]func(*Device, Cause) error{
		"register": (*Device).Register,
		"activate": (*Device).Activate,
		"suspend":  (*Device).Suspend,
		"resume":   (*Device).Resume,
		"revoke":   (*Device).Revoke,
		"retire":   (*Device).Retire,
		"replace":  func(d *Device, c Cause) error { return d.Replace(by, c) },
		"allow":    (*Device).Allow,

		"introduce": (*Device).Introduce,
		"approve":   (*Device).Approve,
	}
}

func TestTransitionsAreExactlyTheLegalOnes(t *testing.T) {
	legal := map[State]map[string]State{ // what isn't here is refused
		"":               {"register": StateRegistered, "introduce": StateQuarantined},
		StateRegistered:  {"activate": StateActive, "suspend": StateSuspended, "revoke": StateRevoked, "retire": StateRetired, "replace": StateReplaced},
		StateActive:      {"suspend": StateSuspended, "revoke": StateRevoked, "retire": StateRetired, "replace": StateReplaced},
		StateSuspended:   {"resume": StateRegistered, "revoke": StateRevoked, "retire": StateRetired, "replace": StateReplaced},
		StateQuarantined: {"approve": StateRegistered, "revoke": StateRevoked, "retire": StateRetired},

		StateRevoked:  {"allow": StateRevoked},
		StateRetired:  {"allow": StateRetired},
		StateReplaced: {"allow": StateReplaced},
		"nonsense":    {},
	}
	cause := Cause{Actor: "ann", Reason: "keyCompromise", Note: "stolen", Receipt: "r-1", At: epoch.Add(time.Hour)}
	certificate := certificates(t, 1)[0]
	for from, allowed := range legal {
		for name, verb := range verbs("pi-2") {
			t.Run(string(from)+"/"+name, func(t *testing.T) {
				d := board(certificate)
				d.State = from
				before := d.Clone()
				err := verb(&d, cause)
				to, ok := allowed[name]
				if !ok {
					if !errors.Is(err, ErrTransition) {
						t.Fatalf("error = %v, want ErrTransition", err)
					}
					if !reflect.DeepEqual(d, before) {
						t.Fatalf("a refused %s changed the record to %+v", name, d)
					}
					return
				}
				if err != nil || d.State != to {
					t.Fatalf("state %s, error %v; want %s", d.State, err, to)
				}
				if name == "allow" {
					if d.Permit == nil || d.Permit.Actor != "ann" || len(d.History) != len(before.History) {
						t.Fatalf("record = %+v", d)
					}
					return
				}
				since := d.Since()
				if since.From != from || since.To != to || since.Actor != "ann" || since.Note != "stolen" || since.Receipt != "r-1" || !since.At.Equal(cause.At) {
					t.Fatalf("its transition is %+v", since)
				}
				want := map[string]string{"suspend": ReasonHold, "resume": "", "approve": ""}
				reason, special := want[name]
				if !special {
					reason = "keyCompromise"
				}
				if d.Reason != reason || since.Reason != reason {
					t.Fatalf("reason %q and %q, want %q", d.Reason, since.Reason, reason)
				}
			})
		}
	}
}

func TestDeviceCannotReplaceItself(t *testing.T) {
	for _, by := range []string{"", "pi-1"} {
		d := board(certificates(t, 1)[0])
		if err := d.Replace(by, Cause{At: epoch}); err == nil || d.State != StateRegistered {
			t.Errorf("replaced by %q: %s, %v", by, d.State, err)
		}
	}
}

func TestResumeReturnsASeenDeviceToActive(t *testing.T) {
	d := board(certificates(t, 1)[0])
	d.State, d.FirstSeen = StateSuspended, epoch
	if err := d.Resume(Cause{At: epoch}); err != nil || d.State != StateActive {
		t.Fatalf("state %s, error %v", d.State, err)
	}
}

func TestOnlyANewCertificateForANewKeyReinstates(t *testing.T) {
	all := certificates(t, 2)
	pki := certtest.New(t)
	sameKey := pki.Device("pi-1")
	first := Certificate{Serial: "01", Fingerprint: identity.Fingerprint(sameKey.Leaf), DER: sameKey.Leaf.Raw}
	again := first
	again.Serial, again.Fingerprint = "02", all[0].Fingerprint // as if it were renewed
	for _, tt := range []struct {
		name   string
		permit bool
		next   Certificate
		ok     bool
	}{
		{"without leave", false, all[0], false},
		{"the old certificate", true, first, false},
		{"another certificate for the old key", true, again, false},
		{"a certificate that can't be read", true, Certificate{Serial: "03", DER: []byte{1}}, false},
		{"a new one", true, all[0], true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := board(first)
			if err := d.Reinstate(tt.next, Cause{At: epoch}); !errors.Is(err, ErrTransition) {
				t.Fatalf("a device in good standing was reinstated: %v", err)
			}
			if err := d.Revoke(Cause{Reason: "keyCompromise", At: epoch}); err != nil {
				t.Fatal(err)
			}
			if tt.permit {
				if err := d.Allow(Cause{Actor: "ann", At: epoch}); err != nil {
					t.Fatal(err)
				}
			}
			before := d.Clone()
			err := d.Reinstate(tt.next, Cause{Actor: "ben", At: epoch})
			if !tt.ok {
				if err == nil || !reflect.DeepEqual(d, before) {
					t.Fatalf("error %v, record %+v", err, d)
				}
				return
			}
			if err != nil || d.State != StateRegistered || d.Permit != nil || len(d.Certificates) != 2 || !d.Certificates[1].Usable() || d.Certificates[0].Usable() || d.Reason != "" {
				t.Fatalf("error %v, record %+v", err, d)
			}
			if err := d.Reinstate(all[1], Cause{At: epoch}); !errors.Is(err, ErrTransition) {
				t.Fatalf("the leave was used twice: %v", err)
			}
		})
	}
}

// TestLifeKeepsItsInvariants drives a device through random operations and checks
// what must hold whatever the order: final is final but for a reinstatement, a device
// that is out has no usable certificate and keeps why, only registered and active
// devices are admitted, and the history leads from the first state to the present one.
func TestLifeKeepsItsInvariants(t *testing.T) {
	all := certificates(t, 12)
	rapid.Check(t, func(t *rapid.T) {
		d, now, used := board(all[0]), epoch, 1
		step := func(name string, verb func() error) {
			before := d.Clone()
			now = now.Add(time.Second)
			err := verb()
			switch {
			case err != nil && !reflect.DeepEqual(before, d):
				t.Fatalf("refused operation (%v) changed the record", err)
			case err != nil:
			case name == "allow":
				if !before.State.Final() || d.State != before.State {
					t.Fatalf("a device that was %s got leave to come back and is %s", before.State, d.State)
				}
			case name == "reinstate":
				if !before.State.Final() || before.Permit == nil || d.State != StateRegistered {
					t.Fatalf("a device that was %s was reinstated, with leave %v", before.State, before.Permit)
				}
			case before.State.Final():
				t.Fatalf("%s was done to a device that is %s", name, before.State)
			case before.State != d.State && !before.State.MayBecome(d.State):
				t.Fatalf("moved from %s to %s", before.State, d.State)
			}
			if err == nil && before.State != d.State && (d.Since().From != before.State || d.Since().To != d.State || !d.Since().At.Equal(now)) {
				t.Fatalf("the step from %s to %s is written down as %+v", before.State, d.State, d.Since())
			}
		}
		actions := map[string]func(*rapid.T){
			"see": func(*rapid.T) { d.FirstSeen = now },
			"supersede": func(*rapid.T) {
				if used < len(all) {
					step("supersede", func() error { return d.Supersede(d.Certificates[len(d.Certificates)-1].Serial, all[used], now) })
					used += boolToInt(d.Holds(all[used].Fingerprint))
				}
			},
			"reinstate": func(*rapid.T) {
				if used < len(all) {
					step("reinstate", func() error { return d.Reinstate(all[used], Cause{Actor: "ann", At: now}) })
					used += boolToInt(d.Holds(all[used].Fingerprint))
				}
			},
			"": func(t *rapid.T) {
				usable := 0
				facts := d.Facts()
				status := Status{State: d.State, Fingerprints: facts.Usable}
				for _, c := range d.Certificates {
					if c.Usable() {
						usable++
					}
					if !c.Revoked.IsZero() && c.Reason == "" {
						t.Fatal("a certificate was revoked for no reason")
					}
					want := c.Usable() && (d.State == StateRegistered || d.State == StateActive)
					if sum, _ := ParseFingerprint(c.Fingerprint); status.Admits(sum) != want {
						t.Fatalf("admits certificate %+v in state %s: %v", c, d.State, !want)
					}
				}
				if want := boolToInt(!d.State.Final()); usable != want || len(facts.Usable) != want || facts.NotAfter.IsZero() == (want == 1) {
					t.Fatalf("a device that is %s has %d usable certificates", d.State, usable)
				}
				if len(d.History) > maxHistory || d.Since().To != d.State || d.Since().Reason != d.Reason {
					t.Fatalf("it is %s, and its history ends with %+v", d.State, d.Since())
				}
				for i := range d.History[1:] {
					if d.History[i].To != d.History[i+1].From {
						t.Fatalf("its history has a gap: %+v", d.History)
					}
				}
			},
		}
		for name, verb := range verbs("pi-2") {
			actions[name] = func(t *rapid.T) {
				if name == "revoke" || name == "retire" || name == "replace" {
					if rapid.IntRange(0, 4).Draw(t, "rarely") > 0 {
						return
					}
				}
				step(name, func() error { return verb(&d, Cause{Actor: "ann", Reason: "keyCompromise", At: now}) })
			}
		}
		t.Repeat(actions)
	})
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestHistoryIsBoundedAndKeepsTheLatest(t *testing.T) {
	d := board(certificates(t, 1)[0])
	for i := range 3 * maxHistory {
		c := Cause{Actor: "ann", Note: fmt.Sprint(i), At: epoch.Add(time.Duration(i))}
		verb := (*Device).Suspend
		if i%2 == 1 {
			verb = (*Device).Resume
		}
		if err := verb(&d, c); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.History) != maxHistory || d.Since().Note != fmt.Sprint(3*maxHistory-1) {
		t.Fatalf("%d entries, the last %+v", len(d.History), d.Since())
	}
}

func TestStandingNamesTheFirstThingThatIsWrong(t *testing.T) {
	good := Certificate{NotBefore: epoch, NotAfter: epoch.Add(time.Hour)}
	at := epoch.Add(time.Minute)
	for _, tt := range []struct {
		want    Standing
		change  func(*Certificate)
		now     time.Time
		trusted bool
	}{
		{StandingUsable, func(*Certificate) {}, at, true},
		{StandingRevoked, func(c *Certificate) { c.Revoked, c.Superseded = at, at }, at, false},
		{StandingSuperseded, func(c *Certificate) { c.Superseded = at }, at, false},
		{StandingUntrusted, func(*Certificate) {}, epoch.AddDate(1, 0, 0), false},
		{StandingExpired, func(*Certificate) {}, epoch.AddDate(1, 0, 0), true},
		{StandingNotYetValid, func(*Certificate) {}, epoch.AddDate(-1, 0, 0), true},
	} {
		c := good
		tt.change(&c)
		if got := c.StandingAt(tt.now, tt.trusted); got != tt.want {
			t.Errorf("standing is %s, want %s", got, tt.want)
		}
	}
}

func TestZeroStatusAdmitsNobody(t *testing.T) {
	if (Status{}).Admits(Fingerprint{}) || (Status{Fingerprints: []Fingerprint{{1}}}).Admits(Fingerprint{1}) || State("").MayConnect() || State("").Final() {
		t.Fatal("a zero status admits")
	}
}

func TestCloneSharesNothingThatChanges(t *testing.T) {
	d := board(certificates(t, 1)[0])
	fingerprint := d.Certificates[0].Fingerprint
	clone := d.Clone()
	if err := d.Revoke(Cause{Reason: "keyCompromise", At: epoch}); err != nil {
		t.Fatal(err)
	}
	d.Labels["line"], d.Metadata["shelf"], d.History[0].Note = "b", "4", "x"
	if !clone.Certificates[0].Usable() || clone.Labels["line"] != "a" || clone.Metadata["shelf"] != "3" || clone.History[0].Note != "" {
		t.Fatal("changing a record changed its copies")
	}
	if len(d.Serials()) != 1 || !d.Holds(fingerprint) || d.Holds("bb") {
		t.Fatal("the record lost its certificate")
	}
}

func TestEveryStateIsListedOnce(t *testing.T) {
	states := States()
	for state := range transitions {
		if !slices.Contains(states, state) {
			t.Errorf("%s is not listed", state)
		}
	}
	if len(states) != len(transitions) {
		t.Errorf("%d states listed, there are %d", len(states), len(transitions))
	}
}
