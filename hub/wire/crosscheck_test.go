package wire

import (
	"errors"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// TestReaderAgreesWithTheCodecsOwnPackets reads the packets that mochi tests
// itself with. What mochi takes for valid is accepted and what it takes for
// invalid is refused, but for what is named here.
func TestReaderAgreesWithTheCodecsOwnPackets(t *testing.T) {
	strict := map[byte]string{ // valid to mochi
		packets.TConnackBadProtocolVersion:         "3.1.1 has five return codes",
		packets.TConnackProtocolViolationNoSession: "3.1.1 has five return codes",
		packets.TConnackBadClientID:                "3.1.1 has five return codes",
		packets.TConnackServerUnavailable:          "3.1.1 has five return codes",
		packets.TConnackBadUsernamePassword:        "3.1.1 has five return codes",
		packets.TConnackNotAuthorised:              "3.1.1 has five return codes",
		packets.TPublishDup:                        "MQTT-3.3.1-2",
		packets.TSubackInvalidSharedNoLocal:        "MQTT-3.9.3-2",
	}
	lenient := map[byte]string{ // invalid to mochi
		packets.TPublishSpecDenySysTopic: "who may publish to $SYS is for hub/policy to say",
	}
	checked := 0
	for kind := byte(TypeConnect); kind <= byte(TypeAuth); kind++ {
		for _, c := range packets.TPacketData[kind] {
			if c.RawBytes == nil || c.Group == "encode" {
				continue
			}
			checked++
			valid := c.FailFirst == nil && c.Expect == nil
			if strict[c.Case] != "" {
				valid = false
			}
			if lenient[c.Case] != "" {
				valid = true
			}
			version := V311
			if c.Packet != nil && c.Packet.ProtocolVersion != 0 {
				version = c.Packet.ProtocolVersion
			}
			if got := accepted(t, c.RawBytes, version, Type(kind)); got != valid {
				t.Errorf("type %d, %q: accepted %v, want %v: % x", kind, c.Desc, got, valid, c.RawBytes)
			}
		}
	}
	if checked < 100 {
		t.Errorf("only %d of mochi's packets were checked", checked)
	}
}

// TestTruncatedPacketIsRefused cuts packets at every byte, with a remaining
// length that fits, where only the named lengths leave a packet.
func TestTruncatedPacketIsRefused(t *testing.T) {
	for _, c := range []struct {
		packet  string
		version byte
		sender  direction
		valid   []int // lengths of the body that are packets too
	}{
		{connect311("c6", "0001 'c' 0001 't' 0001 'w' 0001 'u' 0001 'p'"), 0, fromClient, nil},
		{connect5("c6", "06 21 0001 22 0002", "0001 'c' 02 01 01 0001 't' 0001 'w' 0001 'u' 0001 'p'"), 0, fromClient, nil},
		{"20: 00 00", V311, fromServer, nil},
		{"20: 00 00 03 13 0001", V5, fromServer, nil},
		{"32: 0001 't' 0001", V311, fromClient, nil},
		{"32: 0001 't' 0001 04 08 0001 'r'", V5, fromClient, nil},
		{"40: 0001", V311, fromClient, nil},
		{"40: 0001 80 04 1f 0001 'r'", V5, fromClient, []int{2, 3}},
		{"50: 0001 80 04 1f 0001 'r'", V5, fromClient, []int{2, 3}},
		{"62: 0001 92 04 1f 0001 'r'", V5, fromClient, []int{2, 3}},
		{"70: 0001 92 04 1f 0001 'r'", V5, fromClient, []int{2, 3}},
		{"82: 0001 0001 't' 01", V311, fromClient, nil},
		{"82: 0001 02 0b 01 0001 't' 01", V5, fromClient, nil},
		{"90: 0001 00", V311, fromServer, nil},
		{"90: 0001 04 1f 0001 'r' 00", V5, fromServer, nil},
		{"a2: 0001 0001 't'", V311, fromClient, nil},
		{"a2: 0001 00 0001 't'", V5, fromClient, nil},
		{"b0: 0001", V311, fromServer, nil},
		{"b0: 0001 04 1f 0001 'r' 00", V5, fromServer, nil},
		{"e0: 00 04 1f 0001 'r'", V5, fromClient, []int{0, 1}},
		{"f0: 18 08 15 0001 'm' 16 0001 'd'", V5, fromClient, nil},
	} {
		whole := packet(t, c.packet)
		mustRead(t, whole, c.version, c.sender)
		body := whole[2:]
	cut:
		for n := range body {
			for _, valid := range c.valid {
				if n == valid {
					continue cut
				}
			}
			var wrong *Error
			p, err := reading(framed(whole[0], body[:n]), c.version, c.sender).Next()
			if !errors.As(err, &wrong) || byTheCodec(wrong) {
				t.Errorf("%s cut to %d bytes: %+v, %v; want that a rule is broken", c.packet, n, p, err)
			}
		}
	}
}

// byTheCodec reports whether a packet passed the rules and failed only in the
// codec, which is the second line and must not be the first.
func byTheCodec(e *Error) bool { return strings.Contains(e.Detail, "could not be decoded") }
