package conformance

import (
	"encoding/binary"
	"slices"

	"github.com/fleethub/fleethub/hub/wire"
)

// Packets as bytes, for what no encoder would write.

// str is a UTF-8 encoded string or binary data: its length and itself.
func str(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

func u16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

func u32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// varint is a variable byte integer.
func varint(n int) []byte {
	var b []byte
	for {
		d := byte(n & 0x7f)
		if n >>= 7; n == 0 {
			return append(b, d)
		}
		b = append(b, d|0x80)
	}
}

// packet is a control packet with that first byte.
func packet(first byte, parts ...[]byte) []byte {
	body := slices.Concat(parts...)
	return slices.Concat([]byte{first}, varint(len(body)), body)
}

// prop is one property.
func prop(id byte, value []byte) []byte { return append([]byte{id}, value...) }

// props is a properties field; in 3.1.1 there is none.
func (x *exam) props(properties ...[]byte) []byte {
	if x.version != wire.V5 {
		return nil
	}
	all := slices.Concat(properties...)
	return append(varint(len(all)), all...)
}

// Connect flags (MQTT 5.0 §3.1.2.3).
const (
	flagReserved   = 0x01
	flagClean      = 0x02
	flagWill       = 0x04
	flagWillQoS1   = 0x08
	flagWillQoS3   = 0x18
	flagWillRetain = 0x20
	flagPassword   = 0x40
	flagUsername   = 0x80
)

// connectBytes is a CONNECT of this version with those flags and that payload.
func (x *exam) connectBytes(flags byte, payload ...[]byte) []byte {
	return packet(0x10, str("MQTT"), []byte{x.version, flags}, u16(60), x.props(), slices.Concat(payload...))
}

// connectWith is a CONNECT of version 5.0 with those properties.
func connectWith(id string, properties ...[]byte) []byte {
	all := slices.Concat(properties...)
	return packet(0x10, str("MQTT"), []byte{wire.V5, flagClean}, u16(60), varint(len(all)), all, str(id))
}

// publishBytes is a PUBLISH with those flags in its first byte; the identifier is written if flags say QoS 1 or 2.
func (x *exam) publishBytes(flags byte, topic string, id uint16, properties []byte, payload string) []byte {
	parts := [][]byte{str(topic)}
	if flags&0x06 != 0 {
		parts = append(parts, u16(id))
	}
	return packet(0x30|flags, append(parts, x.props(properties), []byte(payload))...)
}

// subscribeBytes is a SUBSCRIBE with one filter and that options byte.
func (x *exam) subscribeBytes(first byte, id uint16, filter string, options byte) []byte {
	return packet(first, u16(id), x.props(), str(filter), []byte{options})
}

// unsubscribeBytes is an UNSUBSCRIBE with one filter.
func (x *exam) unsubscribeBytes(first byte, id uint16, filter string) []byte {
	return packet(first, u16(id), x.props(), str(filter))
}
