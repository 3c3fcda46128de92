package soak

import (
	"slices"
	"sync"
)

// outgoing is a message on its way to the hub. The functions may be nil; they are called without the session's lock.
type outgoing struct {
	topic   string
	qos     byte
	retain  bool
	payload []byte

	accepted func()          // PUBACK or PUBREC
	finished func()          // PUBACK or PUBCOMP: its identifier is free
	refused  func(code byte) // an acknowledgement that says no

	id   uint16
	sent bool // was written on some connection, perhaps in vain
}

// session is what an MQTT client keeps beyond its connections (MQTT-4.1.0-1): what it has sent and not seen acknowledged,
// and the identifiers of QoS 2 messages that it has received and that are not released. Its methods return what is to be
// written, in that order; they do no I/O. A session is safe for concurrent use, but what its methods return must be
// written in the order in which they returned, so a connection calls them under its own lock.
type session struct {
	name    string
	version byte
	accuse  func(fault, format string, args ...any)
	deliver func(p packet) // a message for the application, once per packet that is no repetition

	mu          sync.Mutex // guards what follows
	established bool       // the hub acknowledged something in this session: it must know it
	lastID      uint16
	published   []*outgoing       // PUBLISH written or waiting, no answer; in the order of publish
	released    []*outgoing       // PUBREC read, no PUBCOMP; in the order of the PUBRECs
	received    map[uint16]string // QoS 2: identifiers not released, with their message's payload
	requests    map[uint16]func(codes []byte)
}

func newSession(name string, version byte) *session {
	return &session{name: name, version: version, received: make(map[uint16]string), requests: make(map[uint16]func([]byte))}
}

// freeID returns an identifier that nothing of ours uses. The caller holds mu.
func (s *session) freeID() uint16 {
	for {
		s.lastID++
		uses := func(m *outgoing) bool { return m.id == s.lastID }
		if s.lastID != 0 && s.requests[s.lastID] == nil && !slices.ContainsFunc(s.published, uses) && !slices.ContainsFunc(s.released, uses) {
			return s.lastID
		}
	}
}

// connected begins a connection after its CONNACK: what is not acknowledged goes out again under its old identifiers
// [MQTT-4.4.0-1], in its old order [MQTT-4.6.0-1, 4.6.0-4].
func (s *session) connected(present bool) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.requests) // a SUBSCRIBE without an answer is not repeated by the protocol
	if !present {
		if s.established {
			s.accuse(faultSession, "%s: the hub knows nothing of it", s.name)
		}
		s.forget()
	}
	var out []byte
	for _, m := range s.released {
		out = append(out, ackFrame(typePubrel, m.id)...)
	}
	for _, m := range s.published {
		out = append(out, s.frame(m)...)
	}
	return out
}

// forget begins a session from scratch, as a client must that the hub doesn't know. What was accepted is as lost as the
// ledger will find it. The caller holds mu.
func (s *session) forget() {
	s.established = false
	clear(s.received)
	for _, m := range s.released {
		if m.finished != nil {
			m.finished()
		}
	}
	s.released = nil
	for _, m := range s.published {
		m.sent = false
	}
}

// frame encodes a message as it goes out now. The caller holds mu.
func (s *session) frame(m *outgoing) []byte {
	f := publishFrame(s.version, packet{topic: m.topic, payload: m.payload, qos: m.qos, retain: m.retain, id: m.id, dup: m.sent && m.qos > 0})
	m.sent = true
	return f
}

// publish takes a message over. Online, it returns the PUBLISH to be written; offline, it keeps the message for later.
func (s *session) publish(m *outgoing, online bool) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.qos > 0 {
		m.id = s.freeID()
		s.published = append(s.published, m)
	}
	if !online {
		return nil
	}
	return s.frame(m)
}

// request returns a SUBSCRIBE or UNSUBSCRIBE of one filter; answer is called with the codes of its acknowledgement, or
// never, if the connection ends.
func (s *session) request(encode func(id uint16) []byte, answer func(codes []byte)) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.freeID()
	s.requests[id] = answer
	return encode(id)
}

// unfinished returns how many messages the hub has not finished with.
func (s *session) unfinished() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.published) + len(s.released)
}

// handle takes what the hub sent and returns the answer.
func (s *session) handle(p packet) []byte {
	s.mu.Lock()
	then := func() {}
	defer func() {
		s.mu.Unlock()
		then()
	}()
	switch p.kind {
	case typePublish:
		return s.handlePublish(p, &then)
	case typePubrel:
		delete(s.received, p.id)
		return ackFrame(typePubcomp, p.id)
	case typePuback, typePubrec, typePubcomp:
		return s.handleAck(p, &then)
	case typeSuback, typeUnsuback:
		if answer := s.requests[p.id]; answer != nil {
			delete(s.requests, p.id)
			s.established = true
			then = func() { answer(p.codes) }
		}
	}
	return nil
}

// handlePublish is the receiver's side of QoS 1 and 2.
func (s *session) handlePublish(p packet, then *func()) []byte {
	switch p.qos {
	case 0:
		*then = func() { s.deliver(p) }
		return nil
	case 1:
		*then = func() { s.deliver(p) }
		return ackFrame(typePuback, p.id)
	}
	before, again := s.received[p.id]
	switch {
	case !again:
		s.received[p.id] = p.topic + "\x00" + string(p.payload)
		*then = func() { s.deliver(p) }
	case before != p.topic+"\x00"+string(p.payload):
		s.accuse(faultReuse, "%s: identifier %d is %.40q and was %.40q", s.name, p.id, p.topic+" "+string(p.payload), before)
	case !p.dup:
		s.accuse(faultDUP, "%s: identifier %d, %.40q", s.name, p.id, p.payload)
	}
	return ackFrame(typePubrec, p.id)
}

// handleAck is the sender's side of QoS 1 and 2. An acknowledgement of an identifier that is not in use is ignored, but
// for a PUBREC, which gets its PUBREL: the first may be lost.
func (s *session) handleAck(p packet, then *func()) []byte {
	from := &s.published
	if p.kind == typePubcomp {
		from = &s.released
	}
	at := slices.IndexFunc(*from, func(m *outgoing) bool { return m.id == p.id && (p.kind == typePuback) == (m.qos == 1) })
	if at < 0 {
		if p.kind == typePubrec {
			return ackFrame(typePubrel, p.id)
		}
		return nil
	}
	m := (*from)[at]
	*from = slices.Delete(*from, at, at+1)
	if p.code >= 0x80 && p.kind != typePubcomp {
		*then = func() {
			call(func() {
				if m.refused != nil {
					m.refused(p.code)
				}
			}, m.finished)
		}
		return nil
	}
	s.established = true
	switch p.kind {
	case typePuback:
		*then = func() { call(m.accepted, m.finished) }
	case typePubrec:
		s.released = append(s.released, m)
		*then = func() { call(m.accepted) }
		return ackFrame(typePubrel, p.id)
	case typePubcomp:
		*then = func() { call(m.finished) }
	}
	return nil
}

// call calls those functions that are there.
func call(functions ...func()) {
	for _, f := range functions {
		if f != nil {
			f()
		}
	}
}
