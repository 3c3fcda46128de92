package wire

import (
	"fmt"
	"strings"
	"testing"
)

// sample is a property with a valid value.
var sample = map[byte]string{
	1: "01 01", 2: "02 00000001", 3: "03 0001 'c'", 8: "08 0001 'r'", 9: "09 0001 'd'", 11: "0b 01", 17: "11 00000001",
	18: "12 0001 'i'", 19: "13 0001", 21: "15 0001 'm'", 22: "16 0001 'd'", 23: "17 01", 24: "18 00000001", 25: "19 01",
	26: "1a 0001 'i'", 28: "1c 0001 's'", 31: "1f 0001 'r'", 33: "21 0001", 34: "22 0001", 35: "23 0001", 36: "24 01",
	37: "25 01", 38: "26 0001 'k' 0001 'v'", 39: "27 00000001", 40: "28 01", 41: "29 01", 42: "2a 01",
}

// place is where properties stand: a packet around them.
type place struct {
	name    string
	sender  direction
	version byte
	packet  func(properties string) string
	allowed string // identifiers, from MQTT 5.0 table 2-4
}

// around puts properties with their length between two parts of a packet.
func around(before, after string) func(string) string {
	return func(properties string) string {
		n := len(strings.Join(strings.Fields(strings.NewReplacer("'", "").Replace(spell(properties))), "")) / 2
		return fmt.Sprintf("%s %02x %s %s", before, n, properties, after)
	}
}

// spell turns quoted text into hexadecimal.
func spell(s string) string {
	parts := strings.Split(s, "'")
	for i := 1; i < len(parts); i += 2 {
		parts[i] = fmt.Sprintf("%x", parts[i])
	}
	return strings.Join(parts, "")
}

// places is written from the specification's table, not from properties.go.
var places = []place{
	{"CONNECT", fromClient, 0, around("10: 0004 'MQTT' 05 02 003c", "0001 'c'"), "17 21 22 23 25 33 34 38 39"},
	{"will", fromClient, 0, around("10: 0004 'MQTT' 05 06 003c 00 0001 'c'", "0001 't' 0000"), "1 2 3 8 9 24 38"},
	{"CONNACK", fromServer, V5, around("20: 00 00", ""), "17 18 19 21 22 26 28 31 33 34 36 37 38 39 40 41 42"},
	{"client's PUBLISH", fromClient, V5, around("30: 0001 't'", ""), "1 2 3 8 9 35 38"},
	{"server's PUBLISH", fromServer, V5, around("30: 0001 't'", ""), "1 2 3 8 9 11 35 38"},
	{"PUBACK", fromClient, V5, around("40: 0001 00", ""), "31 38"},
	{"PUBREC", fromClient, V5, around("50: 0001 00", ""), "31 38"},
	{"PUBREL", fromClient, V5, around("62: 0001 00", ""), "31 38"},
	{"PUBCOMP", fromClient, V5, around("70: 0001 00", ""), "31 38"},
	{"server's PUBACK", fromServer, V5, around("40: 0001 00", ""), "31 38"},
	{"server's PUBREC", fromServer, V5, around("50: 0001 00", ""), "31 38"},
	{"server's PUBREL", fromServer, V5, around("62: 0001 00", ""), "31 38"},
	{"server's PUBCOMP", fromServer, V5, around("70: 0001 00", ""), "31 38"},
	{"SUBSCRIBE", fromClient, V5, around("82: 0001", "0001 't' 00"), "11 38"},
	{"SUBACK", fromServer, V5, around("90: 0001", "00"), "31 38"},
	{"UNSUBSCRIBE", fromClient, V5, around("a2: 0001", "0001 't'"), "38"},
	{"UNSUBACK", fromServer, V5, around("b0: 0001", "00"), "31 38"},
	{"client's DISCONNECT", fromClient, V5, around("e0: 00", ""), "17 28 31 38"},
	{"server's DISCONNECT", fromServer, V5, around("e0: 00", ""), "28 31 38"},
	{"AUTH", fromClient, V5, around("f0: 18", ""), "21 22 31 38"},
	{"server's AUTH", fromServer, V5, around("f0: 18", ""), "21 22 31 38"},
}

// allows reports whether the property may stand at the place.
func (p place) allows(id byte) bool {
	for _, s := range strings.Fields(p.allowed) {
		if s == fmt.Sprint(id) {
			return true
		}
	}
	return false
}

