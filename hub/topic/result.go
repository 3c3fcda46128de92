package topic

import "slices"

// Result says who gets a message. It is immutable and shared: don't change anything in it. It says what was true when Match
// was called.
type Result[K comparable, S any] struct {
	Direct []Subscriber[K, S] // one for each key that subscribes for itself
	Shared []*Group[K, S]     // each gets the message once, whoever of its members takes it
}

// Subscriber is one key with all of its subscriptions that match, in no order.
type Subscriber[K comparable, S any] struct {
	Key  K
	Subs []S // at least one; exactly one in a Group
}

// Group is a shared subscription: those who share one filter under one name [MQTT-4.8.2]. The same key may be in several
// groups and a direct subscriber too.
type Group[K comparable, S any] struct {
	Share   string // the share's name
	Filter  string // without "$share/" and the name
	Members []Subscriber[K, S]

	share *share
}

// Next returns the index of the member whose turn it is: every call the next one's, whichever topic, result or goroutine it
// comes from. If that member can't take the message, the ones behind it, and then from the beginning, are next in order.
func (g *Group[K, S]) Next() int {
	return int((g.share.turn.Add(1) - 1) % uint32(len(g.Members)))
}

// collector gathers what a name matches. The filters are read under their shard's lock and copied before it is given back.
type collector[K comparable, S any] struct {
	direct  []subscription[K, S]
	filters int // whose subscriptions are in direct: from two on, keys may be there twice
	groups  []*Group[K, S]
	members int // of all groups
}

func (c *collector[K, S]) add(f *filter[K, S]) {
	if f.share == nil {
		c.direct = append(c.direct, f.subs...)
		c.filters++
		return
	}
	c.groups = append(c.groups, &Group[K, S]{Share: f.share.name, Filter: f.text, Members: each(f.subs), share: f.share})
	c.members += len(f.subs)
}

func (c *collector[K, S]) result() Result[K, S] {
	r := Result[K, S]{Shared: c.groups}
	switch {
	case c.filters == 1:
		r.Direct = each(c.direct)
	case c.filters > 1:
		r.Direct = merged(c.direct)
	}
	return r
}

// weight is how many subscriptions a result refers to.
func (c *collector[K, S]) weight() int { return len(c.direct) + c.members }

// each makes a subscriber of every subscription.
func each[K comparable, S any](subs []subscription[K, S]) []Subscriber[K, S] {
	all, out := make([]S, len(subs)), make([]Subscriber[K, S], len(subs))
	for i := range subs {
		all[i] = subs[i].sub
		out[i] = Subscriber[K, S]{subs[i].key, all[i : i+1 : i+1]}
	}
	return out
}

// merged makes one subscriber of all subscriptions with the same key.
func merged[K comparable, S any](subs []subscription[K, S]) []Subscriber[K, S] {
	out := make([]Subscriber[K, S], 0, len(subs))
	place := make([]int, len(subs)) // of every subscription, in out
	counts := make([]int, 0, len(subs))
	var at map[K]int
	if len(subs) > listed {
		at = make(map[K]int, len(subs))
	}
	for i := range subs {
		var p int
		var known bool
		if at != nil {
			p, known = at[subs[i].key]
		} else {
			p = slices.IndexFunc(out, func(s Subscriber[K, S]) bool { return s.Key == subs[i].key })
			known = p >= 0
		}
		if !known {
			p = len(out)
			out, counts = append(out, Subscriber[K, S]{Key: subs[i].key}), append(counts, 0)
			if at != nil {
				at[subs[i].key] = p
			}
		}
		place[i] = p
		counts[p]++
	}
	all := make([]S, len(subs))
	for p := range out {
		out[p].Subs, all = all[:0:counts[p]], all[counts[p]:]
	}
	for i := range subs {
		out[place[i]].Subs = append(out[place[i]].Subs, subs[i].sub)
	}
	return out
}
