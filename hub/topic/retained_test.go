package topic

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestRetainedAgreesWithAMap(t *testing.T) {
	level := rapid.SampledFrom([]string{"a", "b", "c", "", "$x"})
	name := rapid.Map(rapid.SliceOfN(level, 1, 4), func(l []string) string { return strings.Join(l, "/") })
	filter := rapid.Custom(func(t *rapid.T) string {
		levels := rapid.SliceOfN(rapid.OneOf(level, rapid.Just("+")), 1, 4).Draw(t, "levels")
		if rapid.Bool().Draw(t, "rest") {
			levels = append(levels, "#")
		}
		return strings.Join(levels, "/")
	})
	rapid.Check(t, func(t *rapid.T) {
		var r Retained[int]
		want := make(map[string]int)
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				for _, n := range rapid.SliceOfN(name, 1, 20).Draw(t, "names") {
					v := rapid.Int().Draw(t, "value")
					wasWant, knownWant := want[n]
					if was, known := r.Set(n, v); was != wasWant || known != knownWant {
						t.Fatalf("Set(%q) = %d, %v", n, was, known)
					}
					want[n] = v
				}
			},
			"delete": func(t *rapid.T) {
				n := name.Draw(t, "name")
				if all := slices.Sorted(maps.Keys(want)); len(all) > 0 && rapid.Bool().Draw(t, "known") {
					n = rapid.SampledFrom(all).Draw(t, "name")
				}
				wasWant, knownWant := want[n]
				if was, known := r.Delete(n); was != wasWant || known != knownWant {
					t.Fatalf("Delete(%q) = %d, %v", n, was, known)
				}
				delete(want, n)
			},
			"match": func(t *rapid.T) {
				f := filter.Draw(t, "filter")
				var names []string
				for _, n := range slices.Sorted(maps.Keys(want)) {
					if f != "" && defined(strings.Split(f, "/"), strings.Split(n, "/")) {
						names = append(names, n)
					}
				}
				if got := r.Match(f); !slices.Equal(got, names) {
					t.Fatalf("Match(%q) = %q, want %q", f, got, names)
				}
			},
			"": func(t *rapid.T) {
				all := make(map[string]int)
				r.Range(func(name string, v int) bool { all[name] = v; return true })
				if !maps.Equal(all, want) || r.Len() != len(want) {
					t.Fatalf("Range has %v and Len %d, want %v", all, r.Len(), want)
				}
				for n, v := range want {
					if got, ok := r.Get(n); got != v || !ok {
						t.Fatalf("Get(%q) = %d, %v", n, got, ok)
					}
				}
				if got, ok := r.Get("no/such/name"); got != 0 || ok {
					t.Fatalf("Get of an unknown name: %d, %v", got, ok)
				}
			},
		})
		for n := range want {
			r.Delete(n)
		}
		for i := range r.shards {
			if n := len(r.shards[i].subtrees); n != 0 {
				t.Fatalf("after all were deleted a shard has %d subtrees", n)
			}
		}
	})
}

func TestRangeMayChangeWhatItWalksOverAndStop(t *testing.T) {
	var r Retained[int]
	for i := range 100 {
		r.Set(fmt.Sprint("d/pi-", i, "/twin/reported"), i)
	}
	seen := 0
	r.Range(func(name string, _ int) bool { seen++; r.Delete(name); return seen < 40 })
	if seen != 40 || r.Len() != 60 {
		t.Errorf("seen %d, left %d", seen, r.Len())
	}
}

func TestRetainedServesManyAtOnce(t *testing.T) {
	var r Retained[int]
	r.Set("d/pi-0/twin/reported", -1)
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for i := range 500 {
				name := fmt.Sprint("d/pi-", w, "/twin/", i)
				r.Set(name, i)
				if names := r.Match("d/+/twin/#"); !slices.Contains(names, name) || !slices.Contains(names, "d/pi-0/twin/reported") {
					t.Errorf("%s, just set, is not among %d", name, len(names))
				}
				r.Range(func(string, int) bool { return false })
				if v, ok := r.Delete(name); v != i || !ok {
					t.Errorf("%s: %d, %v", name, v, ok)
				}
			}
		})
	}
	all.Wait()
	if r.Len() != 1 {
		t.Errorf("%d are left, want 1", r.Len())
	}
}
