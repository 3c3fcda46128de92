package broker

import (
	"github.com/fleethub/fleethub/hub/ingest"
)

// entry is one QoS 1 or 2 message on its way to one session. Session.mu guards it.
type entry struct {
	message *message
	ingest.Delivery
	seq      uint32 // counts the session's entries; see outbox.identifier
	ready    bool   // on disk, so it may be sent
	out      bool   // sent over this connection, and counted in outbox.inflight
	sent     bool   // at least once, so DUP is set next time [MQTT-3.3.1-1]
	entered  bool   // QoS 2: that PUBREC has come is in the journal, though perhaps not on disk
	received bool   // QoS 2: PUBREC has come and is on disk; PUBREL is next
	done     bool   // acknowledged or dropped; it only waits to be taken out
}

// outbox is a session's queue: what is inflight, then what waits, in the order in
// which it arrived. Its zero value is empty. Session.mu guards it.
type outbox struct {
	entries  []*entry
	next     int    // of entries: the first that was not sent over this connection
	inflight int    // of those before next: not done
	waiting  int    // entries that are not done
	bytes    int64  // of their messages
	seq      uint32 // of the entry added last
	lastID   uint16 // given out last
}

// identifier returns a packet identifier that is free, 0 if there is none.
// Identifiers are given out in a circle, so that one is met again only by a session
// whose oldest entry is a circle behind.
func (o *outbox) identifier() uint16 {
	id := o.lastID + 1
	if id == 0 {
		id = 1
	}
	if len(o.entries) == 0 || o.seq-o.entries[0].seq < 1<<16-2 {
		return id
	}
	used := make(map[uint16]bool, len(o.entries))
	for _, e := range o.entries {
		if !e.done {
			used[e.ID] = true
		}
	}
	for range 1<<16 - 1 {
		if id != 0 && !used[id] {
			return id
		}
		id++
	}
	return 0
}

// add appends an entry under a new identifier; nil if none is free.
func (o *outbox) add(m *message, d ingest.Delivery) *entry {
	if d.ID = o.identifier(); d.ID == 0 {
		return nil
	}
	o.lastID = d.ID
	o.seq++
	e := &entry{message: m, Delivery: d, seq: o.seq}
	o.entries = append(o.entries, e)
	o.waiting++
	o.bytes += m.size
	return e
}

// sentEntry returns the entry that was sent over this connection under an
// identifier, nil if there is none.
func (o *outbox) sentEntry(id uint16) *entry {
	for _, e := range o.entries[:o.next] {
		if e.ID == id && !e.done {
			return e
		}
	}
	return nil
}

// finish marks an entry as done and takes what is done out at the front. It returns
// the octets that are free now.
func (o *outbox) finish(e *entry) int64 {
	if e.done {
		return 0
	}
	e.done = true
	if e.out {
		e.out = false
		o.inflight--
	}
	o.waiting--
	o.bytes -= e.message.size
	n := 0
	for n < len(o.entries) && o.entries[n].done {
		o.entries[n] = nil
		n++
	}
	if n > 0 {
		o.entries = o.entries[n:]
		o.next = max(0, o.next-n)
	}
	size := e.message.size
	e.message = nil
	switch {
	case len(o.entries) == 0:
		o.entries = nil // let go of the array, which only grows at its end
	case len(o.entries) > 2*o.waiting+64:
		o.compact()
	}
	return size
}

// compact takes out what is done behind an entry that isn't: one message that is never
// acknowledged must not keep all that follow.
func (o *outbox) compact() {
	kept := make([]*entry, 0, 2*o.waiting)
	next := 0
	for i, e := range o.entries {
		if e.done {
			continue
		}
		if i < o.next {
			next++
		}
		kept = append(kept, e)
	}
	o.entries, o.next = kept, next
}

// rewind has everything sent again, over a new connection.
func (o *outbox) rewind() {
	for _, e := range o.entries[:o.next] {
		e.out = false
	}
	o.next, o.inflight = 0, 0
}
