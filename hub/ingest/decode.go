package ingest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fleethub/fleethub/hub/wire"
)

// ErrRecord is in the chain of every error about a record that can't be read. The
// journal's checksums make a damaged one unlikely: rather it is of a newer hub.
var ErrRecord = errors.New("not a record that this version of the hub knows")

// reader takes a record apart. After the first mistake it returns zeros.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) fail() {
	r.failed, r.b = true, nil
}

func (r *reader) octet() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

// id reads a packet identifier.
func (r *reader) id() uint16 {
	v := r.uint()
	if v > 0xFFFF {
		r.fail()
	}
	return uint16(v)
}

// count reads how many things of at least one octet follow.
func (r *reader) count() int {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.fail()
		return 0
	}
	return int(n)
}

// bytes returns a part of the record, which the caller copies to keep.
func (r *reader) bytes() []byte {
	n := r.count()
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) string() string { return string(r.bytes()) }

// end returns an error unless the record was read to its end without mistake.
func (r *reader) end(k kind) error {
	if r.failed || len(r.b) > 0 {
		return fmt.Errorf("record of kind %d: %w", k, ErrRecord)
	}
	return nil
}

// message reads a message; its payload is part of the record.
func (r *reader) message(m *Message) {
	flags := r.octet()
	m.From.Role = r.octet()
	m.Number = r.uint()
	m.Time = time.UnixMilli(r.int()).UTC()
	m.From.ID = r.string()
	m.Topic = r.string()
	m.Payload = r.bytes()
	m.QoS, m.Retain = flags&flagQoS, flags&flagRetain != 0
	if flags&flagExpiry != 0 {
		expiry := uint32(r.uint())
		m.Expiry = &expiry
	}
	if flags&flagProps != 0 {
		m.Props = r.props()
	}
	if flags&flagSession != 0 {
		m.Session, m.ID = r.uint(), r.id()
	}
	if flags&flagEntries != 0 {
		m.Entries = make([]Entry, r.count())
		for i := range m.Entries {
			m.Entries[i].Session = r.uint()
			m.Entries[i].Delivery, _ = r.delivery()
		}
	}
}

func (r *reader) delivery() (d Delivery, received bool) {
	flags := r.octet()
	d.QoS = 1
	if flags&deliveryQoS2 != 0 {
		d.QoS = 2
	}
	d.Retain = flags&deliveryRetain != 0
	d.ID = r.id()
	if flags&deliverySubIDs != 0 {
		d.SubIDs = make([]int, r.count())
		for i := range d.SubIDs {
			d.SubIDs[i] = int(r.uint())
		}
	}
	return d, flags&deliveryReceived != 0
}

func (r *reader) props() *wire.MessageProperties {
	p := &wire.MessageProperties{Format: r.octet(), ContentType: r.string(), ResponseTopic: r.string()}
	if c := r.bytes(); len(c) > 0 {
		p.Correlation = append([]byte(nil), c...)
	}
	for range r.count() {
		p.User = append(p.User, wire.User{Key: r.string(), Value: r.string()})
	}
	return p
}

func (r *reader) queue() []Queued {
	n := r.count()
	if n == 0 {
		return nil
	}
	queue := make([]Queued, n)
	for i := range queue {
		queue[i].Message = r.uint()
		queue[i].Delivery, queue[i].Received = r.delivery()
	}
	return queue
}

func (r *reader) subs() []Subscription {
	n := r.count()
	if n == 0 {
		return nil
	}
	subs := make([]Subscription, n)
	for i := range subs {
		flags := r.octet()
		subs[i].QoS, subs[i].RetainHandling = flags&3, flags>>subHandling&3
		subs[i].NoLocal, subs[i].RetainAsPublished = flags&subNoLocal != 0, flags&subPublished != 0
		subs[i].SubID = int(r.uint())
		subs[i].Filter = r.string()
	}
	return subs
}

func (r *reader) session(s *Session) {
	s.Number = r.uint()
	s.Key = r.string()
	r.life(s)
	s.Subs = r.subs()
	for range r.count() {
		s.Incoming = append(s.Incoming, r.id())
	}
	s.Queue = r.queue()
}

func (r *reader) life(s *Session) {
	flags := r.octet()
	s.Version = r.octet()
	s.Connected = flags&lifeConnected != 0
	s.Left = time.UnixMilli(r.int()).UTC()
	s.Expiry = time.Duration(r.uint()) * time.Second
	s.Will, s.Author = nil, nil
	if flags&lifeWill == 0 {
		return
	}
	will := &wire.Will{Delay: uint32(r.uint())}
	inner := &reader{b: r.bytes()}
	inner.octet()
	var m Message
	inner.message(&m)
	if inner.end(kindKept) != nil {
		r.fail()
	}
	m.Payload = append([]byte(nil), m.Payload...)
	will.Message = m.Publish
	s.Will = will
	if flags&lifeAuthor != 0 {
		s.Author = &Author{OU: r.strings(), SAN: r.strings()}
	}
}

func (r *reader) strings() []string {
	n := r.count()
	if n == 0 {
		return nil
	}
	texts := make([]string, n)
	for i := range texts {
		texts[i] = r.string()
	}
	return texts
}

// Accepted returns the message that a record is about, if it is one that was
// accepted. It is for readers of the journal; its payload is part of the record.
func Accepted(record []byte) (m Message, ok bool) {
	if len(record) == 0 || kind(record[0]) != kindMessage {
		return Message{}, false
	}
	r := &reader{b: record[1:]}
	r.message(&m)
	if r.end(kindMessage) != nil {
		return Message{}, false
	}
	m.Topic = strings.Clone(m.Topic)
	return m, true
}
