package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Encoded is a PUBLISH encoded once for many receivers. It is immutable and
// safe for concurrent use.
type Encoded struct {
	packet []byte
	id     int // where the packet identifier belongs; 0: nowhere, the QoS is 0
}

// EncodePublish encodes p for receivers of a version. Whether there is room
// for a packet identifier depends on p.QoS; p.ID and p.Dup don't count, they
// are given to AppendTo. p may be used again afterwards.
func EncodePublish(p *Publish, version byte) (*Encoded, error) {
	if version != V311 && version != V5 {
		return nil, fmt.Errorf("encode PUBLISH: protocol version %d is not spoken here", version)
	}
	blank := *p
	blank.Dup = false
	blank.ID = 0
	if p.QoS > 0 {
		blank.ID = 1
	}
	packet, id, err := appendPublish(nil, &blank, version)
	if err != nil {
		return nil, err
	}
	return &Encoded{packet, id}, nil
}

// Len is the size in bytes of the packet, whoever it goes to.
func (e *Encoded) Len() int { return len(e.packet) }

// AppendTo appends the packet to dst, with this receiver's packet identifier
// and DUP flag. Both are ignored for QoS 0; otherwise id must not be 0.
func (e *Encoded) AppendTo(dst []byte, id uint16, dup bool) []byte {
	at := len(dst)
	dst = append(dst, e.packet...)
	if e.id > 0 {
		binary.BigEndian.PutUint16(dst[at+e.id:], id)
		if dup {
			dst[at] |= 8
		}
	}
	return dst
}

// appendPublish encodes a PUBLISH as the codec does, but in one pass and
// without losing what the codec takes for absent: an expiry of 0 and empty
// correlation data. It also returns where the packet identifier stands behind
// len(dst), 0 if there is none.
func appendPublish(dst []byte, p *Publish, version byte) (out []byte, id int, err error) {
	if err := p.check(version); err != nil {
		return dst, 0, fmt.Errorf("encode PUBLISH: %w", err)
	}
	properties := 0
	remaining := 2 + len(p.Topic) + len(p.Payload)
	if p.QoS > 0 {
		remaining += 2
	}
	if version == V5 {
		properties = p.propertiesLen()
		remaining += varintLen(properties) + properties
	}
	if remaining > maxRemaining {
		return dst, 0, fmt.Errorf("encode PUBLISH: %w", errTooLong)
	}
	start := len(dst)
	if dst == nil {
		dst = make([]byte, 0, 1+varintLen(remaining)+remaining)
	}
	first := byte(TypePublish)<<4 | p.QoS<<1
	if p.Dup {
		first |= 8
	}
	if p.Retain {
		first |= 1
	}
	dst = appendVarint(append(dst, first), remaining)
	dst = appendString(dst, p.Topic)
	if p.QoS > 0 {
		id = len(dst) - start
		dst = binary.BigEndian.AppendUint16(dst, p.ID)
	}
	if version == V5 {
		dst = p.appendProperties(appendVarint(dst, properties))
	}
	return append(dst, p.Payload...), id, nil
}

// check refuses what a strict reader would.
func (p *Publish) check(version byte) error {
	switch {
	case p.QoS > 2:
		return failed(rulePublishQoS, version, "")
	case p.Dup && p.QoS == 0:
		return failed(ruleDupWithoutQoS, version, "")
	case p.QoS > 0 && p.ID == 0:
		return failed(ruleIdentifierZero, version, "")
	case p.Topic == "" && (version != V5 || p.Alias == 0):
		return failed(ruleTopicMissing, version, "")
	}
	if err := checkTopic(p.Topic, "the topic name"); err != nil || version != V5 {
		return err
	}
	for _, s := range p.SubIDs {
		if s < 1 || s > maxRemaining {
			return errors.New("a subscription identifier is not within 1 to 268,435,455")
		}
	}
	m := p.Props
	if m == nil {
		return nil
	}
	if m.Format > 1 {
		return failed(rulePropertyBool, version, "payload format indicator")
	}
	if err := checkTopic(m.ResponseTopic, "response topic"); err != nil {
		return err
	}
	if err := checkString(m.ContentType, "content type"); err != nil {
		return err
	}
	if len(m.Correlation) > math.MaxUint16 {
		return errFieldTooLong
	}
	for _, u := range m.User {
		if err := checkString(u.Key, "user property"); err != nil {
			return err
		}
		if err := checkString(u.Value, "user property"); err != nil {
			return err
		}
	}
	return nil
}

