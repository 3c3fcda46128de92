package ingest

import (
	"encoding/binary"
	"time"

	"github.com/fleethub/fleethub/hub/wire"
)

// kind is a record's first octet. The numbers are the format: never change one.
type kind byte

const (
	kindMessage      kind = 1  // accepted, with entries
	kindKept         kind = 2  // a message again, at a checkpoint
	kindSession      kind = 3  // all of a session
	kindPresence     kind = 4  // connection, expiry and will of a session
	kindEnd          kind = 5  // a session is gone
	kindDone         kind = 6  // an outgoing message is acknowledged
	kindReceived     kind = 7  // an outgoing QoS 2 message has got its PUBREC
	kindReleased     kind = 8  // an incoming QoS 2 message has got its PUBREL
	kindSubscribed   kind = 9  // subscriptions, and what was queued for them
	kindUnsubscribed kind = 10 // subscriptions ended
	kindRetained     kind = 11 // what is retained for a topic
	kindMark         kind = 12 // nothing; see Log.Mark
)

// Message is an application message that the hub has accepted.
type Message struct {
	Number uint64    // of the message, from 1 on; in no strict order
	Time   time.Time // of acceptance, to the millisecond
	From   Sender    // whose message it is

	// Topic, Payload, QoS, Retain, Expiry and Props as published; the other fields are
	// not stored.
	wire.Publish

	// Session and ID are the stored session and the packet identifier of an incoming
	// QoS 2 message, which is a repetition if it comes again. 0: not QoS 2, or of a
	// session that is not stored.
	Session uint64
	ID      uint16

	Entries []Entry // its places in the queues of stored sessions
}

// Sender says whose message it is.
type Sender struct {
	Role byte   // SenderHub and so on
	ID   string // the identity's; "" for the hub
}

// The roles of senders, as stored.
const (
	SenderHub     byte = 0
	SenderDevice  byte = 1
	SenderService byte = 2
)

// Entry is a message's place in a stored session's queue.
type Entry struct {
	Session uint64
	Delivery
}

// Delivery says how a message goes to a client.
type Delivery struct {
	ID     uint16 // packet identifier
	QoS    byte   // 1 or 2
	Retain bool   // the flag to send
	SubIDs []int  // subscription identifiers; shared, nobody writes to it
}

// Queued is one message in a session's queue.
type Queued struct {
	Message uint64 // its number
	Delivery
	Received bool // PUBREC has come, PUBREL is due
}

// Subscription is a stored one.
type Subscription struct {
	wire.Subscription
	SubID int // subscription identifier; 0: none
}

// Author is what the certificate of who left a will says besides its name: the will is
// published by policy, perhaps after a restart, when nobody shows that certificate.
type Author struct {
	OU  []string // organizational units
	SAN []string // subject alternative names, as policy.Names writes them
}

// Session is all that is stored of one.
type Session struct {
	Number    uint64 // from 1 on, never used again
	Key       string // role and client identifier; see broker
	Version   byte   // of the protocol, at the last connect
	Connected bool
	Left      time.Time     // when the connection ended; zero while Connected
	Expiry    time.Duration // how long it outlives its connection
	Will      *wire.Will    // nil: none
	Author    *Author       // who left the will; nil: there is none, or it isn't known
	Subs      []Subscription
	Incoming  []uint16 // identifiers of QoS 2 messages that wait for their PUBREL
	Queue     []Queued
}

// The flags of a message.
const (
	flagQoS     = 3      // mask
	flagRetain  = 1 << 2 //
	flagExpiry  = 1 << 3
	flagProps   = 1 << 4
	flagSession = 1 << 5 // Session and ID follow
	flagEntries = 1 << 6
)

func appendMessage(b []byte, k kind, m *Message) []byte {
	flags := m.QoS & flagQoS
	if m.Retain {
		flags |= flagRetain
	}
	if m.Expiry != nil {
		flags |= flagExpiry
	}
	if m.Props != nil {
		flags |= flagProps
	}
	if m.Session != 0 && k == kindMessage {
		flags |= flagSession
	}
	if len(m.Entries) > 0 && k == kindMessage {
		flags |= flagEntries
	}
	b = append(b, byte(k), flags, m.From.Role)
	b = binary.AppendUvarint(b, m.Number)
	b = binary.AppendVarint(b, m.Time.UnixMilli())
	b = appendString(b, m.From.ID)
	b = appendString(b, m.Topic)
	b = appendBytes(b, m.Payload)
	if m.Expiry != nil {
		b = binary.AppendUvarint(b, uint64(*m.Expiry))
	}
	if m.Props != nil {
		b = appendProps(b, m.Props)
	}
	if flags&flagSession != 0 {
		b = binary.AppendUvarint(b, m.Session)
		b = binary.AppendUvarint(b, uint64(m.ID))
	}
	if flags&flagEntries != 0 {
		b = binary.AppendUvarint(b, uint64(len(m.Entries)))
		for i := range m.Entries {
			b = binary.AppendUvarint(b, m.Entries[i].Session)
			b = appendDelivery(b, m.Entries[i].Delivery, false)
		}
	}
	return b
}

