package capture

import (
	"crypto/tls"
	"fmt"
	"time"
)

// conversation reads the two byte streams of one connection as they come, into events. It
// holds one unfinished record and one unfinished handshake message of each direction.
type conversation struct {
	begin  time.Time
	client int // which end
	halves [2]half

	synAt, synAckAt time.Time
	closer          int // which end hung up first; valid if closedAs isn't empty
	closedAs        string
	closedAt        time.Time
	refusedTCP      bool // the SYN was answered with a RST

	events []event
	left   [2]int // events that were only counted, and what they had of bytes
	leftB  [2]int

	hello        *clientHello // the latest
	hellos       int
	server       *serverHello // the latest; a HelloRetryRequest is one
	retried      bool
	version      uint16 // chosen; 0 before
	resumed      bool   // the server said so
	certificates [2]*chain
	asked        bool // for the client's certificate
	notAsked     bool // certainly; neither: not known
	problem      string
}

// half is one direction.
type half struct {
	bytes   int    // of TCP payload
	buf     []byte // what is not a whole record yet
	message []byte // what is not a whole handshake message yet
	header  int    // bytes of record headers not accounted to a message yet
	records int
	ccs     bool   // sent ChangeCipherSpec
	foreign []byte // how the stream begins, if not with TLS
	mid     bool   // begins with TLS, but not with a handshake
	dead    bool   // not read any further
}

// kind is what an event is.
type kind int

const (
	kindTCP       kind = iota
	kindMessage        // a handshake message in the clear
	kindCCS            // ChangeCipherSpec
	kindAlert          // in the clear
	kindSecret         // TLS 1.2: an encrypted record that says it is of the handshake
	kindSecretEnd      // TLS 1.2: an encrypted record that says it is an alert
	kindData           // a record of type application data: in TLS 1.3 everything encrypted
	kindOther
)

// event is a step before it is known what the encrypted ones are.
type event struct {
	at       time.Time
	end      int
	kind     kind
	bytes    int // with record headers
	payload  int // of the record, for encrypted ones
	name     string
	note     string
	fields   []Field
	alert    uint8
	fatal    bool
	inferred bool
	message  uint8 // handshake type
}

func (c *conversation) event(e event) {
	if len(c.events) < maxEvents {
		c.events = append(c.events, e)
		return
	}
	// Keep the first three quarters and the last quarter: how it began and how it ended.
	const cut = maxEvents * 3 / 4
	c.left[c.events[cut].end]++
	c.leftB[c.events[cut].end] += c.events[cut].bytes
	copy(c.events[cut:], c.events[cut+1:])
	c.events[len(c.events)-1] = e
}

// opened takes a SYN.
func (c *conversation) opened(from int, acknowledges, again bool, at time.Time) {
	e := event{at: at, end: from, name: "TCP SYN"}
	switch {
	case acknowledges:
		e.name = "TCP SYN, ACK"
		if c.synAckAt.IsZero() {
			c.synAckAt = at
		}
		if !c.synAt.IsZero() && !again {
			e.note = "the port answers"
		}
	case c.synAt.IsZero():
		c.synAt = at
	}
	if again {
		e.note = "again: the first was lost or not answered"
	}
	c.event(e)
}

// closed takes a FIN or RST. The first of the connection counts.
func (c *conversation) closed(from int, reset bool, at time.Time) {
	name := "FIN"
	if reset {
		name = "RST"
	}
	if c.closedAs == "" {
		c.closer, c.closedAs, c.closedAt = from, name, at
		c.refusedTCP = reset && c.synAckAt.IsZero() && !c.synAt.IsZero() && c.halves[0].bytes+c.halves[1].bytes == 0
	}
	c.event(event{at: at, end: from, name: "TCP " + name})
}

// lost takes the news that bytes of a direction are not in the capture.
func (c *conversation) lost(end, n int) {
	h := &c.halves[end]
	if h.dead {
		return
	}
	h.dead, h.buf, h.message = true, nil, nil
	if n > 0 {
		c.fail("truncated capture: %d bytes from the %s are missing", n, sideOf(end, c.client))
	} else {
		c.fail("truncated capture: bytes from the %s are missing", sideOf(end, c.client))
	}
}

func (c *conversation) fail(format string, args ...any) {
	if c.problem == "" {
		c.problem = fmt.Sprintf(format, args...)
	}
}

