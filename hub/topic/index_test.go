package topic

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// shown is a result in comparable words: "key=subs" for each direct subscriber, "share:filter[members]" for each group.
func shown(r *Result[string, int]) []string {
	var all []string
	for _, d := range r.Direct {
		slices.Sort(d.Subs)
		all = append(all, fmt.Sprint(d.Key, "=", d.Subs))
	}
	for _, g := range r.Shared {
		var members []string
		for _, m := range g.Members {
			members = append(members, fmt.Sprint(m.Key, "=", m.Subs))
		}
		slices.Sort(members)
		all = append(all, fmt.Sprint(g.Share, ":", g.Filter, members))
	}
	slices.Sort(all)
	return all
}

// naive is an index that tries every subscription.
type naive map[string]map[string]int // by filter and key

func (n naive) match(name string) []string {
	direct, groups := make(map[string][]int), make(map[string][]string)
	for filter, subs := range n {
		share, text, shared := CutShare(filter)
		if !defined(strings.Split(text, "/"), strings.Split(name, "/")) {
			continue
		}
		for key, sub := range subs {
			if shared {
				groups[share+":"+text] = append(groups[share+":"+text], fmt.Sprint(key, "=", []int{sub}))
			} else {
				direct[key] = append(direct[key], sub)
			}
		}
	}
	var all []string
	for key, subs := range direct {
		slices.Sort(subs)
		all = append(all, fmt.Sprint(key, "=", subs))
	}
	for group, members := range groups {
		slices.Sort(members)
		all = append(all, fmt.Sprint(group, members))
	}
	slices.Sort(all)
	return all
}

// TestIndexAgreesWithTryingEverySubscription drives an index and a naive one with few levels, so that filters overlap and
// nodes burst, and asks for each name twice, so that what the cache kept before a change is asked for after it.
func TestIndexAgreesWithTryingEverySubscription(t *testing.T) {
	level := rapid.SampledFrom([]string{"a", "b", "c", "", "$x"})
	name := rapid.Map(rapid.SliceOfN(level, 1, 5), func(l []string) string {
		if len(l) == 1 && l[0] == "" {
			return "/"
		}
		return strings.Join(l, "/")
	})
	filter := rapid.Custom(func(t *rapid.T) string {
		levels := rapid.SliceOfN(rapid.OneOf(level, rapid.Just("+")), 1, 5).Draw(t, "levels")
		if rapid.IntRange(0, 2).Draw(t, "rest") == 0 {
			levels = append(levels, "#")
		}
		if len(levels) == 1 && levels[0] == "" {
			levels[0] = "a"
		}
		f := strings.Join(levels, "/")
		if rapid.IntRange(0, 3).Draw(t, "shared") == 0 {
			f = "$share/" + rapid.SampledFrom([]string{"x", "y"}).Draw(t, "share") + "/" + f
		}
		return f
	})
	key := rapid.Map(rapid.IntRange(0, 40), func(i int) string { return fmt.Sprint("k", i) })
	rapid.Check(t, func(t *rapid.T) {
		var x Index[string, int]
		want, size := make(naive), 0
		names := rapid.SliceOfN(name, 1, 8).Draw(t, "names")
		t.Repeat(map[string]func(*rapid.T){
			"subscribe": func(t *rapid.T) {
				for _, f := range rapid.SliceOfN(filter, 1, 60).Draw(t, "filters") {
					k, sub := key.Draw(t, "key"), rapid.IntRange(0, 9).Draw(t, "sub")
					_, known := want[f][k]
					if got := x.Subscribe(f, k, sub); got != known {
						t.Fatalf("Subscribe(%q, %s) = %v", f, k, got)
					}
					if want[f] == nil {
						want[f] = make(map[string]int)
					}
					if want[f][k] = sub; !known {
						size++
					}
				}
			},
			"everyone": func(t *rapid.T) {
				f := filter.Draw(t, "filter")
				if want[f] == nil {
					want[f] = make(map[string]int)
				}
				for i := range 2 * listed {
					k := fmt.Sprint("k", i)
					if !x.Subscribe(f, k, i) {
						size++
					}
					want[f][k] = i
				}
			},
			"unsubscribe": func(t *rapid.T) {
				filters := slices.Sorted(maps.Keys(want))
				if len(filters) == 0 {
					t.Skip()
				}
				for _, f := range rapid.SliceOfN(rapid.SampledFrom(filters), 1, 40).Draw(t, "filters") {
					k := key.Draw(t, "key")
					if all := slices.Sorted(maps.Keys(want[f])); len(all) > 0 && rapid.Bool().Draw(t, "known") {
						k = rapid.SampledFrom(all).Draw(t, "key")
					}
					_, known := want[f][k]
					if got := x.Unsubscribe(f, k); got != known {
						t.Fatalf("Unsubscribe(%q, %s) = %v", f, k, got)
					}
					if delete(want[f], k); known {
						size--
					}
				}
			},
			"": func(t *rapid.T) {
				if x.Len() != size {
					t.Fatalf("Len = %d, want %d", x.Len(), size)
				}
				for _, name := range names {
					for range 2 {
						if got, want := shown(x.Match(name)), want.match(name); !slices.Equal(got, want) {
							t.Fatalf("Match(%q):\n got %q\nwant %q", name, got, want)
						}
					}
				}
			},
		})
		for f, subs := range want {
			for k := range subs {
				if !x.Unsubscribe(f, k) {
					t.Fatalf("Unsubscribe(%q, %s): there is none", f, k)
				}
			}
		}
		if x.Len() != 0 || !x.wide.root.empty() {
			t.Fatalf("after all have unsubscribed: %d, root %+v", x.Len(), x.wide.root)
		}
		for i := range x.narrow {
			if n := len(x.narrow[i].subtrees); n != 0 {
				t.Fatalf("after all have unsubscribed a shard has %d subtrees", n)
			}
		}
	})
}

