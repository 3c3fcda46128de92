package topic

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

// shards is how many parts the subtrees of an index, and of retained names, are spread over, each with its own lock.
const shards = 64

// Index knows who subscribes to what. K is who subscribes, S what the subscription says (QoS, options, identifier). The zero
// value is ready; it must not be copied. All methods may be called by any goroutine, and Match sees every change whose call
// has returned.
//
// Filters without a wildcard in their first two levels stand in the shard of these two levels, such as d/pi-7. The others,
// of which a fleet has a handful, are wide: they stand apart, and a change of one makes every kept result worthless.
//
// Whatever K and S point to may be kept in memory by results for some 16,000 further changes after Unsubscribe.
type Index[K comparable, S any] struct {
	cache  atomic.Pointer[cache[K, S]] // nil until first used
	len    atomic.Int64
	narrow [shards]shard[K, S]
	wide   struct {
		sync.RWMutex
		root node[K, S] // at depth 0
	}
}

// shard is a part of the narrow filters.
type shard[K comparable, S any] struct {
	sync.RWMutex
	subtrees map[string]*node[K, S] // by the first two levels; at depth 2
}

// Subscribe adds key's subscription to filter, which may be shared, or replaces what key said of that filter before. A
// filter that isn't ValidFilter is not added: it would match nothing. The index keeps filter.
func (x *Index[K, S]) Subscribe(filter string, key K, s S) (replaced bool) {
	if !ValidFilter(filter) {
		return false
	}
	shareName, text, _ := CutShare(filter)
	c := x.ready()
	if prefix := subtree(text); wild(prefix) {
		x.wide.Lock()
		replaced = x.wide.root.put(shareName, text, key, s, 0)
		c.wide.Add(1)
		x.wide.Unlock()
	} else {
		shard := x.shard(c, prefix)
		shard.Lock()
		n := shard.subtrees[prefix]
		if n == nil {
			if shard.subtrees == nil {
				shard.subtrees = make(map[string]*node[K, S])
			}
			n = &node[K, S]{}
			shard.subtrees[prefix] = n
		}
		replaced = n.put(shareName, text, key, s, 2)
		c.generation(prefix).Add(1)
		shard.Unlock()
	}
	if !replaced {
		x.len.Add(1)
	}
	c.sweep()
	return replaced
}

// Unsubscribe takes key's subscription to filter away and reports whether there was one.
func (x *Index[K, S]) Unsubscribe(filter string, key K) bool {
	if !ValidFilter(filter) {
		return false
	}
	shareName, text, _ := CutShare(filter)
	c := x.ready()
	if prefix := subtree(text); wild(prefix) {
		x.wide.Lock()
		defer x.wide.Unlock()
		if !x.wide.root.remove(shareName, text, key, 0) {
			return false
		}
		c.wide.Add(1)
	} else {
		shard := x.shard(c, prefix)
		shard.Lock()
		defer shard.Unlock()
		n := shard.subtrees[prefix]
		if n == nil || !n.remove(shareName, text, key, 2) {
			return false
		}
		if n.empty() {
			delete(shard.subtrees, prefix)
		}
		c.generation(prefix).Add(1)
	}
	x.len.Add(-1)
	c.sweep()
	return true
}

// Match returns who gets a message on name, never nil. A name that isn't ValidName has no subscribers. For a name that was
// asked for recently it neither allocates nor waits. The index keeps name.
func (x *Index[K, S]) Match(name string) *Result[K, S] {
	c := x.ready()
	if r := c.load(name); r != nil {
		return r
	}
	return x.gather(c, name)
}

// gather finds the subscribers of name and keeps them in the cache.
func (x *Index[K, S]) gather(c *cache[K, S], name string) *Result[K, S] {
	if !ValidName(name) {
		return &c.empty
	}
	prefix := subtree(name)
	k := &kept[K, S]{name: name, narrow: c.generation(prefix)}
	k.was, k.wide = k.narrow.Load(), c.wide.Load() // before anything is gathered: see cache

	var found collector[K, S]
	x.wide.RLock()
	x.wide.root.match(name, name, true, &found)
	x.wide.RUnlock()
	shard := x.shard(c, prefix)
	shard.RLock()
	if n := shard.subtrees[prefix]; n != nil {
		rest, more := behind(name, 2)
		n.match(name, rest, more, &found)
	}
	shard.RUnlock()

	k.weight = int64(found.weight())
	k.result = found.result()
	c.store(k)
	return &k.result
}

// Len returns the number of subscriptions.
func (x *Index[K, S]) Len() int { return int(x.len.Load()) }

func (x *Index[K, S]) shard(c *cache[K, S], prefix string) *shard[K, S] {
	return &x.narrow[maphash.String(c.seed, prefix)%shards]
}

// ready returns the cache, made at the first use.
func (x *Index[K, S]) ready() *cache[K, S] {
	if c := x.cache.Load(); c != nil {
		return c
	}
	x.cache.CompareAndSwap(nil, newCache[K, S]())
	return x.cache.Load()
}