// The flags of a delivery.
const (
	deliveryQoS2     = 1 << 0
	deliveryRetain   = 1 << 1
	deliveryReceived = 1 << 2
	deliverySubIDs   = 1 << 3
)

func appendDelivery(b []byte, d Delivery, received bool) []byte {
	var flags byte
	if d.QoS == 2 {
		flags |= deliveryQoS2
	}
	if d.Retain {
		flags |= deliveryRetain
	}
	if received {
		flags |= deliveryReceived
	}
	if len(d.SubIDs) > 0 {
		flags |= deliverySubIDs
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(d.ID))
	if len(d.SubIDs) > 0 {
		b = binary.AppendUvarint(b, uint64(len(d.SubIDs)))
		for _, id := range d.SubIDs {
			b = binary.AppendUvarint(b, uint64(id))
		}
	}
	return b
}

func appendProps(b []byte, p *wire.MessageProperties) []byte {
	b = append(b, p.Format)
	b = appendString(b, p.ContentType)
	b = appendString(b, p.ResponseTopic)
	b = appendBytes(b, p.Correlation)
	b = binary.AppendUvarint(b, uint64(len(p.User)))
	for _, u := range p.User {
		b = appendString(b, u.Key)
		b = appendString(b, u.Value)
	}
	return b
}

func appendQueue(b []byte, queue []Queued) []byte {
	b = binary.AppendUvarint(b, uint64(len(queue)))
	for i := range queue {
		b = binary.AppendUvarint(b, queue[i].Message)
		b = appendDelivery(b, queue[i].Delivery, queue[i].Received)
	}
	return b
}

// The flags of a subscription, above its QoS.
const (
	subNoLocal   = 1 << 2
	subPublished = 1 << 3
	subHandling  = 4 // shift; two bits
)

func appendSubs(b []byte, subs []Subscription) []byte {
	b = binary.AppendUvarint(b, uint64(len(subs)))
	for _, s := range subs {
		flags := s.QoS | s.RetainHandling<<subHandling
		if s.NoLocal {
			flags |= subNoLocal
		}
		if s.RetainAsPublished {
			flags |= subPublished
		}
		b = append(b, flags)
		b = binary.AppendUvarint(b, uint64(s.SubID))
		b = appendString(b, s.Filter)
	}
	return b
}

func appendSession(b []byte, s *Session) []byte {
	b = append(b, byte(kindSession))
	b = binary.AppendUvarint(b, s.Number)
	b = appendString(b, s.Key)
	b = appendLife(b, s)
	b = appendSubs(b, s.Subs)
	b = binary.AppendUvarint(b, uint64(len(s.Incoming)))
	for _, id := range s.Incoming {
		b = binary.AppendUvarint(b, uint64(id))
	}
	return appendQueue(b, s.Queue)
}

func appendPresence(b []byte, s *Session) []byte {
	b = append(b, byte(kindPresence))
	b = binary.AppendUvarint(b, s.Number)
	return appendLife(b, s)
}

// The flags of a session's life.
const (
	lifeConnected = 1 << 0
	lifeWill      = 1 << 1
	lifeAuthor    = 1 << 2 // of the will; a hub that doesn't know it refuses the record
)

func appendLife(b []byte, s *Session) []byte {
	var flags byte
	if s.Connected {
		flags |= lifeConnected
	}
	if s.Will != nil {
		flags |= lifeWill
		if s.Author != nil {
			flags |= lifeAuthor
		}
	}
	b = append(b, flags, s.Version)
	b = binary.AppendVarint(b, s.Left.UnixMilli())
	b = binary.AppendUvarint(b, uint64(s.Expiry/time.Second))
	if s.Will != nil {
		b = binary.AppendUvarint(b, uint64(s.Will.Delay))
		b = appendBytes(b, appendMessage(nil, kindKept, &Message{Publish: s.Will.Message}))
	}
	if flags&lifeAuthor != 0 {
		b = appendStrings(appendStrings(b, s.Author.OU), s.Author.SAN)
	}
	return b
}

func appendStrings(b []byte, texts []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(texts)))
	for _, text := range texts {
		b = appendString(b, text)
	}
	return b
}

func appendAbout(b []byte, k kind, session uint64, id uint16) []byte {
	b = append(b, byte(k))
	b = binary.AppendUvarint(b, session)
	return binary.AppendUvarint(b, uint64(id))
}

func appendSubscribed(b []byte, session uint64, subs []Subscription, queue []Queued) []byte {
	b = append(b, byte(kindSubscribed))
	b = binary.AppendUvarint(b, session)
	return appendQueue(appendSubs(b, subs), queue)
}

func appendUnsubscribed(b []byte, session uint64, filters []string) []byte {
	b = append(b, byte(kindUnsubscribed))
	b = binary.AppendUvarint(b, session)
	b = binary.AppendUvarint(b, uint64(len(filters)))
	for _, f := range filters {
		b = appendString(b, f)
	}
	return b
}

func appendRetained(b []byte, topic string, number uint64, cleared bool) []byte {
	b = append(b, byte(kindRetained), 0)
	if cleared {
		b[len(b)-1] = 1
	}
	b = appendString(b, topic)
	return binary.AppendUvarint(b, number)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBytes(b, p []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(p))), p...)
}
