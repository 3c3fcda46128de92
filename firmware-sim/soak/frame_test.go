package soak

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The control packet types (MQTT §2.1.2).
const (
	typeConnect byte = iota + 1
	typeConnack
	typePublish
	typePuback
	typePubrec
	typePubrel
	typePubcomp
	typeSubscribe
	typeSuback
	typeUnsubscribe
	typeUnsuback
	typePingreq
	typePingresp
	typeDisconnect
)

// The versions, as CONNECT's protocol level.
const (
	v311 byte = 4
	v5   byte = 5
)

// packet is what a hub may send, taken apart. Fields that a type doesn't have are zero.
type packet struct {
	kind    byte
	id      uint16
	topic   string
	payload []byte
	qos     byte
	dup     bool
	retain  bool
	code    byte   // reason code, or the return code of a 3.1.1 CONNACK
	codes   []byte // of a SUBACK or UNSUBACK
	present bool   // CONNACK: session present
	receive uint16 // CONNACK: Receive Maximum; 65,535 if not given
}

// connectOptions are what tests vary in a CONNECT.
type connectOptions struct {
	version   byte
	id        string
	clean     bool
	keepAlive uint16
	receive   uint16 // Receive Maximum of version 5; 0: not sent
	narrow    bool   // take 4 KiB at a time from the socket, so that what isn't read soon fills the hub's side
}

// connectFrame encodes a CONNECT. A session that isn't clean asks version 5 for a day of expiry.
func connectFrame(o connectOptions) []byte {
	body := appendText(nil, "MQTT")
	flags := byte(0)
	if o.clean {
		flags = 2
	}
	body = append(body, o.version, flags)
	body = binary.BigEndian.AppendUint16(body, o.keepAlive)
	if o.version == v5 {
		var properties []byte
		if !o.clean {
			properties = binary.BigEndian.AppendUint32(append(properties, 0x11), 86400)
		}
		if o.receive > 0 {
			properties = binary.BigEndian.AppendUint16(append(properties, 0x21), o.receive)
		}
		body = append(appendLength(body, len(properties)), properties...)
	}
	return frame(typeConnect<<4, appendText(body, o.id))
}

// publishFrame encodes a PUBLISH.
func publishFrame(version byte, p packet) []byte {
	body := appendText(nil, p.topic)
	if p.qos > 0 {
		body = binary.BigEndian.AppendUint16(body, p.id)
	}
	if version == v5 {
		body = append(body, 0)
	}
	head := typePublish<<4 | p.qos<<1
	if p.dup {
		head |= 8
	}
	if p.retain {
		head |= 1
	}
	return frame(head, append(body, p.payload...))
}

// ackFrame encodes a PUBACK, PUBREC, PUBREL or PUBCOMP that says success, the same in both versions.
func ackFrame(kind byte, id uint16) []byte {
	head := kind << 4
	if kind == typePubrel {
		head |= 2
	}
	return binary.BigEndian.AppendUint16([]byte{head, 2}, id)
}

// subscribeFrame encodes a SUBSCRIBE of one filter.
func subscribeFrame(version byte, id uint16, filter string, qos byte) []byte {
	body := binary.BigEndian.AppendUint16(nil, id)
	if version == v5 {
		body = append(body, 0)
	}
	return frame(typeSubscribe<<4|2, append(appendText(body, filter), qos))
}

// unsubscribeFrame encodes an UNSUBSCRIBE of one filter.
func unsubscribeFrame(version byte, id uint16, filter string) []byte {
	body := binary.BigEndian.AppendUint16(nil, id)
	if version == v5 {
		body = append(body, 0)
	}
	return frame(typeUnsubscribe<<4|2, appendText(body, filter))
}

// pingFrame and disconnectFrame are the same in both versions.
func pingFrame() []byte       { return []byte{typePingreq << 4, 0} }
func disconnectFrame() []byte { return []byte{typeDisconnect << 4, 0} }

func frame(head byte, body []byte) []byte {
	return append(appendLength([]byte{head}, len(body)), body...)
}

func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// appendLength appends a variable byte integer (MQTT §1.5.5).
func appendLength(b []byte, n int) []byte {
	for ; n > 127; n >>= 7 {
		b = append(b, byte(n)|128)
	}
	return append(b, byte(n))
}

