package broker

import (
	"strings"
	"sync"
)

// How much may be retained below one device's topics (d/<id>/), or one group's. A
// message beyond that is delivered, and not retained: one device must not be able to
// fill the hub's memory.
const (
	maxRetainedTopics = 128
	maxRetainedBytes  = 1 << 20 // payload, properties and topic

	// maxRetainedTotal bounds all owners together: a service may name owners that don't
	// exist, as many as it likes.
	maxRetainedTotal = 256 << 20
)

// retention counts what is retained, by owner: the first two levels of the topic. The
// zero value is empty. It is safe for concurrent use.
type retention struct {
	mu     sync.Mutex // guards owners and total
	owners map[string]*retained
	total  int // bytes of all
}

type retained struct {
	topics map[string]int // and their size in bytes
	bytes  int
}

// ownerOf returns the owner's part of a topic, "d/pi-1/" of "d/pi-1/twin/reported".
func ownerOf(topic string) (string, bool) {
	first := strings.IndexByte(topic, '/')
	if first < 0 {
		return "", false
	}
	second := strings.IndexByte(topic[first+1:], '/')
	if second < 0 {
		return "", false
	}
	return topic[:first+1+second+1], true
}

// admit reports whether a message may be retained, and counts it if so. An empty
// payload, which ends the retaining of its topic, always may.
func (r *retention) admit(topic string, payload int) bool {
	owner, ok := ownerOf(topic)
	if !ok {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	has := r.owners[owner]
	if payload == 0 {
		if size, known := has.size(topic); known {
			has.bytes -= size
			r.total -= size + messageOverhead
			delete(has.topics, topic)
			if len(has.topics) == 0 {
				delete(r.owners, owner)
			}
		}
		return true
	}
	if has == nil {
		has = &retained{topics: make(map[string]int)}
	}
	old, known := has.size(topic)
	size := payload + len(topic)
	grows := size - old
	if !known {
		grows += messageOverhead
	}
	if !known && len(has.topics) >= maxRetainedTopics || has.bytes-old+size > maxRetainedBytes || r.total+grows > maxRetainedTotal {
		return false
	}
	has.topics[topic] = size
	has.bytes += size - old
	r.total += grows
	if r.owners == nil {
		r.owners = make(map[string]*retained)
	}
	r.owners[owner] = has
	return true
}

// size returns what a topic counts; an owner of nothing has none.
func (r *retained) size(topic string) (size int, known bool) {
	if r == nil {
		return 0, false
	}
	size, known = r.topics[topic]
	return size, known
}

// forget forgets an owner.
func (r *retention) forget(owner string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if has := r.owners[owner]; has != nil {
		r.total -= has.bytes + len(has.topics)*messageOverhead
		delete(r.owners, owner)
	}
}
