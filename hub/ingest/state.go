package ingest

import (
	"fmt"
	"slices"
)

// State is what a replay of the journal leaves. Its zero value is an empty hub. It
// is not safe for concurrent use.
type State struct {
	Messages map[uint64]*Message // by number; those that a queue or Retained names
	Sessions map[uint64]*Session // by number
	Retained map[string]uint64   // message numbers by topic

	cleared map[string]uint64 // topics of which nothing is retained since that number

	LastMessage, LastSession uint64 // the greatest numbers ever given, for all that is known
}

// Apply takes one record in, in the order of the journal. What a record says about a
// session that isn't there is passed over: after a checkpoint began, all of the
// session comes later.
func (s *State) Apply(record []byte) error {
	if s.Messages == nil {
		s.Messages, s.Sessions, s.Retained = make(map[uint64]*Message), make(map[uint64]*Session), make(map[string]uint64)
		s.cleared = make(map[string]uint64)
	}
	r := &reader{b: record}
	switch k := kind(r.octet()); k {
	case kindMessage, kindKept:
		return s.message(r, k)
	case kindSession:
		session := new(Session)
		r.session(session)
		if err := r.end(k); err != nil {
			return err
		}
		s.Sessions[session.Number] = session
		s.LastSession = max(s.LastSession, session.Number)
	case kindPresence:
		var life Session
		number := r.uint()
		r.life(&life)
		if err := r.end(k); err != nil {
			return err
		}
		if session := s.Sessions[number]; session != nil {
			session.Version, session.Connected, session.Left, session.Expiry = life.Version, life.Connected, life.Left, life.Expiry
			session.Will, session.Author = life.Will, life.Author
		}
	case kindEnd, kindDone, kindReceived, kindReleased:
		number, id := r.uint(), r.id()
		if err := r.end(k); err != nil {
			return err
		}
		s.about(k, number, id)
	case kindSubscribed:
		number, subs, queue := r.uint(), r.subs(), r.queue()
		if err := r.end(k); err != nil {
			return err
		}
		if session := s.Sessions[number]; session != nil {
			for _, sub := range subs {
				session.unsubscribe(sub.Filter)
				session.Subs = append(session.Subs, sub)
			}
			for _, q := range queue {
				session.enqueue(q)
			}
		}
	case kindUnsubscribed:
		session := s.Sessions[r.uint()]
		for range r.count() {
			if filter := r.string(); session != nil {
				session.unsubscribe(filter)
			}
		}
		return r.end(k)
	case kindRetained:
		cleared, topic, number := r.octet() != 0, r.string(), r.uint()
		if err := r.end(k); err != nil {
			return err
		}
		s.retain(topic, number, cleared)
	case kindMark:
		return r.end(k)
	default:
		return fmt.Errorf("record of kind %d: %w", k, ErrRecord)
	}
	return nil
}

func (s *State) message(r *reader, k kind) error {
	m := new(Message)
	r.message(m)
	if err := r.end(k); err != nil {
		return err
	}
	s.LastMessage = max(s.LastMessage, m.Number)
	entries := m.Entries
	m.Entries = nil
	// Whoever a message names may come later: a checkpoint that began before it writes
	// its session after it. Prune drops what nobody names in the end.
	named := k == kindKept || len(entries) > 0
	for _, e := range entries {
		if session := s.Sessions[e.Session]; session != nil {
			session.enqueue(Queued{Message: m.Number, Delivery: e.Delivery})
		}
	}
	if session := s.Sessions[m.Session]; session != nil && m.ID != 0 && !slices.Contains(session.Incoming, m.ID) {
		session.Incoming = append(session.Incoming, m.ID)
	}
	if k == kindMessage && m.Retain {
		s.retain(m.Topic, m.Number, len(m.Payload) == 0) // [MQTT-3.3.1-6]
		named = true
	}
	if named {
		m.Payload = slices.Clone(m.Payload)
		s.Messages[m.Number] = m
	}
	return nil
}

// retain takes in what is retained for a topic. A checkpoint says what was so when it
// came by, which may be less than a message before it in the journal has said.
func (s *State) retain(topic string, number uint64, cleared bool) {
	if number < s.Retained[topic] || number < s.cleared[topic] {
		return
	}
	s.LastMessage = max(s.LastMessage, number)
	if cleared {
		delete(s.Retained, topic)
		s.cleared[topic] = number
		return
	}
	delete(s.cleared, topic)
	s.Retained[topic] = number
}

func (s *State) about(k kind, number uint64, id uint16) {
	session := s.Sessions[number]
	if session == nil {
		return
	}
	switch k {
	case kindEnd:
		delete(s.Sessions, number)
	case kindReleased:
		if i := slices.Index(session.Incoming, id); i >= 0 {
			session.Incoming = slices.Delete(session.Incoming, i, i+1)
		}
	case kindDone:
		if i := session.find(id); i == 0 {
			session.Queue = session.Queue[1:] // as nearly always
		} else if i > 0 {
			session.Queue = slices.Delete(session.Queue, i, i+1)
		}
	case kindReceived:
		if i := session.find(id); i >= 0 {
			session.Queue[i].Received = true
		}
	}
}

// find returns the place of an identifier in the queue, -1 if it isn't there.
func (s *Session) find(id uint16) int {
	return slices.IndexFunc(s.Queue, func(q Queued) bool { return q.ID == id })
}

// enqueue adds to the queue. An identifier that is given out again was free: the
// record that said so is one of those that may be lost.
func (s *Session) enqueue(q Queued) {
	if n := len(s.Queue); n > 0 && int(q.ID)-int(s.Queue[n-1].ID) != 1 {
		if i := s.find(q.ID); i >= 0 {
			s.Queue = slices.Delete(s.Queue, i, i+1)
		}
	}
	s.Queue = append(s.Queue, q)
}

func (s *Session) unsubscribe(filter string) {
	s.Subs = slices.DeleteFunc(s.Subs, func(sub Subscription) bool { return sub.Filter == filter })
}

// Prune drops the messages that no queue and no topic names, and what is retained or
// queued of messages that the journal doesn't have. It returns how many of the
// latter there were: more than none means that the journal lacks something.
func (s *State) Prune() (missing int) {
	used := make(map[uint64]bool, len(s.Messages))
	for _, session := range s.Sessions {
		session.Queue = slices.DeleteFunc(session.Queue, func(q Queued) bool {
			if s.Messages[q.Message] == nil && !q.Received {
				missing++
				return true
			}
			used[q.Message] = true
			return false
		})
	}
	s.cleared = make(map[string]uint64)
	for topic, number := range s.Retained {
		if s.Messages[number] == nil {
			delete(s.Retained, topic)
			missing++
		}
		used[number] = true
	}
	for number := range s.Messages {
		if !used[number] {
			delete(s.Messages, number)
		}
	}
	return missing
}
