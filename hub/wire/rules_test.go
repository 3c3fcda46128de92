package wire

import (
	"errors"
	"strings"
	"testing"
)

// violation is a packet that breaks one rule, and beside it one that differs
// in that alone and is accepted, so that nothing else can be what is refused.
type violation struct {
	clause  string // of the specification of version, or a section where there is no number
	what    string
	version byte // agreed on before; 0: none yet
	sender  direction
	bad     string
	code    Code
	good    string // "" where no packet comes near
}

// connect311 and connect5 are a CONNECT up to its payload, with the flags to be filled in.
func connect311(flags, payload string) string {
	return "10: 0004 'MQTT' 04 " + flags + " 003c " + payload
}

func connect5(flags, properties, payload string) string {
	return "10: 0004 'MQTT' 05 " + flags + " 003c " + properties + " " + payload
}

// Where a statement exists in both versions under two numbers, each has a row.
var violations = []violation{
	// 1.5 data representation
	{"MQTT-1.5.3-1", "a surrogate in a topic name [MQTT-3.3.2-1]", V311, fromClient, "30: 0003 eda080", MalformedPacket, "30: 0003 ed9fbf"},
	{"MQTT-1.5.4-1", "a surrogate in a topic name [MQTT-3.3.2-1]", V5, fromClient, "30: 0003 eda080 00", MalformedPacket, "30: 0003 ed9fbf 00"},
	{"MQTT-1.5.4-1", "an overlong encoding in a topic name", V5, fromClient, "30: 0002 c0af 00", MalformedPacket, "30: 0002 c3af 00"},
	{"MQTT-1.5.4-1", "beyond U+10FFFF in a topic name", V5, fromClient, "30: 0004 f4908080 00", MalformedPacket, "30: 0004 f48fbfbf 00"},
	{"MQTT-1.5.4-1", "half a character in a topic name", V5, fromClient, "30: 0002 'a' c3 00", MalformedPacket, "30: 0003 'a' c3a9 00"},
	{"MQTT-1.5.3-1", "in a client identifier [MQTT-3.1.3-4]", 0, fromClient, connect311("02", "0001 ff"), MalformedPacket, connect311("02", "0001 'f'")},
	{"MQTT-1.5.4-1", "in a client identifier [MQTT-3.1.3-4]", 0, fromClient, connect5("02", "00", "0001 ff"), MalformedPacket, connect5("02", "00", "0001 'f'")},
	{"MQTT-1.5.3-1", "in a will topic [MQTT-3.1.3-10]", 0, fromClient, connect311("06", "0001 'c' 0001 ff 0000"), MalformedPacket, connect311("06", "0001 'c' 0001 'f' 0000")},
	{"MQTT-1.5.4-1", "in a will topic [MQTT-3.1.3-11]", 0, fromClient, connect5("06", "00", "0001 'c' 00 0001 ff 0000"), MalformedPacket, connect5("06", "00", "0001 'c' 00 0001 'f' 0000")},
	{"MQTT-1.5.3-1", "in a user name [MQTT-3.1.3-11]", 0, fromClient, connect311("82", "0001 'c' 0001 ff"), MalformedPacket, connect311("82", "0001 'c' 0001 'f'")},
	{"MQTT-1.5.4-1", "in a user name [MQTT-3.1.3-12]", 0, fromClient, connect5("82", "00", "0001 'c' 0001 ff"), MalformedPacket, connect5("82", "00", "0001 'c' 0001 'f'")},
	{"MQTT-1.5.3-1", "in a filter of a SUBSCRIBE [MQTT-3.8.3-1]", V311, fromClient, "82: 0001 0001 ff 00", MalformedPacket, "82: 0001 0001 'f' 00"},
	{"MQTT-1.5.4-1", "in a filter of a SUBSCRIBE [MQTT-3.8.3-1]", V5, fromClient, "82: 0001 00 0001 ff 00", MalformedPacket, "82: 0001 00 0001 'f' 00"},
	{"MQTT-1.5.3-1", "in a filter of an UNSUBSCRIBE [MQTT-3.10.3-1]", V311, fromClient, "a2: 0001 0001 ff", MalformedPacket, "a2: 0001 0001 'f'"},
	{"MQTT-1.5.4-1", "in a filter of an UNSUBSCRIBE [MQTT-3.10.3-1]", V5, fromClient, "a2: 0001 00 0001 ff", MalformedPacket, "a2: 0001 00 0001 'f'"},
	{"MQTT-1.5.4-1", "in a response topic [MQTT-3.3.2-13]", V5, fromClient, "30: 0001 't' 04 08 0001 ff", MalformedPacket, "30: 0001 't' 04 08 0001 'f'"},
	{"MQTT-1.5.4-1", "in a content type [MQTT-3.3.2-19]", V5, fromClient, "30: 0001 't' 04 03 0001 ff", MalformedPacket, "30: 0001 't' 04 03 0001 'f'"},
	{"MQTT-1.5.4-1", "in a reason string", V5, fromClient, "40: 0001 80 04 1f 0001 ff", MalformedPacket, "40: 0001 80 04 1f 0001 'f'"},
	{"MQTT-1.5.4-1", "in the key of a user property [MQTT-1.5.7-1]", V5, fromClient, "30: 0001 't' 07 26 0001 ff 0001 'v'", MalformedPacket, "30: 0001 't' 07 26 0001 'k' 0001 'v'"},
	{"MQTT-1.5.4-1", "in the value of a user property [MQTT-1.5.7-1]", V5, fromClient, "30: 0001 't' 07 26 0001 'k' 0001 ff", MalformedPacket, "30: 0001 't' 07 26 0001 'k' 0001 'v'"},
	{"MQTT-1.5.3-2", "U+0000 in a topic name [MQTT-4.7.3-2]", V311, fromClient, "30: 0003 't' 00 't'", MalformedPacket, "30: 0003 't' 01 't'"},
	{"MQTT-1.5.4-2", "U+0000 in a topic name [MQTT-4.7.3-2]", V5, fromClient, "30: 0003 't' 00 't' 00", MalformedPacket, "30: 0003 't' 01 't' 00"},
	{"MQTT-1.5.3-2", "U+0000 in a filter [MQTT-4.7.3-2]", V311, fromClient, "82: 0001 0001 00 00", MalformedPacket, "82: 0001 0001 01 00"},
	{"MQTT-1.5.4-2", "U+0000 in a filter [MQTT-4.7.3-2]", V5, fromClient, "82: 0001 00 0001 00 00", MalformedPacket, "82: 0001 00 0001 01 00"},
	{"MQTT-1.5.4-2", "U+0000 in a user property [MQTT-1.5.7-1]", V5, fromClient, "30: 0001 't' 07 26 0001 00 0001 'v'", MalformedPacket, "30: 0001 't' 07 26 0001 01 0001 'v'"},
	{"MQTT-1.5.3-2", "U+0000 in a client identifier", 0, fromClient, connect311("02", "0001 00"), MalformedPacket, connect311("02", "0001 01")},
	{"MQTT-1.5.5-1", "a remaining length of two bytes for one", V5, fromClient, "30 84 00 0001 't' 00", MalformedPacket, "30 04 0001 't' 00"},
	{"MQTT-1.5.5-1", "a CONNECT's remaining length of two bytes for one", 0, fromClient, "10 8e00 0004 'MQTT' 05 02 003c 00 0001 'c'", MalformedPacket, "10 0e 0004 'MQTT' 05 02 003c 00 0001 'c'"},
	{"MQTT-1.5.5-1", "a property length of two bytes for one", V5, fromClient, "30: 0001 't' 8000", MalformedPacket, "30: 0001 't' 00"},
	{"MQTT-1.5.5-1", "a subscription identifier of two bytes for one", V5, fromClient, "82: 0001 03 0b 8100 0001 't' 00", MalformedPacket, "82: 0001 02 0b 01 0001 't' 00"},
	{"MQTT-1.5.5-1", "a property identifier of two bytes for one", V5, fromClient, "30: 0001 't' 03 8100 01", MalformedPacket, "30: 0001 't' 02 01 01"},
	{"§1.5.5", "a remaining length of five bytes", V5, fromClient, "30 84808080 00 0001 't' 00", MalformedPacket, "30 04 0001 't' 00"},
	{"§2.2.3", "a remaining length of five bytes", V311, fromClient, "30 83808080 00 0001 't'", MalformedPacket, "30 83808000 0001 't'"},
	{"§1.5.5", "a subscription identifier of five bytes", V5, fromClient, "82: 0001 06 0b ffffffff01 0001 't' 00", MalformedPacket, "82: 0001 05 0b ffffff7f 0001 't' 00"},
	{"§1.5.5", "a property length of five bytes", V5, fromClient, "30: 0001 't' 8080808000", MalformedPacket, "30: 0001 't' 00"},

	// 2 control packet format
	{"§2.1.2", "packet type 0", V5, fromClient, "00 00", MalformedPacket, "c0 00"},
	{"§2.2.1", "packet type 0", V311, fromClient, "00 00", MalformedPacket, "c0 00"},
	{"§2.2.1", "packet type 15", V311, fromClient, "f0 00", MalformedPacket, "c0 00"},
	{"MQTT-2.2.2-2", "flags of a PINGREQ [MQTT-2.2.2-1]", V311, fromClient, "c1 00", MalformedPacket, "c0 00"},
	{"MQTT-2.1.3-1", "flags of a PINGREQ", V5, fromClient, "c8 00", MalformedPacket, "c0 00"},
	{"MQTT-2.1.3-1", "flags of a CONNECT", 0, fromClient, "11: 0004 'MQTT' 05 02 003c 00 0001 'c'", MalformedPacket, connect5("02", "00", "0001 'c'")},
	{"MQTT-2.2.2-2", "flags of a PUBACK", V311, fromClient, "42: 0001", MalformedPacket, "40: 0001"},
	{"MQTT-2.1.3-1", "flags of a PUBACK", V5, fromClient, "44: 0001", MalformedPacket, "40: 0001"},
	{"MQTT-2.1.3-1", "flags of a PUBREC", V5, fromClient, "52: 0001", MalformedPacket, "50: 0001"},
	{"MQTT-2.1.3-1", "flags of a PUBCOMP", V5, fromClient, "72: 0001", MalformedPacket, "70: 0001"},
	{"MQTT-2.1.3-1", "flags of a CONNACK", V5, fromServer, "22: 00 00 00", MalformedPacket, "20: 00 00 00"},
	{"MQTT-2.1.3-1", "flags of a SUBACK", V5, fromServer, "92: 0001 00 00", MalformedPacket, "90: 0001 00 00"},
	{"MQTT-2.1.3-1", "flags of an UNSUBACK", V5, fromServer, "b2: 0001 00 00", MalformedPacket, "b0: 0001 00 00"},
	{"MQTT-2.1.3-1", "flags of a PINGRESP", V5, fromServer, "d1 00", MalformedPacket, "d0 00"},
	{"MQTT-2.3.1-1", "PUBLISH with identifier 0", V311, fromClient, "32: 0001 't' 0000", ProtocolError, "32: 0001 't' 0001"},
	{"MQTT-2.2.1-3", "PUBLISH with identifier 0", V5, fromClient, "32: 0001 't' 0000 00", ProtocolError, "32: 0001 't' 0001 00"},
	{"MQTT-2.2.1-3", "PUBLISH of QoS 2 with identifier 0", V5, fromClient, "34: 0001 't' 0000 00", ProtocolError, "34: 0001 't' 0001 00"},
	{"MQTT-2.2.1-3", "a server's PUBLISH with identifier 0 [MQTT-2.2.1-4]", V5, fromServer, "32: 0001 't' 0000 00", ProtocolError, "32: 0001 't' 0001 00"},
	{"MQTT-2.3.1-1", "SUBSCRIBE with identifier 0", V311, fromClient, "82: 0000 0001 't' 00", ProtocolError, "82: 0001 0001 't' 00"},
	{"MQTT-2.2.1-3", "SUBSCRIBE with identifier 0", V5, fromClient, "82: 0000 00 0001 't' 00", ProtocolError, "82: 0001 00 0001 't' 00"},
	{"MQTT-2.3.1-1", "UNSUBSCRIBE with identifier 0", V311, fromClient, "a2: 0000 0001 't'", ProtocolError, "a2: 0001 0001 't'"},
	{"MQTT-2.2.1-3", "UNSUBSCRIBE with identifier 0", V5, fromClient, "a2: 0000 00 0001 't'", ProtocolError, "a2: 0001 00 0001 't'"},
	{"MQTT-2.3.1-1", "PUBACK with identifier 0", V311, fromClient, "40: 0000", ProtocolError, "40: 0001"},
	{"MQTT-2.2.1-3", "PUBREC with identifier 0", V5, fromClient, "50: 0000", ProtocolError, "50: 0001"},
	{"MQTT-2.2.1-3", "PUBREL with identifier 0", V5, fromClient, "62: 0000", ProtocolError, "62: 0001"},
	{"MQTT-2.2.1-3", "PUBCOMP with identifier 0", V5, fromClient, "70: 0000", ProtocolError, "70: 0001"},
	{"MQTT-2.2.1-3", "SUBACK with identifier 0", V5, fromServer, "90: 0000 00 00", ProtocolError, "90: 0001 00 00"},
	{"§2.2.2.1", "PUBLISH without a property length [MQTT-2.2.2-1]", V5, fromClient, "30: 0001 't'", MalformedPacket, "30: 0001 't' 00"},
	{"§2.2.2.1", "SUBSCRIBE without a property length [MQTT-2.2.2-1]", V5, fromClient, "82: 0001", MalformedPacket, "82: 0001 00 0001 't' 00"},
	{"§2.2.2.1", "UNSUBSCRIBE without a property length [MQTT-2.2.2-1]", V5, fromClient, "a2: 0001", MalformedPacket, "a2: 0001 00 0001 't'"},
	{"§2.2.2.1", "a property length past the packet's end", V5, fromClient, "30: 0001 't' 03 01 01", MalformedPacket, "30: 0001 't' 02 01 01"},
	{"§2.2.2.1", "a property length that cuts a property", V5, fromClient, "30: 0001 't' 01 01 01", MalformedPacket, "30: 0001 't' 02 01 01"},
	{"§2.2.2.1", "a property length behind an identifier", V5, fromClient, "30: 0001 't' 03 01 01 26", MalformedPacket, "30: 0001 't' 02 01 01 26"},
	{"§2.2.2.2", "an unknown property", V5, fromClient, "30: 0001 't' 02 04 01", MalformedPacket, "30: 0001 't' 02 01 01"},
	{"§2.2.2.2", "property 0", V5, fromClient, "30: 0001 't' 02 00 01", MalformedPacket, "30: 0001 't' 02 01 01"},
	{"§2.2.2.2", "a property identifier of two bytes", V5, fromClient, "30: 0001 't' 03 8101 01", MalformedPacket, "30: 0001 't' 02 01 01"},
	{"§2.2.2.2", "a property of another packet", V5, fromClient, "30: 0001 't' 03 21 0001", MalformedPacket, "30: 0001 't' 03 23 0001"},
	{"§2.2.2.2", "a will property among the CONNECT's", 0, fromClient, connect5("02", "05 18 00000001", "0001 'c'"), MalformedPacket, connect5("02", "05 11 00000001", "0001 'c'")},
	{"§2.2.2.2", "a CONNECT property among the will's", 0, fromClient, connect5("06", "00", "0001 'c' 05 11 00000001 0001 't' 0000"), MalformedPacket, connect5("06", "00", "0001 'c' 05 18 00000001 0001 't' 0000")},
	{"§2.2.2.2", "a server's property from a client", 0, fromClient, connect5("02", "03 13 0001", "0001 'c'"), MalformedPacket, connect5("02", "03 22 0001", "0001 'c'")},

	// 3.1 CONNECT
	{"MQTT-3.1.0-1", "PUBLISH before CONNECT", 0, fromClient, "30: 0001 't'", ProtocolError, ""},
	{"MQTT-3.1.0-1", "SUBSCRIBE before CONNECT", 0, fromClient, "82: 0001 0001 't' 00", ProtocolError, ""},
	{"MQTT-3.1.0-1", "PINGREQ before CONNECT", 0, fromClient, "c0 00", ProtocolError, ""},
	{"MQTT-3.1.0-1", "DISCONNECT before CONNECT", 0, fromClient, "e0 00", ProtocolError, ""},
	{"MQTT-3.1.0-1", "AUTH before CONNECT", 0, fromClient, "f0 00", ProtocolError, ""},
	{"MQTT-3.1.0-2", "a second CONNECT", V311, fromClient, connect311("02", "0001 'c'"), ProtocolError, ""},
	{"MQTT-3.1.0-2", "a second CONNECT", V5, fromClient, connect5("02", "00", "0001 'c'"), ProtocolError, ""},
	{"MQTT-3.1.2-1", "another protocol name", 0, fromClient, "10: 0004 'MQTX' 05 02 003c 00 0001 'c'", UnsupportedProtocolVersion, connect5("02", "00", "0001 'c'")},
	{"MQTT-3.1.2-1", "a protocol name in small letters", 0, fromClient, "10: 0004 'mqtt' 04 02 003c 0001 'c'", UnsupportedProtocolVersion, connect311("02", "0001 'c'")},
	{"MQTT-3.1.2-1", "the name of 3.1 with the level of 3.1.1", 0, fromClient, "10: 0006 'MQIsdp' 04 02 003c 0001 'c'", UnsupportedProtocolVersion, "10: 0006 'MQIsdp' 03 02 003c 0001 'c'"},
	{"MQTT-3.1.2-1", "an empty protocol name", 0, fromClient, "10: 0000 04 02 003c 0001 'c'", UnsupportedProtocolVersion, ""},
	{"MQTT-3.1.2-3", "the reserved connect flag", 0, fromClient, connect311("03", "0001 'c'"), MalformedPacket, connect311("02", "0001 'c'")},
	{"MQTT-3.1.2-3", "the reserved connect flag of 5.0", 0, fromClient, connect5("03", "00", "0001 'c'"), MalformedPacket, connect5("02", "00", "0001 'c'")},
	{"MQTT-3.1.2-13", "will QoS without a will [MQTT-3.1.2-11]", 0, fromClient, connect311("0a", "0001 'c'"), MalformedPacket, connect311("02", "0001 'c'")},
	{"MQTT-3.1.2-11", "will QoS without a will", 0, fromClient, connect5("12", "00", "0001 'c'"), MalformedPacket, connect5("02", "00", "0001 'c'")},
	{"MQTT-3.1.2-14", "will QoS 3", 0, fromClient, connect311("1e", "0001 'c' 0001 't' 0000"), MalformedPacket, connect311("16", "0001 'c' 0001 't' 0000")},
	{"MQTT-3.1.2-12", "will QoS 3", 0, fromClient, connect5("1e", "00", "0001 'c' 00 0001 't' 0000"), MalformedPacket, connect5("16", "00", "0001 'c' 00 0001 't' 0000")},
	{"MQTT-3.1.2-15", "will retain without a will [MQTT-3.1.2-11]", 0, fromClient, connect311("22", "0001 'c'"), MalformedPacket, connect311("02", "0001 'c'")},
	{"MQTT-3.1.2-13", "will retain without a will", 0, fromClient, connect5("22", "00", "0001 'c'"), MalformedPacket, connect5("02", "00", "0001 'c'")},
	{"§3.1.2.5", "a will without topic and message [MQTT-3.1.2-9]", 0, fromClient, connect311("06", "0001 'c'"), MalformedPacket, connect311("02", "0001 'c'")},
	{"§3.1.2.5", "a will without a message [MQTT-3.1.2-9]", 0, fromClient, connect311("06", "0001 'c' 0001 't'"), MalformedPacket, connect311("06", "0001 'c' 0001 't' 0000")},
	{"§3.1.2.5", "a will topic and message without the flag [MQTT-3.1.2-11]", 0, fromClient, connect311("02", "0001 'c' 0001 't' 0000"), MalformedPacket, connect311("06", "0001 'c' 0001 't' 0000")},
	{"§3.1.2.5", "a will without will properties", 0, fromClient, connect5("06", "00", "0001 'c'"), MalformedPacket, connect5("06", "00", "0001 'c' 00 0001 't' 0000")},
	{"MQTT-3.1.2-22", "a password without a user name", 0, fromClient, connect311("42", "0001 'c' 0001 'p'"), MalformedPacket, connect311("c2", "0001 'c' 0001 'u' 0001 'p'")},
	{"§3.1.2.8", "the user name flag without a user name [MQTT-3.1.2-19]", 0, fromClient, connect311("82", "0001 'c'"), MalformedPacket, connect311("82", "0001 'c' 0000")},
	{"§3.1.2.8", "the user name flag without a user name [MQTT-3.1.2-17]", 0, fromClient, connect5("82", "00", "0001 'c'"), MalformedPacket, connect5("82", "00", "0001 'c' 0000")},
	{"§3.1.2.8", "a user name without the flag [MQTT-3.1.2-18]", 0, fromClient, connect311("02", "0001 'c' 0001 'u'"), MalformedPacket, connect311("82", "0001 'c' 0001 'u'")},
	{"§3.1.2.8", "a user name without the flag [MQTT-3.1.2-16]", 0, fromClient, connect5("02", "00", "0001 'c' 0001 'u'"), MalformedPacket, connect5("82", "00", "0001 'c' 0001 'u'")},
	{"§3.1.2.9", "the password flag without a password [MQTT-3.1.2-21]", 0, fromClient, connect311("c2", "0001 'c' 0001 'u'"), MalformedPacket, connect311("c2", "0001 'c' 0001 'u' 0000")},
	{"§3.1.2.9", "the password flag without a password [MQTT-3.1.2-19]", 0, fromClient, connect5("42", "00", "0001 'c'"), MalformedPacket, connect5("42", "00", "0001 'c' 0000")},
	{"§3.1.2.9", "a password without the flag [MQTT-3.1.2-20]", 0, fromClient, connect311("82", "0001 'c' 0001 'u' 0001 'p'"), MalformedPacket, connect311("c2", "0001 'c' 0001 'u' 0001 'p'")},
	{"§3.1.2.9", "a password without the flag [MQTT-3.1.2-18]", 0, fromClient, connect5("02", "00", "0001 'c' 0001 'p'"), MalformedPacket, connect5("42", "00", "0001 'c' 0001 'p'")},
	{"§3.1.3", "no client identifier [MQTT-3.1.3-3]", 0, fromClient, connect311("02", ""), MalformedPacket, connect311("02", "0000")},
	{"§3.1.3", "no client identifier [MQTT-3.1.3-3] in 5.0", 0, fromClient, connect5("02", "00", ""), MalformedPacket, connect5("02", "00", "0000")},
	{"§3.1.3", "fields behind the last [MQTT-3.1.3-1]", 0, fromClient, connect311("c2", "0001 'c' 0001 'u' 0001 'p' 00"), MalformedPacket, connect311("c2", "0001 'c' 0001 'u' 0001 'p'")},
	{"§3.1.2.10", "no keep alive", 0, fromClient, "10: 0004 'MQTT' 04 02 00", MalformedPacket, ""},
	{"§3.1.2.3", "no connect flags", 0, fromClient, "10: 0004 'MQTT' 04", MalformedPacket, ""},
	{"§3.1.2.2", "no protocol level", 0, fromClient, "10: 0004 'MQTT'", MalformedPacket, ""},
	{"§3.1.2.1", "no protocol name", 0, fromClient, "10 00", MalformedPacket, ""},
	{"§3.1.2.11.3", "receive maximum 0", 0, fromClient, connect5("02", "03 21 0000", "0001 'c'"), ProtocolError, connect5("02", "03 21 0001", "0001 'c'")},
	{"§3.1.2.11.4", "maximum packet size 0", 0, fromClient, connect5("02", "05 27 00000000", "0001 'c'"), ProtocolError, connect5("02", "05 27 00000001", "0001 'c'")},
	{"§3.1.2.11.6", "request response information 2", 0, fromClient, connect5("02", "02 19 02", "0001 'c'"), ProtocolError, connect5("02", "02 19 01", "0001 'c'")},
	{"§3.1.2.11.7", "request problem information 2", 0, fromClient, connect5("02", "02 17 02", "0001 'c'"), ProtocolError, connect5("02", "02 17 01", "0001 'c'")},
	{"§3.1.2.11.10", "authentication data without a method", 0, fromClient, connect5("02", "04 16 0001 'd'", "0001 'c'"), ProtocolError, connect5("02", "08 15 0001 'm' 16 0001 'd'", "0001 'c'")},
	{"§3.1.3.2.3", "will payload format 2", 0, fromClient, connect5("06", "00", "0001 'c' 02 01 02 0001 't' 0000"), ProtocolError, connect5("06", "00", "0001 'c' 02 01 01 0001 't' 0000")},
	{"MQTT-4.7.3-1", "an empty will topic", 0, fromClient, connect311("06", "0001 'c' 0000 0000"), MalformedPacket, connect311("06", "0001 'c' 0001 't' 0000")},
	{"MQTT-3.3.2-2", "a wildcard in a will topic [MQTT-4.7.0-1]", 0, fromClient, connect5("06", "00", "0001 'c' 00 0001 '#' 0000"), MalformedPacket, connect5("06", "00", "0001 'c' 00 0001 't' 0000")},

	// 3.2 CONNACK
	{"MQTT-3.2.2-1", "reserved connect acknowledge flags", V5, fromServer, "20: 02 00 00", MalformedPacket, "20: 01 00 00"},
	{"§3.2.2.1", "reserved connect acknowledge flags", V311, fromServer, "20: 80 00", MalformedPacket, "20: 01 00"},
	{"MQTT-3.2.2-6", "session present in a refusal", V5, fromServer, "20: 01 87 00", ProtocolError, "20: 00 87 00"},
	{"MQTT-3.2.2-4", "session present in a refusal", V311, fromServer, "20: 01 05", ProtocolError, "20: 00 05"},
	{"MQTT-3.2.2-8", "a reason code of another packet", V5, fromServer, "20: 00 8f 00", ProtocolError, "20: 00 90 00"},
	{"§3.2.2.3", "a reserved return code", V311, fromServer, "20: 00 06", ProtocolError, "20: 00 05"},
	{"§3.2.2.3.3", "receive maximum 0", V5, fromServer, "20: 00 00 03 21 0000", ProtocolError, "20: 00 00 03 21 0001"},
	{"§3.2.2.3.4", "maximum QoS 2", V5, fromServer, "20: 00 00 02 24 02", ProtocolError, "20: 00 00 02 24 01"},
	{"§3.2.2.3.5", "retain available 2", V5, fromServer, "20: 00 00 02 25 02", ProtocolError, "20: 00 00 02 25 00"},
	{"§3.2.2.3.6", "maximum packet size 0", V5, fromServer, "20: 00 00 05 27 00000000", ProtocolError, "20: 00 00 05 27 00000001"},
	{"§3.2.2.3.11", "wildcard subscription available 2", V5, fromServer, "20: 00 00 02 28 02", ProtocolError, "20: 00 00 02 28 00"},
	{"§3.2.2.3.12", "subscription identifiers available 2", V5, fromServer, "20: 00 00 02 29 02", ProtocolError, "20: 00 00 02 29 00"},
	{"§3.2.2.3.13", "shared subscription available 2", V5, fromServer, "20: 00 00 02 2a 02", ProtocolError, "20: 00 00 02 2a 00"},
	{"§3.2.2.3.18", "authentication data without a method", V5, fromServer, "20: 00 00 04 16 0001 'd'", ProtocolError, "20: 00 00 08 15 0001 'm' 16 0001 'd'"},
	{"§3.2.1", "a 3.1.1 CONNACK that is too long", V311, fromServer, "20: 00 00 00", MalformedPacket, "20: 00 00"},
	{"§3.2.2", "a CONNACK without a reason code", V5, fromServer, "20: 00", MalformedPacket, "20: 00 00 00"},

	// 3.3 PUBLISH
	{"MQTT-3.3.1-2", "DUP with QoS 0 [MQTT-4.3.1-1]", V311, fromClient, "38: 0001 't'", MalformedPacket, "30: 0001 't'"},
	{"MQTT-3.3.1-2", "DUP with QoS 0 [MQTT-4.3.1-1] in 5.0", V5, fromClient, "39: 0001 't' 00", MalformedPacket, "31: 0001 't' 00"},
	{"MQTT-3.3.1-4", "QoS 3", V311, fromClient, "36: 0001 't' 0001", MalformedPacket, "34: 0001 't' 0001"},
	{"MQTT-3.3.1-4", "QoS 3 in 5.0", V5, fromClient, "3e: 0001 't' 0001 00", MalformedPacket, "3c: 0001 't' 0001 00"},
	{"§3.3.2.1", "no topic name [MQTT-3.3.2-1]", V311, fromClient, "30: 00", MalformedPacket, "30: 0001 't'"},
	{"§3.3.2.1", "a topic name past the packet's end [MQTT-3.3.2-1]", V5, fromClient, "30: 0004 't' 00", MalformedPacket, "30: 0001 't' 00"},
	{"MQTT-4.7.3-1", "an empty topic name", V311, fromClient, "30: 0000", MalformedPacket, "30: 0001 't'"},
	{"§3.3.2.1", "neither topic name nor alias", V5, fromClient, "30: 0000 00", ProtocolError, "30: 0000 03 23 0001"},
	{"MQTT-3.3.2-2", "# in a topic name [MQTT-4.7.1-1]", V311, fromClient, "30: 0003 'a/#'", MalformedPacket, "30: 0003 'a/b'"},
	{"MQTT-3.3.2-2", "# in a topic name [MQTT-4.7.0-1]", V5, fromClient, "30: 0003 'a/#' 00", MalformedPacket, "30: 0003 'a/b' 00"},
	{"MQTT-3.3.2-2", "+ in a topic name [MQTT-4.7.0-1]", V5, fromClient, "30: 0003 'a+b' 00", MalformedPacket, "30: 0003 'a/b' 00"},
	{"MQTT-3.3.2-2", "a server's PUBLISH to a filter", V5, fromServer, "30: 0003 '+/b' 00", MalformedPacket, "30: 0003 'a/b' 00"},
	{"§3.3.2.2", "QoS 1 without an identifier", V311, fromClient, "32: 0001 't' 00", MalformedPacket, "32: 0001 't' 0001"},
	{"§3.3.2.3.2", "payload format 2", V5, fromClient, "30: 0001 't' 02 01 02", ProtocolError, "30: 0001 't' 02 01 01"},
	{"MQTT-3.3.2-8", "topic alias 0", V5, fromClient, "30: 0001 't' 03 23 0000", TopicAliasInvalid, "30: 0001 't' 03 23 0001"},
	{"MQTT-3.3.2-8", "topic alias 0 and no topic name", V5, fromClient, "30: 0000 03 23 0000", TopicAliasInvalid, "30: 0000 03 23 0001"},
	{"MQTT-3.3.2-14", "# in a response topic", V5, fromClient, "30: 0001 't' 04 08 0001 '#'", ProtocolError, "30: 0001 't' 04 08 0001 'r'"},
	{"MQTT-3.3.2-14", "+ in a will's response topic", 0, fromClient, connect5("06", "00", "0001 'c' 04 08 0001 '+' 0001 't' 0000"), ProtocolError, connect5("06", "00", "0001 'c' 04 08 0001 'r' 0001 't' 0000")},
	{"MQTT-4.7.3-1", "an empty response topic", V5, fromClient, "30: 0001 't' 03 08 0000", MalformedPacket, "30: 0001 't' 04 08 0001 'r'"},
	{"MQTT-3.3.4-6", "a client's subscription identifier", V5, fromClient, "30: 0001 't' 02 0b 01", ProtocolError, "30: 0001 't' 02 01 01"},
	{"§3.3.2.3.8", "a server's subscription identifier 0", V5, fromServer, "30: 0001 't' 02 0b 00", ProtocolError, "30: 0001 't' 04 0b 01 0b 02"},

	// 3.4 to 3.7 acknowledgements
	{"MQTT-3.4.2-1", "a reason code of another packet", V5, fromClient, "40: 0001 92", ProtocolError, "40: 0001 91"},
	{"MQTT-3.4.2-1", "what only a server says", V5, fromClient, "40: 0001 10", ProtocolError, "40: 0001 00"},
	{"MQTT-3.5.2-1", "a reason code of another packet", V5, fromClient, "50: 0001 01", ProtocolError, "50: 0001 00"},
	{"MQTT-3.6.1-1", "flags of a PUBREL", V311, fromClient, "60: 0001", MalformedPacket, "62: 0001"},
	{"MQTT-3.6.1-1", "flags of a PUBREL in 5.0", V5, fromClient, "6a: 0001", MalformedPacket, "62: 0001"},
	{"MQTT-3.6.2-1", "a reason code of another packet", V5, fromClient, "62: 0001 91", ProtocolError, "62: 0001 92"},
	{"MQTT-3.7.2-1", "a reason code of another packet", V5, fromClient, "70: 0001 80", ProtocolError, "70: 0001 92"},
	{"§3.4.2", "half an identifier", V311, fromClient, "40: 00", MalformedPacket, "40: 0001"},
	{"§3.4.1", "a 3.1.1 PUBACK that is too long", V311, fromClient, "40: 0001 00", MalformedPacket, "40: 0001"},
	{"§3.6.1", "a 3.1.1 PUBREL that is too long", V311, fromClient, "62: 0001 00", MalformedPacket, "62: 0001"},
	{"§3.4.2.2", "bytes behind the properties", V5, fromClient, "40: 0001 00 00 00", MalformedPacket, "40: 0001 00 00"},
	{"§3.7.2.2", "a property length past the packet's end", V5, fromClient, "70: 0001 00 01", MalformedPacket, "70: 0001 00 00"},

	// 3.8 SUBSCRIBE
	{"MQTT-3.8.1-1", "flags of a SUBSCRIBE", V311, fromClient, "80: 0001 0001 't' 00", MalformedPacket, "82: 0001 0001 't' 00"},
	{"MQTT-3.8.1-1", "flags of a SUBSCRIBE in 5.0", V5, fromClient, "83: 0001 00 0001 't' 00", MalformedPacket, "82: 0001 00 0001 't' 00"},
	{"MQTT-3.8.3-3", "no filter", V311, fromClient, "82: 0001", ProtocolError, "82: 0001 0001 't' 00"},
	{"MQTT-3.8.3-2", "no filter", V5, fromClient, "82: 0001 00", ProtocolError, "82: 0001 00 0001 't' 00"},
	{"§3.8.3", "a filter without options", V5, fromClient, "82: 0001 00 0001 't'", MalformedPacket, "82: 0001 00 0001 't' 00"},
	{"§3.8.3", "a second filter without options", V311, fromClient, "82: 0001 0001 't' 00 0001 'u'", MalformedPacket, "82: 0001 0001 't' 00 0001 'u' 01"},
	{"§3.8.3", "the eight bytes that end a mochi server", V5, fromClient, "82 06 0001 00 0001 't'", MalformedPacket, ""},
	{"MQTT-4.7.3-1", "an empty filter", V311, fromClient, "82: 0001 0000 00", MalformedPacket, "82: 0001 0001 't' 00"},
	{"MQTT-4.7.3-1", "an empty filter in 5.0", V5, fromClient, "82: 0001 00 0000 00", MalformedPacket, "82: 0001 00 0001 't' 00"},
	{"MQTT-3.8.3-4", "QoS 3", V311, fromClient, "82: 0001 0001 't' 03", ProtocolError, "82: 0001 0001 't' 02"},
	{"MQTT-3.8.3-4", "reserved bits of the QoS", V311, fromClient, "82: 0001 0001 't' 04", MalformedPacket, "82: 0001 0001 't' 00"},
	{"§3.8.3.1", "QoS 3", V5, fromClient, "82: 0001 00 0001 't' 03", ProtocolError, "82: 0001 00 0001 't' 02"},
	{"§3.8.3.1", "retain handling 3", V5, fromClient, "82: 0001 00 0001 't' 30", ProtocolError, "82: 0001 00 0001 't' 20"},
	{"MQTT-3.8.3-4", "no local on a shared subscription", V5, fromClient, "82: 0001 00 000a '$share/g/t' 04", ProtocolError, "82: 0001 00 000a '$share/g/t' 00"},
	{"MQTT-3.8.3-5", "reserved bit 6 of the options", V5, fromClient, "82: 0001 00 0001 't' 40", MalformedPacket, "82: 0001 00 0001 't' 2e"},
	{"MQTT-3.8.3-5", "reserved bit 7 of the options", V5, fromClient, "82: 0001 00 0001 't' 80", MalformedPacket, "82: 0001 00 0001 't' 2e"},
	{"§3.8.2.1.2", "subscription identifier 0", V5, fromClient, "82: 0001 02 0b 00 0001 't' 00", ProtocolError, "82: 0001 02 0b 01 0001 't' 00"},

	// 3.9 SUBACK
	{"MQTT-3.9.3-2", "a reserved return code", V311, fromServer, "90: 0001 03", ProtocolError, "90: 0001 80"},
	{"MQTT-3.9.3-2", "a reason code of 5.0 in 3.1.1", V311, fromServer, "90: 0001 87", ProtocolError, "90: 0001 80"},
	{"MQTT-3.9.3-2", "a reason code of another packet", V5, fromServer, "90: 0001 00 11", ProtocolError, "90: 0001 00 87"},
	{"MQTT-3.8.4-6", "no reason code", V5, fromServer, "90: 0001 00", ProtocolError, "90: 0001 00 00"},
	{"MQTT-3.8.4-5", "no return code", V311, fromServer, "90: 0001", ProtocolError, "90: 0001 00"},

	// 3.10, 3.11 UNSUBSCRIBE, UNSUBACK
	{"MQTT-3.10.1-1", "flags of an UNSUBSCRIBE", V311, fromClient, "a0: 0001 0001 't'", MalformedPacket, "a2: 0001 0001 't'"},
	{"MQTT-3.10.1-1", "flags of an UNSUBSCRIBE in 5.0", V5, fromClient, "a6: 0001 00 0001 't'", MalformedPacket, "a2: 0001 00 0001 't'"},
	{"MQTT-3.10.3-2", "no filter", V311, fromClient, "a2: 0001", ProtocolError, "a2: 0001 0001 't'"},
	{"MQTT-3.10.3-2", "no filter in 5.0", V5, fromClient, "a2: 0001 00", ProtocolError, "a2: 0001 00 0001 't'"},
	{"MQTT-4.7.3-1", "an empty filter to unsubscribe", V5, fromClient, "a2: 0001 00 0000", MalformedPacket, "a2: 0001 00 0001 't'"},
	{"§3.10.3", "half a filter", V311, fromClient, "a2: 0001 0002 't'", MalformedPacket, "a2: 0001 0001 't'"},
	{"MQTT-3.11.3-2", "a reason code of another packet", V5, fromServer, "b0: 0001 00 01", ProtocolError, "b0: 0001 00 11"},
	{"§3.11.3", "a 3.1.1 UNSUBACK that is too long", V311, fromServer, "b0: 0001 00", MalformedPacket, "b0: 0001"},

	// 3.12, 3.13 PINGREQ, PINGRESP
	{"§3.12.3", "a PINGREQ that is too long", V311, fromClient, "c0: 00", MalformedPacket, "c0 00"},
	{"§3.12.3", "a PINGREQ that is too long in 5.0", V5, fromClient, "c0: 00", MalformedPacket, "c0 00"},
	{"§3.13.3", "a PINGRESP that is too long", V5, fromServer, "d0: 00", MalformedPacket, "d0 00"},

	// 3.14 DISCONNECT
	{"MQTT-3.14.1-1", "flags of a DISCONNECT", V311, fromClient, "e1 00", MalformedPacket, "e0 00"},
	{"MQTT-3.14.1-1", "flags of a DISCONNECT in 5.0", V5, fromClient, "e8 00", MalformedPacket, "e0 00"},
	{"§3.14.1", "a 3.1.1 DISCONNECT that is too long", V311, fromClient, "e0: 00", MalformedPacket, "e0 00"},
	{"MQTT-3.14.2-1", "a reason code of another packet", V5, fromClient, "e0: 10", ProtocolError, "e0: 04"},
	{"MQTT-3.14.2-1", "a server's reason code from a client", V5, fromClient, "e0: 8e", ProtocolError, "e0: 80"},
	{"MQTT-3.14.2-1", "a client's reason code from a server", V5, fromServer, "e0: 04", ProtocolError, "e0: 8e"},
	{"MQTT-3.14.2-2", "a server's session expiry", V5, fromServer, "e0: 00 05 11 00000001", ProtocolError, "e0: 00 00"},
	{"§3.14.2.2", "bytes behind the properties", V5, fromClient, "e0: 00 00 00", MalformedPacket, "e0: 00 00"},

	// 3.15 AUTH
	{"MQTT-3.15.1-1", "flags of an AUTH", V5, fromClient, "f2: 18 04 15 0001 'm'", MalformedPacket, "f0: 18 04 15 0001 'm'"},
	{"MQTT-3.15.2-1", "a reason code of another packet", V5, fromClient, "f0: 80 04 15 0001 'm'", ProtocolError, "f0: 18 04 15 0001 'm'"},
	{"MQTT-3.15.2-1", "a server's reason code from a client", V5, fromClient, "f0: 00 04 15 0001 'm'", ProtocolError, "f0: 19 04 15 0001 'm'"},
	{"MQTT-3.15.2-1", "a server's reason code from a client in short", V5, fromClient, "f0 00", ProtocolError, "f0: 19 04 15 0001 'm'"},
	{"MQTT-3.15.2-1", "a client's reason code from a server [MQTT-4.12.0-2]", V5, fromServer, "f0: 19 04 15 0001 'm'", ProtocolError, "f0: 18 04 15 0001 'm'"},
	{"§3.15.2.2.2", "no authentication method", V5, fromClient, "f0: 18 00", ProtocolError, "f0: 18 04 15 0001 'm'"},

	// 2.2, 4.13: what goes in the other direction
	{"§2.1.2", "CONNACK from a client", V5, fromClient, "20: 00 00 00", ProtocolError, ""},
	{"§2.1.2", "SUBACK from a client", V5, fromClient, "90: 0001 00 00", ProtocolError, ""},
	{"§2.1.2", "UNSUBACK from a client", V311, fromClient, "b0: 0001", ProtocolError, ""},
	{"§2.1.2", "PINGRESP from a client", V311, fromClient, "d0 00", ProtocolError, ""},
	{"§2.1.2", "CONNECT from a server", V5, fromServer, connect5("02", "00", "0001 'c'"), ProtocolError, ""},
	{"§2.1.2", "SUBSCRIBE from a server", V5, fromServer, "82: 0001 00 0001 't' 00", ProtocolError, ""},
	{"§2.1.2", "UNSUBSCRIBE from a server", V311, fromServer, "a2: 0001 0001 't'", ProtocolError, ""},
	{"§2.1.2", "PINGREQ from a server", V5, fromServer, "c0 00", ProtocolError, ""},
	{"§2.2.1", "DISCONNECT from a 3.1.1 server", V311, fromServer, "e0 00", ProtocolError, ""},

	// what the reader was told to accept at most is 1 MiB in these tests
	{"MQTT-3.2.2-15", "more than the server's maximum packet size", V5, fromClient, "30 fdff3f", PacketTooLarge, ""},
	{"MQTT-3.1.2-24", "more than the client's maximum packet size", V5, fromServer, "30 fdff3f", PacketTooLarge, ""},
	{"MQTT-3.2.2-15", "six bytes that announce 256 MB", 0, fromClient, "10 ffffff7f 00", PacketTooLarge, ""},
}

