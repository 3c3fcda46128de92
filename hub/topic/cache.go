package topic

import (
	"hash/maphash"
	"sync/atomic"
)

const (
	cacheSlots = 1 << 16 // names whose results are kept, at most
	cacheWays  = 2       // slots in which a name may be
	cacheMass  = 1 << 19 // subscriptions that all kept results refer to, at most
	subtrees   = 1 << 16 // generations; subtrees that share one by chance only lose each other's results

	sweepAtChange = 4  // slots looked after at every change of the index
	sweepAtStore  = 64 // slots emptied at most to make room for one result
)

// cache keeps results by name. Reading takes no lock and writes nothing, so publishers on different cores don't disturb
// each other.
//
// A result is worth what the generations say: it remembers those of its name's subtree and of the wide filters from before
// it was gathered, and every change raises one of them after it took effect. So what is found here is as if it had been
// gathered now, and a device that subscribes below its own d/<id>/ costs nobody else a kept result.
type cache[K comparable, S any] struct {
	seed   maphash.Seed
	slots  [cacheSlots]atomic.Pointer[kept[K, S]]
	narrow [subtrees]atomic.Uint64
	wide   atomic.Uint64
	mass   atomic.Int64  // of all slots
	hand   atomic.Uint64 // the slot that is swept next
	empty  Result[K, S]  // of names that aren't valid
}

// kept is a result in the cache.
type kept[K comparable, S any] struct {
	name   string
	narrow *atomic.Uint64 // the generation of the name's subtree
	was    uint64         // its value
	wide   uint64
	weight int64
	result Result[K, S]
}

func newCache[K comparable, S any]() *cache[K, S] {
	return &cache[K, S]{seed: maphash.MakeSeed()}
}

// generation returns that of a subtree.
func (c *cache[K, S]) generation(subtree string) *atomic.Uint64 {
	return &c.narrow[maphash.String(c.seed, subtree)%subtrees]
}

// valid reports whether nothing has changed since k was gathered.
func (c *cache[K, S]) valid(k *kept[K, S]) bool {
	return k.narrow.Load() == k.was && c.wide.Load() == k.wide
}

// set returns the slots in which name may be.
func (c *cache[K, S]) set(name string) []atomic.Pointer[kept[K, S]] {
	at := maphash.String(c.seed, name) % (cacheSlots / cacheWays) * cacheWays
	return c.slots[at : at+cacheWays]
}

// load returns the kept result of name, nil if there is none that is still true.
func (c *cache[K, S]) load(name string) *Result[K, S] {
	set := c.set(name)
	for i := range set {
		if k := set[i].Load(); k != nil && k.name == name {
			if c.valid(k) {
				return &k.result
			}
			return nil
		}
	}
	return nil
}

// store keeps k in place of an older result of its name, of one that is no longer true, or of any.
func (c *cache[K, S]) store(k *kept[K, S]) {
	if k.weight > cacheMass/16 {
		return // one delivery to so many costs far more than gathering them
	}
	for range sweepAtStore {
		if c.mass.Load()+k.weight <= cacheMass {
			break
		}
		c.replace(&c.slots[c.hand.Add(1)%cacheSlots], nil)
	}
	if c.mass.Load()+k.weight > cacheMass {
		return
	}
	set := c.set(k.name)
	victim := -1
	for i := range set {
		old := set[i].Load()
		if old != nil && old.name == k.name {
			victim = i
			break
		}
		if victim < 0 && (old == nil || !c.valid(old)) {
			victim = i
		}
	}
	if victim < 0 {
		// The newest is first, so what is pushed out is the older of the two.
		victim = len(set) - 1
		if first := set[0].Load(); first != nil {
			c.replace(&set[victim], first)
		}
		victim = 0
	}
	c.replace(&set[victim], k)
}

// replace puts k, or nothing, into slot.
func (c *cache[K, S]) replace(slot *atomic.Pointer[kept[K, S]], k *kept[K, S]) {
	if k != nil {
		c.mass.Add(k.weight)
	}
	if old := slot.Swap(k); old != nil {
		c.mass.Add(-old.weight)
	}
}

// sweep empties a few slots of results that are no longer true, so that what they refer to does not stay in memory until
// their names are used again. After cacheSlots/sweepAtChange changes all slots have been seen.
func (c *cache[K, S]) sweep() {
	for range sweepAtChange {
		slot := &c.slots[c.hand.Add(1)%cacheSlots]
		if k := slot.Load(); k != nil && !c.valid(k) && slot.CompareAndSwap(k, nil) {
			c.mass.Add(-k.weight)
		}
	}
}
