package topic

import (
	"slices"
	"strings"
	"sync/atomic"
)

const (
	// burstAt is how many filters a node holds side by side before it sorts them by their next level.
	burstAt = 16
	// listed is how many subscribers of one filter are searched one by one. More are found by a map.
	listed = 32
)

// node is a place in a tree of filters that have their first levels in common. Up to burstAt filters stand in a plain list,
// which is compact and quickly tried; beyond that the node bursts and hands them on by their next level. So 100,000 devices
// with three filters each cost three list entries each, and one subtree with many filters is still searched by level.
//
// A node has no lock: its shard has.
type node[K comparable, S any] struct {
	filters []filter[K, S]         // after bursting only filters that end here
	levels  map[string]*node[K, S] // by the next level; nil until bursting
}

// filter is one filter and those who subscribe to it, as members of one share or each on his own.
type filter[K comparable, S any] struct {
	text  string
	share *share // nil: not shared
	subs  []subscription[K, S]
	at    map[K]int // place in subs; nil while there are few
}

// share is what a share's members have in common. A filter's share outlives the results that refer to it.
type share struct {
	name string
	turn atomic.Uint32 // counts messages, so that members take turns
}

type subscription[K comparable, S any] struct {
	key K
	sub S
}

// is reports whether f is that filter in that share; "" is no share, for a share's name is never empty.
func (f *filter[K, S]) is(shareName, text string) bool {
	if f.share == nil {
		return shareName == "" && f.text == text
	}
	return f.share.name == shareName && f.text == text
}

// find returns the place of key's subscription, -1 if there is none.
func (f *filter[K, S]) find(key K) int {
	if f.at != nil {
		if i, ok := f.at[key]; ok {
			return i
		}
		return -1
	}
	return slices.IndexFunc(f.subs, func(s subscription[K, S]) bool { return s.key == key })
}

func (f *filter[K, S]) put(key K, sub S) (replaced bool) {
	if i := f.find(key); i >= 0 {
		f.subs[i].sub = sub
		return true
	}
	f.subs = append(f.subs, subscription[K, S]{key, sub})
	switch {
	case f.at != nil:
		f.at[key] = len(f.subs) - 1
	case len(f.subs) > listed:
		f.at = make(map[K]int, 2*listed)
		for i := range f.subs {
			f.at[f.subs[i].key] = i
		}
	}
	return false
}

func (f *filter[K, S]) remove(key K) bool {
	i := f.find(key)
	if i < 0 {
		return false
	}
	last := len(f.subs) - 1
	f.subs[i] = f.subs[last]
	f.subs[last] = subscription[K, S]{} // keeps nothing alive
	f.subs = f.subs[:last]
	if f.at != nil {
		delete(f.at, key)
		if i < last {
			f.at[f.subs[i].key] = i
		}
	}
	switch {
	case last <= listed/2 && f.at != nil:
		f.at, f.subs = nil, slices.Clone(f.subs)
	case last > listed && last < cap(f.subs)/4:
		f.subs = append(make([]subscription[K, S], 0, 2*last), f.subs...)
	}
	return true
}

// put adds or replaces a subscription below n, which is at depth: the nodes above have consumed as many levels of text.
func (n *node[K, S]) put(shareName, text string, key K, sub S, depth int) (replaced bool) {
	rest, more := behind(text, depth)
	for n.levels != nil && more {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		child := n.levels[level]
		if child == nil {
			child = &node[K, S]{}
			n.levels[level] = child
		}
		n = child
		depth++
	}
	for i := range n.filters {
		if n.filters[i].is(shareName, text) {
			return n.filters[i].put(key, sub)
		}
	}
	f := filter[K, S]{text: text, subs: []subscription[K, S]{{key, sub}}}
	if shareName != "" {
		f.share = &share{name: shareName}
	}
	if n.levels == nil && len(n.filters) >= burstAt {
		n.burst(depth)
		return n.put(shareName, text, key, sub, depth)
	}
	if len(n.filters) < 4 {
		n.filters = append(make([]filter[K, S], 0, len(n.filters)+1), n.filters...) // to the byte: most subtrees stay that small
	}
	n.filters = append(n.filters, f)
	return false
}

// burst hands the filters of n, which is at depth, on to children by their next level. Those that end at n stay.
func (n *node[K, S]) burst(depth int) {
	filters := n.filters
	n.filters, n.levels = nil, make(map[string]*node[K, S])
	for _, f := range filters {
		rest, more := behind(f.text, depth)
		if !more {
			n.filters = append(n.filters, f)
			continue
		}
		level, _, _ := strings.Cut(rest, "/")
		child := n.levels[level]
		if child == nil {
			child = &node[K, S]{}
			n.levels[level] = child
		}
		child.filters = append(child.filters, f)
	}
}

// remove takes a subscription away and with it what it leaves empty. It recurses once per level, of which a filter has at
// most maxLevels.
func (n *node[K, S]) remove(shareName, text string, key K, depth int) bool {
	if rest, more := behind(text, depth); n.levels != nil && more {
		level, _, _ := strings.Cut(rest, "/")
		child := n.levels[level]
		if child == nil || !child.remove(shareName, text, key, depth+1) {
			return false
		}
		if child.empty() {
			delete(n.levels, level)
		}
		return true
	}
	i := slices.IndexFunc(n.filters, func(f filter[K, S]) bool { return f.is(shareName, text) })
	if i < 0 || !n.filters[i].remove(key) {
		return false
	}
	if len(n.filters[i].subs) == 0 {
		n.filters = slices.Delete(n.filters, i, i+1)
	}
	return true
}

func (n *node[K, S]) empty() bool { return len(n.filters) == 0 && len(n.levels) == 0 }

// match hands over every filter below n that matches name. The nodes above have consumed all of name but rest; more says
// whether that is a level. It recurses at most once per level, of which a filter has at most maxLevels.
func (n *node[K, S]) match(name, rest string, more bool, found *collector[K, S]) {
	for i := range n.filters {
		if Match(n.filters[i].text, name) {
			found.add(&n.filters[i])
		}
	}
	if n.levels == nil {
		return
	}
	if child := n.levels["#"]; child != nil {
		child.match(name, "", false, found)
	}
	if !more {
		return
	}
	level, rest, more := strings.Cut(rest, "/")
	if child := n.levels[level]; child != nil {
		child.match(name, rest, more, found)
	}
	if child := n.levels["+"]; child != nil {
		child.match(name, rest, more, found)
	}
}

// behind returns what follows the first depth levels of s, and whether anything does.
func behind(s string, depth int) (rest string, more bool) {
	rest, more = s, true
	for ; depth > 0 && more; depth-- {
		_, rest, more = strings.Cut(rest, "/")
	}
	return rest, more
}
