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
	maxRetainedBytes  = 1 << 20 // payload and topic
)

// retention counts what is retained, by owner: the first two levels of the topic. The
// zero value is empty. It is safe for concurrent use.
type retention struct {
	mu     sync.Mutex // guards owners
	owners map[string]*retained
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
		if has != nil {
			has.bytes -= has.topics[topic]
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
	old, known := has.topics[topic]
	size := payload + len(topic)
	if !known && len(has.topics) >= maxRetainedTopics || has.bytes-old+size > maxRetainedBytes {
		return false
	}
	has.topics[topic] = size
	has.bytes += size - old
	if r.owners == nil {
		r.owners = make(map[string]*retained)
	}
	r.owners[owner] = has
	return true
}

// take forgets an owner and returns the topics it had.
func (r *retention) take(owner string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	has := r.owners[owner]
	if has == nil {
		return nil
	}
	delete(r.owners, owner)
	topics := make([]string, 0, len(has.topics))
	for t := range has.topics {
		topics = append(topics, t)
	}
	return topics
}