// with returns the packet with the property n times, and what it needs beside it.
func (p place) with(id byte, n int) string {
	properties := strings.Repeat(sample[id]+" ", n)
	if strings.HasSuffix(p.name, "AUTH") && id != 21 || id == 22 {
		properties = sample[21] + " " + properties
	}
	return p.packet(properties)
}

func TestEveryPropertyIsAcceptedWhereTable2_4HasIt(t *testing.T) {
	for _, p := range places {
		for id := byte(1); id <= 42; id++ {
			if p.allows(id) {
				t.Run(fmt.Sprintf("%s/%s", p.name, properties[id].name), func(t *testing.T) {
					mustRead(t, packet(t, p.with(id, 1)), p.version, p.sender)
				})
			}
		}
	}
}

// foreignProperties puts every property where table 2-4 does not have it.
func foreignProperties() (all []violation) {
	for _, p := range places {
		for id := byte(1); id <= 42; id++ {
			if p.allows(id) || sample[id] == "" {
				continue
			}
			v := violation{"§2.2.2.2", properties[id].name + " in " + p.name, p.version, p.sender, p.with(id, 1), MalformedPacket, ""}
			if id == 22 { // with the method beside it that data needs, which is foreign too
				v.bad = p.packet(sample[22])
			}
			switch {
			case p.name == "client's PUBLISH" && id == 11:
				v.clause, v.code = "MQTT-3.3.4-6", ProtocolError
			case p.name == "server's DISCONNECT" && id == 17:
				v.clause, v.code = "MQTT-3.14.2-2", ProtocolError
			}
			all = append(all, v)
		}
	}
	return all
}

// repeatedProperties has each property twice in each place, once where it may
// be repeated [MQTT-3.1.3-10].
func repeatedProperties() (all []violation) {
	for _, p := range places {
		for id := byte(1); id <= 42; id++ {
			if !p.allows(id) || id == 38 || id == 11 && p.name == "server's PUBLISH" {
				continue
			}
			all = append(all, violation{"§2.2.2", properties[id].name + " twice in " + p.name, p.version, p.sender, p.with(id, 2), ProtocolError, p.with(id, 1)})
		}
	}
	return all
}

func TestUserPropertiesMayBeRepeatedEverywhere(t *testing.T) {
	for _, p := range places {
		t.Run(p.name, func(t *testing.T) {
			mustRead(t, packet(t, p.with(38, 3)), p.version, p.sender)
		})
	}
}

// TestTruncatedPropertyIsMalformed cuts each property within its value and
// lets the property length end there, with more of the packet behind it.
func TestTruncatedPropertyIsMalformed(t *testing.T) {
	for _, p := range places {
		for id := byte(1); id <= 42; id++ {
			if !p.allows(id) {
				continue
			}
			whole := spell(sample[id])
			whole = strings.Join(strings.Fields(whole), "")
			for n := 2; n < len(whole); n += 2 {
				b := packet(t, p.packet(whole[:n]))
				if _, err := reading(b, p.version, p.sender).Next(); !isMalformed(err) {
					t.Errorf("%s in %s cut to %s: error %v", properties[id].name, p.name, whole[:n], err)
				}
			}
		}
	}
}

func isMalformed(err error) bool {
	wrong, ok := err.(*Error)
	return ok && wrong.Code == MalformedPacket && !byTheCodec(wrong)
}

// tooMany breaks the hub's own bounds.
func tooMany() []violation {
	filters := func(n int) string { return strings.Repeat(" 0001 't' 00", n) }
	names := func(n int) string { return strings.Repeat(" 0001 't'", n) }
	users := func(n int) string {
		return fmt.Sprintf("30: 0001 't' %x %s", appendVarint(nil, 5*n), strings.Repeat(" 26 0000 0000", n))
	}
	const what = "more than the hub takes in one packet: "
	return []violation{
		{"§4.13", what + "filters to subscribe", V311, fromClient, "82: 0001" + filters(maxFilters+1), QuotaExceeded, "82: 0001" + filters(maxFilters)},
		{"§4.13", what + "filters to unsubscribe", V311, fromClient, "a2: 0001" + names(maxFilters+1), QuotaExceeded, "a2: 0001" + names(maxFilters)},
		{"§4.13", what + "user properties", V5, fromClient, users(maxUser + 1), QuotaExceeded, users(maxUser)},
	}
}