// malformed is what no hub may send.
type malformed struct{ detail string }

// Error returns the detail.
func (m *malformed) Error() string { return "the hub sent " + m.detail }

// maxFrame is far above what the hub announces to send.
const maxFrame = 4 << 20

// readPacket reads one packet that a hub of that version sent. Errors of the connection are returned as they are.
func readPacket(r *bufio.Reader, version byte) (packet, error) {
	head, err := r.ReadByte()
	if err != nil {
		return packet{}, err
	}
	length := 0
	for shift := 0; ; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return packet{}, err
		}
		length |= int(b&127) << shift
		if b < 128 {
			break
		}
		if shift == 21 {
			return packet{}, &malformed{"a remaining length of five bytes"}
		}
	}
	if length > maxFrame {
		return packet{}, &malformed{fmt.Sprintf("a packet of %d bytes", length)}
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return packet{}, err
	}
	p, err := takeApart(head, &cursor{rest: body}, version)
	if err != nil {
		return p, &malformed{fmt.Sprintf("a packet of type %d that is wrong: %v", head>>4, err)}
	}
	return p, nil
}

// takeApart decodes the body of a packet.
func takeApart(head byte, c *cursor, version byte) (packet, error) {
	p := packet{kind: head >> 4}
	flags := head & 15
	switch p.kind {
	case typeConnack:
		p.present, p.receive = c.byte()&1 == 1, 65535
		p.code = c.byte()
		if version == v5 {
			p.receive = connackReceive(c.take(c.length()), p.receive)
		}
	case typePublish:
		p.dup, p.qos, p.retain = flags&8 != 0, flags>>1&3, flags&1 != 0
		flags = 0
		p.topic = string(c.take(int(c.uint16())))
		if p.qos > 0 {
			p.id = c.uint16()
		}
		if version == v5 {
			c.take(c.length())
		}
		p.payload = c.take(len(c.rest))
	case typePuback, typePubrec, typePubrel, typePubcomp:
		p.id = c.uint16()
		if version == v5 && len(c.rest) > 0 {
			p.code = c.byte()
			c.rest = nil
		}
		if p.kind == typePubrel {
			flags ^= 2
		}
	case typeSuback, typeUnsuback:
		p.id = c.uint16()
		if version == v5 {
			c.take(c.length())
		}
		p.codes = c.take(len(c.rest))
	case typePingresp:
	case typeDisconnect:
		if version != v5 {
			return p, errors.New("no server of 3.1.1 sends DISCONNECT")
		}
		if len(c.rest) > 0 {
			p.code = c.byte()
			c.rest = nil
		}
	default:
		return p, errors.New("no server sends it")
	}
	switch {
	case c.short:
		return p, errors.New("it is cut short")
	case len(c.rest) > 0:
		return p, fmt.Errorf("%d bytes too many", len(c.rest))
	case flags != 0:
		return p, fmt.Errorf("flags %04b", head&15)
	}
	return p, nil
}

// connackReceive finds Receive Maximum among a CONNACK's properties.
func connackReceive(properties []byte, otherwise uint16) uint16 {
	c := &cursor{rest: properties}
	for len(c.rest) > 0 && !c.short {
		switch id := c.byte(); id {
		case 0x21:
			return c.uint16()
		case 0x11, 0x27: // session expiry, maximum packet size
			c.take(4)
		case 0x22, 0x13: // topic alias maximum, server keep-alive
			c.take(2)
		case 0x24, 0x25, 0x28, 0x29, 0x2A: // what is available
			c.take(1)
		case 0x26: // user property
			c.take(int(c.uint16()))
			c.take(int(c.uint16()))
		default: // texts
			c.take(int(c.uint16()))
		}
	}
	return otherwise
}

// cursor reads a body from its front. Past the end it returns zeros and is short.
type cursor struct {
	rest  []byte
	short bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.rest) {
		c.short, c.rest = true, nil
		return nil
	}
	taken := c.rest[:n]
	c.rest = c.rest[n:]
	return taken
}

func (c *cursor) byte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if b := c.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// length reads a variable byte integer.
func (c *cursor) length() int {
	n := 0
	for shift := 0; shift <= 21; shift += 7 {
		b := c.byte()
		n |= int(b&127) << shift
		if b < 128 {
			return n
		}
	}
	c.short = true
	return 0
}
