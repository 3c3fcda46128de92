package wire

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"
)

// cursor walks over a packet's body and judges it. Its methods take bytes off
// the front of b.
type cursor struct {
	b       []byte
	version byte
	sender  direction
}

func (c *cursor) fail(r rule) *Error { return failed(r, c.version, "") }

func (c *cursor) about(r rule, field string) *Error { return failed(r, c.version, field) }

func (c *cursor) byte() (byte, bool) {
	if len(c.b) < 1 {
		return 0, false
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v, true
}

func (c *cursor) uint16() (uint16, bool) {
	if len(c.b) < 2 {
		return 0, false
	}
	v := binary.BigEndian.Uint16(c.b)
	c.b = c.b[2:]
	return v, true
}

func (c *cursor) uint32() (uint32, bool) {
	if len(c.b) < 4 {
		return 0, false
	}
	v := binary.BigEndian.Uint32(c.b)
	c.b = c.b[4:]
	return v, true
}

// varint takes a variable byte integer, which in version 5.0 is a minimal one
// [MQTT-1.5.5-1].
func (c *cursor) varint() (int, *Error) {
	v, n, state := varint(c.b)
	switch state {
	case varintPartial:
		return 0, c.fail(ruleTruncated)
	case varintTooLong:
		return 0, c.fail(ruleIntegerLength)
	}
	if n > 1 && c.b[n-1] == 0 {
		return 0, c.fail(ruleMinimalInteger)
	}
	c.b = c.b[n:]
	return v, nil
}

// binary takes two bytes of length and what they announce.
func (c *cursor) binary() ([]byte, bool) {
	if len(c.b) < 2 {
		return nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(c.b))
	if len(c.b) < n {
		return nil, false
	}
	v := c.b[2:n]
	c.b = c.b[n:]
	return v, true
}

// string takes a UTF-8 string. Control characters other than U+0000 and
// noncharacters are allowed by the specification, and so they are here.
func (c *cursor) string(field string) ([]byte, *Error) {
	v, ok := c.binary()
	switch {
	case !ok:
		return nil, c.fail(ruleTruncated)
	case !utf8.Valid(v): // refuses surrogates too
		return nil, c.about(ruleString, field)
	case bytes.IndexByte(v, 0) >= 0:
		return nil, c.about(ruleNUL, field)
	}
	return v, nil
}

// topic takes a topic name that must not be empty nor contain a wildcard; what
// else a name may be is for hub/topic to say.
func (c *cursor) topic(field string, wildcard rule) *Error {
	v, wrong := c.string(field)
	switch {
	case wrong != nil:
		return wrong
	case len(v) == 0:
		return c.about(ruleTopicEmpty, field)
	case hasWildcard(v):
		return c.about(wildcard, field)
	}
	return nil
}

func hasWildcard(topic []byte) bool {
	return bytes.IndexByte(topic, '#') >= 0 || bytes.IndexByte(topic, '+') >= 0
}

// identifier takes a packet identifier.
func (c *cursor) identifier() *Error {
	id, ok := c.uint16()
	if !ok {
		return c.fail(ruleTruncated)
	}
	if id == 0 {
		return c.fail(ruleIdentifierZero)
	}
	return nil
}