func TestInvalidFiltersAndNamesAreKeptNowhere(t *testing.T) {
	var x Index[string, int]
	for _, filter := range []string{"", "a#", "a/#/b", "$share//x", "$share/x", strings.Repeat("/", 65_000), strings.Repeat("+/", 32_000) + "#"} {
		if x.Subscribe(filter, "k", 1) || x.Len() != 0 {
			t.Errorf("Subscribe(%.20q) took it", filter)
		}
		if x.Unsubscribe(filter, "k") {
			t.Errorf("Unsubscribe(%.20q) found it", filter)
		}
	}
	x.Subscribe("#", "k", 1)
	for _, name := range []string{"", "#", "a/+", "a\x00", strings.Repeat("/", 65_000)} {
		if r := x.Match(name); r == nil || len(r.Direct)+len(r.Shared) != 0 {
			t.Errorf("Match(%.20q) = %+v", name, r)
		}
	}
}

func TestMembersOfAShareTakeTurnsAcrossTopicsAndChanges(t *testing.T) {
	var x Index[string, int]
	for i := range 3 {
		x.Subscribe("$share/g/d/+/tele/#", fmt.Sprint("k", i), i)
	}
	took := make(map[string]int)
	for i := range 300 {
		g := x.Match(fmt.Sprint("d/pi-", i%50, "/tele/x")).Shared[0]
		took[g.Members[g.Next()].Key]++
		x.Subscribe("presence/#", "k0", i) // every result is gathered anew
	}
	for key, n := range took {
		if n != 100 {
			t.Errorf("%s took %d of 300", key, n)
		}
	}
}

// TestMatchSeesWhatSubscribeReturned has publishers ask without pause while subscribers come and go: one who is subscribed
// all the time is always found, and a change is seen by the call after it.
func TestMatchSeesWhatSubscribeReturned(t *testing.T) {
	var x Index[int, int]
	x.Subscribe("d/+/cmd/#", -1, 0)
	x.Subscribe("d/pi-0/cmd/#", -2, 0)
	var stop atomic.Bool
	var publishers, subscribers sync.WaitGroup
	has := func(r *Result[int, int], key int) bool {
		return slices.ContainsFunc(r.Direct, func(s Subscriber[int, int]) bool { return s.Key == key && len(s.Subs) > 0 })
	}
	for range 2 {
		publishers.Go(func() {
			for !stop.Load() {
				if r := x.Match("d/pi-0/cmd/x"); !has(r, -1) || !has(r, -2) {
					t.Error("who was subscribed all the time was not found")
					return
				}
			}
		})
	}
	for w := range 4 {
		subscribers.Go(func() {
			filters := []string{"d/pi-0/cmd/#", "d/+/cmd/x", "d/pi-0/cmd/+", "#"}
			for i := range 500 {
				key, filter := w*1000+i, filters[(w+i)%len(filters)]
				x.Subscribe(filter, key, i)
				if !has(x.Match("d/pi-0/cmd/x"), key) {
					t.Errorf("%d subscribed to %s and was not found", key, filter)
				}
				x.Unsubscribe(filter, key)
				if has(x.Match("d/pi-0/cmd/x"), key) {
					t.Errorf("%d unsubscribed from %s and was found", key, filter)
				}
			}
		})
	}
	subscribers.Wait()
	stop.Store(true)
	publishers.Wait()
	if x.Len() != 2 {
		t.Errorf("%d subscriptions are left, want 2", x.Len())
	}
}
