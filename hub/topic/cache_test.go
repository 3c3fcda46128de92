package topic

import (
	"fmt"
	"strconv"
	"testing"
)

func TestADeviceThatSubscribesCostsNobodyElseAKeptResult(t *testing.T) {
	var x Index[string, int]
	x.Subscribe("d/+/tele/#", "service", 0)
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprint("d/pi-", i, "/tele/x")
		x.Match(names[i])
	}
	count := func() (valid int) {
		for _, n := range names {
			if x.cache.Load().load(n) != nil {
				valid++
			}
		}
		return valid
	}
	before := count()
	if before < 90 { // hashes may meet, rarely
		t.Fatalf("of 100 results %d were kept", before)
	}
	for i := range names {
		x.Subscribe(fmt.Sprint("d/other-", i, "/cmd/#"), "other", 0)
		x.Unsubscribe(fmt.Sprint("d/other-", i, "/cmd/#"), "other")
	}
	if after := count(); after < before-10 {
		t.Errorf("of %d kept results %d outlived others' subscriptions", before, after)
	}
	x.Subscribe("d/pi-0/cmd/#", "pi-0", 0)
	if x.cache.Load().load(names[0]) != nil {
		t.Error("a result outlived a change in its own subtree")
	}
	x.Subscribe("presence/#", "service", 0)
	if after := count(); after != 0 {
		t.Errorf("%d results outlived a change of a wide filter", after)
	}
}

func TestAKeptResultIsFoundWithoutAllocating(t *testing.T) {
	var x Index[string, int]
	x.Subscribe("d/+/tele/#", "service", 0)
	for _, name := range []string{"d/pi-1/tele/x", "nobody/listens", "a\x00"} {
		x.Match(name)
		if n := testing.AllocsPerRun(100, func() { x.Match(name) }); n != 0 {
			t.Errorf("%q: %v allocations, want 0", name, n)
		}
	}
}

// mass adds up what the slots refer to.
func mass[K comparable, S any](c *cache[K, S]) (results int, weight int64) {
	for i := range c.slots {
		if k := c.slots[i].Load(); k != nil {
			results++
			weight += k.weight
		}
	}
	return results, weight
}

func TestCacheIsBoundedInResultsAndInWhatTheyReferTo(t *testing.T) {
	var x Index[int, int]
	const subscribers = 1000
	for k := range subscribers {
		x.Subscribe("g/site=north/#", k, k)
	}
	for i := range 4 * cacheMass / subscribers {
		x.Match("g/site=north/" + strconv.Itoa(i))
	}
	c := x.cache.Load()
	results, weight := mass(c)
	if weight != c.mass.Load() || weight > cacheMass || weight < cacheMass/2 {
		t.Errorf("%d results refer to %d subscriptions, counted as %d, the limit is %d", results, weight, c.mass.Load(), cacheMass)
	}
	for i := range 4 * cacheSlots {
		x.Match("nobody/" + strconv.Itoa(i))
	}
	results, weight = mass(c)
	if weight != c.mass.Load() || results < cacheSlots/2 {
		t.Errorf("of four times as many names as slots %d results are kept, with %d subscriptions counted as %d", results, weight, c.mass.Load())
	}
	for k := range 2 * cacheMass / 16 {
		x.Subscribe("g/everyone/#", k, k)
	}
	if r := x.Match("g/everyone/x"); len(r.Direct) != 2*cacheMass/16 {
		t.Errorf("%d of the largest group were found", len(r.Direct))
	}
	if c.load("g/everyone/x") != nil {
		t.Error("a result that refers to an eighth of all is kept")
	}
}

func TestWhatIsNoLongerTrueLeavesTheCacheByItself(t *testing.T) {
	var x Index[int, int]
	x.Subscribe("d/+/tele/#", 1, 1)
	for i := range 1000 {
		x.Match(fmt.Sprint("d/pi-", i, "/tele/x"))
	}
	x.Unsubscribe("d/+/tele/#", 1)
	for i := range cacheSlots/sweepAtChange/2 + 1 {
		x.Subscribe("d/other/cmd/#", i, 0)
		x.Unsubscribe("d/other/cmd/#", i)
	}
	if results, weight := mass(x.cache.Load()); results != 0 || weight != 0 || x.cache.Load().mass.Load() != 0 {
		t.Errorf("%d results are still kept, with %d subscriptions", results, weight)
	}
}