func TestPacketThatBreaksAClauseIsRefused(t *testing.T) {
	for _, v := range allViolations() {
		t.Run(v.clause+" "+v.what, func(t *testing.T) {
			_, err := reading(packet(t, v.bad), v.version, v.sender).Next()
			var wrong *Error
			if !errors.As(err, &wrong) {
				t.Fatalf("%s was read: error %v", v.bad, err)
			}
			if byTheCodec(wrong) {
				t.Errorf("no rule refused it: %v", wrong)
			}
			if wrong.Code != v.code {
				t.Errorf("code %#x, want %#x (%v)", wrong.Code, v.code, wrong)
			}
			want := v.clause
			if strings.HasPrefix(want, "§") {
				want = "" // the specification gives no number
			}
			if wrong.Clause != want {
				t.Errorf("clause %q, want %q (%v)", wrong.Clause, want, wrong)
			}
			if v.good == "" {
				return
			}
			mustRead(t, packet(t, v.good), v.version, v.sender)
		})
	}
}

// TestEveryRuleIsBroken keeps the table complete: a rule that no packet above
// breaks could be missing from the code without anybody noticing.
func TestEveryRuleIsBroken(t *testing.T) {
	broken := map[Error]bool{}
	for _, v := range allViolations() {
		var wrong *Error
		if _, err := reading(packet(t, v.bad), v.version, v.sender).Next(); errors.As(err, &wrong) {
			broken[*wrong] = true
		}
	}
	for r := ruleNone + 1; r < ruleCount; r++ {
		s := statements[r]
		if s.detail == "" {
			t.Errorf("rule %d has no statement", r)
			continue
		}
		for _, clause := range []string{s.v311, s.v5} {
			found := false
			for e := range broken {
				found = found || e.Code == s.code && e.Clause == clause && strings.HasSuffix(e.Detail, s.detail)
			}
			if !found && (clause != "" || s.v311 == s.v5) {
				t.Errorf("no packet breaks %q with clause %q", s.detail, clause)
			}
		}
	}
}

// allViolations are those above and what tables are better at than a person.
func allViolations() []violation {
	all := append([]violation{}, violations...)
	all = append(all, repeatedProperties()...)
	all = append(all, foreignProperties()...)
	return append(all, tooMany()...)
}