// feed takes the next bytes of a direction. data is the caller's.
func (c *conversation) feed(end int, data []byte, at time.Time) {
	h := &c.halves[end]
	h.bytes += len(data)
	if h.dead {
		return
	}
	h.buf = append(h.buf, data...)
	rest := h.buf
	for !h.dead {
		if h.records == 0 && !plausible(rest) {
			h.foreign, h.dead = append([]byte(nil), rest[:min(len(rest), 16)]...), true
			break
		}
		if len(rest) < 5 {
			break
		}
		n := int(rest[3])<<8 | int(rest[4])
		if !plausible(rest) || n > maxRecord {
			h.dead = true
			c.fail("malformed: the %s's record %d begins with the bytes % x, which is no TLS", sideOf(end, c.client), h.records+1, rest[:5])
			break
		}
		if len(rest) < 5+n {
			break
		}
		h.records++
		c.record(end, rest[0], rest[5:5+n], at)
		rest = rest[5+n:]
	}
	if h.dead {
		h.buf, h.message = nil, nil
		return
	}
	h.buf = append(h.buf[:0], rest...)
	if cap(h.buf) > 2*maxRecord {
		h.buf = append([]byte(nil), h.buf...)
	}
}

// plausible reports whether a stream can begin a TLS record with these bytes, few as they
// may be (RFC 8446 §5.1).
func plausible(b []byte) bool {
	return len(b) == 0 || b[0] >= recordCCS && b[0] <= recordHeartbeat && (len(b) < 2 || b[1] == 3) && (len(b) < 3 || b[2] <= 4)
}

// The record types of RFC 8446 §5.1 and RFC 6520.
const (
	recordCCS       = 20
	recordAlert     = 21
	recordHandshake = 22
	recordData      = 23
	recordHeartbeat = 24
)

// record takes one whole record.
func (c *conversation) record(end int, kind uint8, payload []byte, at time.Time) {
	h := &c.halves[end]
	if h.records == 1 && kind != recordHandshake && kind != recordAlert {
		h.mid = true
	}
	e := event{at: at, end: end, bytes: 5 + len(payload), payload: len(payload)}
	// TLS 1.3 has no encrypted records of these types, and its ChangeCipherSpec says nothing.
	secret := h.ccs && c.version != tls.VersionTLS13 || h.mid
	if kind != recordHandshake && len(h.message) > 0 {
		c.fail("malformed: the %s's handshake message is interrupted by another record", sideOf(end, c.client))
		h.dead = true
		return
	}
	switch kind {
	case recordCCS:
		h.ccs = true
		if end != c.client && c.version != tls.VersionTLS13 && c.version != 0 && c.certificates[end] == nil {
			c.resumed = true // RFC 5246 §7.3: the abbreviated handshake has no certificate
		}
		e.kind, e.name = kindCCS, "ChangeCipherSpec"
	case recordAlert:
		e.kind, e.name = kindSecretEnd, "encrypted alert"
		if !secret && len(payload) == 2 {
			e.kind, e.fatal, e.alert = kindAlert, payload[0] == 2, payload[1]
			e.name = "Alert " + alertName(e.alert)
		}
	case recordHandshake:
		if secret {
			e.kind, e.name = kindSecret, "encrypted handshake message"
			break
		}
		h.header += 5
		h.message = append(h.message, payload...)
		c.messages(end, at)
		return
	case recordData:
		e.kind, e.name = kindData, "application data"
	default:
		e.kind, e.name = kindOther, "heartbeat"
	}
	c.event(e)
}

// messages reads the whole handshake messages there are (RFC 8446 §4).
func (c *conversation) messages(end int, at time.Time) {
	h := &c.halves[end]
	for len(h.message) >= 4 {
		n := int(h.message[1])<<16 | int(h.message[2])<<8 | int(h.message[3])
		if n > maxMessage {
			h.dead = true
			c.fail("malformed: the %s's %s claims to be of %d bytes", sideOf(end, c.client), messageName(h.message[0]), n)
			return
		}
		if len(h.message) < 4+n {
			return
		}
		e := event{at: at, end: end, kind: kindMessage, message: h.message[0], bytes: h.header + 4 + n, name: messageName(h.message[0])}
		h.header = 0
		if err := c.message(&e, h.message[4:4+n]); err != nil {
			e.note = "malformed: " + err.Error()
			c.fail("malformed: the %s's %s: %s", sideOf(end, c.client), e.name, err)
			h.dead = true
		}
		c.event(e)
		if h.dead {
			return
		}
		h.message = h.message[4+n:]
	}
	if len(h.message) == 0 {
		h.message = nil
	}
}