func checkTopic(topic, field string) error {
	if strings.IndexByte(topic, '#') >= 0 || strings.IndexByte(topic, '+') >= 0 {
		return failed(ruleTopicWildcard, V5, field)
	}
	return checkString(topic, field)
}

func checkString(s, field string) error {
	switch {
	case len(s) > math.MaxUint16:
		return errFieldTooLong
	case !utf8.ValidString(s):
		return failed(ruleString, V5, field)
	case strings.IndexByte(s, 0) >= 0:
		return failed(ruleNUL, V5, field)
	}
	return nil
}

// propertiesLen is the size of what appendProperties appends.
func (p *Publish) propertiesLen() int {
	n := 0
	if p.Expiry != nil {
		n += 5
	}
	if p.Alias != 0 {
		n += 3
	}
	for _, s := range p.SubIDs {
		n += 1 + varintLen(s)
	}
	m := p.Props
	if m == nil {
		return n
	}
	if m.Format != 0 {
		n += 2
	}
	if m.ContentType != "" {
		n += 3 + len(m.ContentType)
	}
	if m.ResponseTopic != "" {
		n += 3 + len(m.ResponseTopic)
	}
	if m.Correlation != nil {
		n += 3 + len(m.Correlation)
	}
	for _, u := range m.User {
		n += 5 + len(u.Key) + len(u.Value)
	}
	return n
}

// appendProperties appends the properties in the codec's order.
func (p *Publish) appendProperties(dst []byte) []byte {
	m := p.Props
	if m == nil {
		m = &MessageProperties{}
	}
	if m.Format != 0 {
		dst = append(dst, packets.PropPayloadFormat, m.Format)
	}
	if p.Expiry != nil {
		dst = binary.BigEndian.AppendUint32(append(dst, packets.PropMessageExpiryInterval), *p.Expiry)
	}
	if m.ContentType != "" {
		dst = appendString(append(dst, packets.PropContentType), m.ContentType)
	}
	if m.ResponseTopic != "" {
		dst = appendString(append(dst, packets.PropResponseTopic), m.ResponseTopic)
	}
	if m.Correlation != nil {
		dst = append(dst, packets.PropCorrelationData, byte(len(m.Correlation)>>8), byte(len(m.Correlation)))
		dst = append(dst, m.Correlation...)
	}
	for _, s := range p.SubIDs {
		dst = appendVarint(append(dst, packets.PropSubscriptionIdentifier), s)
	}
	if p.Alias != 0 {
		dst = binary.BigEndian.AppendUint16(append(dst, packets.PropTopicAlias), p.Alias)
	}
	for _, u := range m.User {
		dst = appendString(append(dst, packets.PropUser), u.Key)
		dst = appendString(dst, u.Value)
	}
	return dst
}

func appendString(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

// appendVarint appends a variable byte integer in the fewest bytes
// [MQTT-1.5.5-1].
func appendVarint(dst []byte, v int) []byte {
	for v > 0x7F {
		dst = append(dst, byte(v)|0x80)
		v >>= 7
	}
	return append(dst, byte(v))
}

func varintLen(v int) int {
	switch {
	case v < 1<<7:
		return 1
	case v < 1<<14:
		return 2
	case v < 1<<21:
		return 3
	}
	return 4
}
