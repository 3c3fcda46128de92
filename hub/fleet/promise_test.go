package fleet

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
	"pgregory.net/rapid"
)

// TestNobodyIsAdmittedAfterTheReceipt drives a fleet through random orders, sightings,
// labels, imports, restarts and a disk that refuses, and holds it to what operators were
// told: whoever they have a receipt for is out, until the order that lifts it; whoever
// was never cut off is in; and a restart forgets only what was said not to be durable.
func TestNobodyIsAdmittedAfterTheReceipt(t *testing.T) {
	checks := flag.Lookup("rapid.checks")
	was := checks.Value.String()
	checks.Value.Set("30") // each commit of these is synced to a disk
	defer checks.Value.Set(was)
	type told struct {
		out, final, durable bool
	}
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		credentials := make(map[string]certtest.Credential)
		know := make(map[string]*told)
		for i, c := range r.register("pi-0", "pi-1", "pi-2", "pi-3", "pi-4") {
			id := fmt.Sprint("pi-", i)
			credentials[id], know[id] = c, &told{durable: true}
		}
		ids := rapid.SampledFrom([]string{"pi-0", "pi-1", "pi-2", "pi-3", "pi-4"})
		learn := func(id string, verb Verb, err error) {
			k := know[id]
			switch {
			case err == nil && verb == VerbResume:
				*k = told{durable: true}
			case err == nil:
				*k = told{out: true, final: k.final && k.durable || verbs[verb].state.Final(), durable: true}
			case errors.Is(err, ErrNotDurable) && !k.out:
				*k = told{out: true, final: false, durable: false}
			}
		}
		single := func(rt *rapid.T, verb Verb) {
			id := ids.Draw(rt, "id")
			_, err := r.one(t.Context(), Order{Verb: verb, Device: id, Reason: revocation.KeyCompromise}, ann)
			learn(id, verb, err)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"suspend": func(rt *rapid.T) { single(rt, VerbSuspend) },
			"resume":  func(rt *rapid.T) { single(rt, VerbResume) },
			"revoke or retire": func(rt *rapid.T) {
				if rapid.IntRange(0, 3).Draw(rt, "rarely") == 0 {
					single(rt, rapid.SampledFrom([]Verb{VerbRevoke, VerbRetire}).Draw(rt, "verb"))
				}
			},
			"suspend some": func(rt *rapid.T) {
				s := selecting(t, rapid.SampledFrom([]string{"id=pi-0|pi-1", "state=active", "state=registered,id!=pi-3", "label.ring=canary"}).Draw(rt, "selector"))
				radius, err := r.Rehearse(t.Context(), Order{Verb: VerbSuspend, Select: s})
				if err != nil {
					rt.Fatal(err)
				}
				_, err = r.Execute(t.Context(), Order{Verb: VerbSuspend, Select: s}, ben)
				for _, id := range radius.IDs {
					learn(id, VerbSuspend, err)
				}
			},
			"label": func(rt *rapid.T) {
				r.Relabel(t.Context(), Relabel{Device: ids.Draw(rt, "id"), Labels: map[string]string{"ring": rapid.SampledFrom([]string{"canary", "stable", ""}).Draw(rt, "ring")}}, ann)
			},
			"see": func(rt *rapid.T) {
				id := ids.Draw(rt, "id")
				r.flush([]string{id}, map[string]time.Time{id: time.Now()})
			},
			"import again": func(rt *rapid.T) {
				r.Import(t.Context(), r.sign(entryOf(credentials[ids.Draw(rt, "id")])), ann)
			},
			"disk": func(rt *rapid.T) { r.store.broken.Store(rapid.Bool().Draw(rt, "broken")) },
			"restart": func(rt *rapid.T) {
				if r.store.broken.Load() {
					return // rig's Close wants to write its last sightings
				}
				r.restart()
				for _, k := range know {
					if !k.durable {
						*k = told{out: true, durable: false, final: true} // unknown: see below
					}
				}
			},
			"": func(rt *rapid.T) {
				for id, k := range know {
					status, ok := r.Status(id)
					admitted := ok && status.Admits(sha256.Sum256(credentials[id].Leaf.Raw))
					if !k.durable && k.final { // what a restart made of a cut-off that wasn't durable
						d, err := r.record(t.Context(), id)
						if err != nil {
							rt.Fatal(err)
						}
						*k = told{out: !d.State.MayConnect(), final: d.State.Final(), durable: true}
					}
					if admitted == k.out {
						rt.Fatalf("%s is %s, admitted %v, and operators were told %+v", id, status.State, admitted, *k)
					}
					if _, _, resumed := r.Resumable(names(credentials[id])[1]); resumed == k.out {
						rt.Fatalf("a ticket of %s is good: %v, and operators were told %+v", id, resumed, *k)
					}
					if d, err := r.Device(t.Context(), id); err != nil || d.State.MayConnect() != admitted {
						rt.Fatalf("%s is shown as %s, %v, and is admitted: %v", id, d.State, err, admitted)
					}
					if k.final && k.durable && status.State != registry.StateRevoked && status.State != registry.StateRetired {
						rt.Fatalf("%s was cut off for good and is %s", id, status.State)
					}
				}
			},
		})
		r.store.broken.Store(false)
		if _, err := r.VerifyAudit(t.Context()); err != nil {
			rt.Fatal(err)
		}
	})
}
