package topic

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Retained keeps one value for each topic name and finds those that a filter matches. The zero value is ready; it must not
// be copied. All methods may be called by any goroutine.
type Retained[V any] struct {
	len    atomic.Int64
	shards [shards]struct {
		sync.RWMutex
		subtrees map[string][]retained[V] // by the first two levels of the names, each list sorted by name
	}
}

type retained[V any] struct {
	name  string
	value V
}

func byName[V any](r retained[V], name string) int { return strings.Compare(r.name, name) }

// Set keeps v as the value of name, which may be any string, and returns what it replaces. The index keeps name.
func (r *Retained[V]) Set(name string, v V) (old V, existed bool) {
	prefix := subtree(name)
	s := &r.shards[spread(prefix)]
	s.Lock()
	defer s.Unlock()
	list := s.subtrees[prefix]
	i, existed := slices.BinarySearchFunc(list, name, byName[V])
	if existed {
		old, list[i].value = list[i].value, v
		return old, true
	}
	if s.subtrees == nil {
		s.subtrees = make(map[string][]retained[V])
	}
	if len(list) < 4 {
		list = append(make([]retained[V], 0, len(list)+1), list...) // to the byte: most subtrees stay that small
	}
	s.subtrees[prefix] = slices.Insert(list, i, retained[V]{name, v})
	r.len.Add(1)
	return old, false
}

// Delete forgets name and returns what its value was.
func (r *Retained[V]) Delete(name string) (old V, existed bool) {
	prefix := subtree(name)
	s := &r.shards[spread(prefix)]
	s.Lock()
	defer s.Unlock()
	list := s.subtrees[prefix]
	i, existed := slices.BinarySearchFunc(list, name, byName[V])
	if !existed {
		return old, false
	}
	old = list[i].value
	r.len.Add(-1)
	if len(list) == 1 {
		delete(s.subtrees, prefix)
		return old, true
	}
	s.subtrees[prefix] = slices.Delete(list, i, i+1)
	return old, true
}

// Get returns the value of name.
func (r *Retained[V]) Get(name string) (V, bool) {
	prefix := subtree(name)
	s := &r.shards[spread(prefix)]
	s.RLock()
	defer s.RUnlock()
	list := s.subtrees[prefix]
	if i, ok := slices.BinarySearchFunc(list, name, byName[V]); ok {
		return list[i].value, true
	}
	var none V
	return none, false
}

// Len returns the number of names.
func (r *Retained[V]) Len() int { return int(r.len.Load()) }

// Match returns the names that filter, its share taken off, matches, sorted. Names that come or go meanwhile may be in it or
// not. With a wildcard in filter's first two levels it looks at every subtree, one shard after the other, so that nobody
// waits for the whole of it.
func (r *Retained[V]) Match(filter string) []string {
	if !ValidFilter(filter) {
		return nil
	}
	var names []string
	collect := func(list []retained[V]) {
		for i := range list {
			if Match(filter, list[i].name) {
				names = append(names, list[i].name)
			}
		}
	}
	prefix := subtree(filter)
	if !wild(prefix) {
		s := &r.shards[spread(prefix)]
		s.RLock()
		collect(s.subtrees[prefix])
		s.RUnlock()
		return names
	}
	for i := range r.shards {
		s := &r.shards[i]
		s.RLock()
		for p, list := range s.subtrees {
			if Match(prefix, p) {
				collect(list)
			}
		}
		s.RUnlock()
	}
	slices.Sort(names)
	return names
}

// Range calls f for every name and its value, in no order, until f returns false. F may call any method; names that come or
// go meanwhile may be among them or not.
func (r *Retained[V]) Range(f func(name string, v V) bool) {
	for i := range r.shards {
		s := &r.shards[i]
		var all []retained[V]
		s.RLock()
		for _, list := range s.subtrees {
			all = append(all, list...)
		}
		s.RUnlock()
		for _, one := range all {
			if !f(one.name, one.value) {
				return
			}
		}
	}
}

// spread returns the shard of a subtree (FNV-1a). Whoever makes all of his subtrees meet in one shard only waits for himself.
func spread(subtree string) uint32 {
	hash := uint32(2166136261)
	for i := range len(subtree) {
		hash = (hash ^ uint32(subtree[i])) * 16777619
	}
	return hash % shards
}
