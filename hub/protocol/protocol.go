// Package protocol is the hub's door: the topic names and payloads that a
// device and the hub exchange (hub/DESIGN.md, "Topics"). It is the one package
// of the hub that the device agent knows, so it imports nothing but the
// standard library and holds no state.
//
// Builders join levels and don't validate them: a caller passes levels for
// which [ValidLevel] holds (device IDs do by their grammar) and otherwise gets
// a topic that the hub's policy refuses. [Parse] is strict: it accepts exactly
// what the builders make from valid levels.
package protocol

import (
	"strconv"
	"strings"
	"time"
)

// The first level of every topic says whose it is.
const (
	deviceRoot   = "d"
	groupRoot    = "g"
	presenceRoot = "presence"
)

// Telemetry returns the topic on which device id reports readings of channel:
// d/<id>/tele/<channel>.
func Telemetry(id, channel string) string {
	return deviceRoot + "/" + id + "/tele/" + channel
}

// Event returns the topic on which device id reports events of one kind:
// d/<id>/evt/<kind>.
func Event(id, kind string) string {
	return deviceRoot + "/" + id + "/evt/" + kind
}

// Command returns the topic of the nth command called name for device id:
// d/<id>/cmd/<name>/<n>.
func Command(id, name string, n uint64) string {
	return deviceRoot + "/" + id + "/cmd/" + name + "/" + strconv.FormatUint(n, 10)
}

// Result returns the topic on which device id answers its nth command:
// d/<id>/res/<n>.
func Result(id string, n uint64) string {
	return deviceRoot + "/" + id + "/res/" + strconv.FormatUint(n, 10)
}

// Desired returns the topic of the retained document that says what device id
// should be: d/<id>/twin/desired.
func Desired(id string) string { return deviceRoot + "/" + id + "/twin/desired" }

// Reported returns the topic of the retained document in which device id says
// what it is: d/<id>/twin/reported.
func Reported(id string) string { return deviceRoot + "/" + id + "/twin/reported" }

// System returns the topic on which the hub itself tells device id something
// (renewal due, reconnect slot, signed time): d/<id>/sys/<what>.
func System(id, what string) string { return deviceRoot + "/" + id + "/sys/" + what }

// GroupCommand returns the topic of the nth command called name for every
// device that carries label (as [Label] writes it): g/<label>/cmd/<name>/<n>.
func GroupCommand(label, name string, n uint64) string {
	return groupRoot + "/" + label + "/cmd/" + name + "/" + strconv.FormatUint(n, 10)
}

// Presence returns the topic of the retained [PresenceStatus] of device id:
// presence/<id>. Only the hub publishes there.
func Presence(id string) string { return presenceRoot + "/" + id }

// Label returns the topic level that stands for one label of a device
// record: <key>=<value>.
func Label(key, value string) string { return key + "=" + value }

// CommandFilter returns the topic filter that a device subscribes to for its
// own commands: d/<id>/cmd/#.
func CommandFilter(id string) string { return deviceRoot + "/" + id + "/cmd/#" }

// SystemFilter returns the topic filter that a device subscribes to for what
// the hub tells it: d/<id>/sys/#.
func SystemFilter(id string) string { return deviceRoot + "/" + id + "/sys/#" }

// GroupFilter returns the topic filter that a device subscribes to for the
// commands of one of its labels: g/<label>/cmd/#.
func GroupFilter(label string) string { return groupRoot + "/" + label + "/cmd/#" }

// Kind says what a topic is for. The zero value is no kind.
type Kind uint8

// The kinds of topics, in the order of hub/DESIGN.md.
const (
	KindTelemetry Kind = iota + 1
	KindEvent
	KindCommand
	KindResult
	KindDesired
	KindReported
	KindSystem
	KindGroupCommand
	KindPresence
)

// String returns the level that names the kind on the wire, for logs.
func (k Kind) String() string {
	names := [...]string{"invalid", "tele", "evt", "cmd", "res", "twin/desired", "twin/reported", "sys", "g/cmd", "presence"}
	if int(k) >= len(names) {
		return names[0]
	}
	return names[k]
}

// Topic is a parsed topic name. Fields that its Kind doesn't have are zero.
type Topic struct {
	Kind  Kind
	ID    string // the device: every kind but KindGroupCommand
	Label string // the label: KindGroupCommand
	Name  string // channel, event kind, command name or system notice
	N     uint64 // number of a command or result
}

// Parse splits a topic name; ok is false for any topic that is not the
// product's. It allocates nothing, and the result shares name's memory.
func Parse(name string) (t Topic, ok bool) {
	root, rest, _ := strings.Cut(name, "/")
	switch root {
	case deviceRoot:
		return parseDevice(rest)
	case groupRoot:
		label, rest, _ := strings.Cut(rest, "/")
		what, rest, _ := strings.Cut(rest, "/")
		t = Topic{Kind: KindGroupCommand, Label: label}
		if what != "cmd" || !ValidLevel(label) {
			return Topic{}, false
		}
		return t.withCommand(rest)
	case presenceRoot:
		if !ValidLevel(rest) {
			return Topic{}, false
		}
		return Topic{Kind: KindPresence, ID: rest}, true
	}
	return Topic{}, false
}

func parseDevice(rest string) (Topic, bool) {
	id, rest, _ := strings.Cut(rest, "/")
	what, rest, _ := strings.Cut(rest, "/")
	if !ValidLevel(id) {
		return Topic{}, false
	}
	t := Topic{ID: id}
	switch what {
	case "tele":
		t.Kind = KindTelemetry
	case "evt":
		t.Kind = KindEvent
	case "sys":
		t.Kind = KindSystem
	case "cmd":
		t.Kind = KindCommand
		return t.withCommand(rest)
	case "res":
		t.Kind = KindResult
		return t.withNumber(rest)
	case "twin":
		switch rest {
		case "desired":
			t.Kind = KindDesired
		case "reported":
			t.Kind = KindReported
		default:
			return Topic{}, false
		}
		return t, true
	default:
		return Topic{}, false
	}
	t.Name = rest
	if !ValidLevel(rest) {
		return Topic{}, false
	}
	return t, true
}

// withCommand parses <name>/<n>.
func (t Topic) withCommand(rest string) (Topic, bool) {
	name, n, _ := strings.Cut(rest, "/")
	if !ValidLevel(name) {
		return Topic{}, false
	}
	t.Name = name
	return t.withNumber(n)
}

// withNumber parses a decimal number in its one canonical form, so that a
// topic has one spelling.
func (t Topic) withNumber(s string) (Topic, bool) {
	if s == "" || (s[0] == '0' && len(s) > 1) || s[0] == '+' {
		return Topic{}, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return Topic{}, false
	}
	t.N = n
	return t, true
}

// ValidLevel reports whether s may stand for one level of a topic: not empty,
// no separator, no wildcard, no control character, at most 128 bytes.
func ValidLevel(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < 0x20, c == 0x7f, c == '/', c == '+', c == '#':
			return false
		}
	}
	return true
}

// Reading is the payload of a telemetry topic, as JSON.
type Reading struct {
	// Time is when the device took the reading, by its own clock, in UTC.
	Time time.Time `json:"time"`
	// Boot names one run of the agent. (Boot, Seq) identifies a reading, so a
	// reader can drop the duplicates that QoS 1 allows and see what is missing.
	Boot string `json:"boot"`
	// Seq counts the readings of one boot on all channels, from 1.
	Seq uint64 `json:"seq"`
	// Values holds one number or text per name; units are part of the name
	// ("cpu_celsius", "memory_used_bytes").
	Values map[string]any `json:"values"`
}

// Notice is the payload of an event topic, as JSON.
type Notice struct {
	// Time is when it happened, by the device's own clock, in UTC. Zero, and left
	// out, in a will, which is written before anything happens.
	Time time.Time `json:"time,omitzero"`
	// Boot is as in [Reading].
	Boot string `json:"boot,omitempty"`
	// Reason says why in a word or two, for people.
	Reason string `json:"reason,omitempty"`
}

// Kinds of events that every agent sends: EventOnline once connected,
// EventOffline as its will and before an orderly disconnect.
const (
	EventOnline  = "online"
	EventOffline = "offline"
)

// PresenceStatus is the payload of a presence topic, as JSON. The hub keeps
// it retained and is its only publisher.
type PresenceStatus struct {
	// Online says whether the device has a live connection.
	Online bool `json:"online"`
	// Reason is one of the Reason constants.
	Reason string `json:"reason"`
	// Since is when the device came or went, by the hub's clock, in UTC.
	Since time.Time `json:"since"`
	// Address is the remote address of the connection that came or went.
	Address string `json:"address,omitempty"`
}

// Reasons of a [PresenceStatus].
const (
	ReasonConnected    = "connected"     // CONNECT accepted
	ReasonDisconnected = "disconnected"  // the device sent DISCONNECT
	ReasonLost         = "lost"          // the connection broke
	ReasonKeepAlive    = "keepalive"     // silent for one and a half keep-alive intervals [MQTT-3.1.2-22]
	ReasonTakenOver    = "taken-over"    // the same identity connected again
	ReasonProtocol     = "protocol"      // the hub cut it for a malformed or forbidden packet
	ReasonSuspended    = "suspended"     // an operator suspended the device
	ReasonRevoked      = "revoked"       // an operator revoked the device
	ReasonRetired      = "retired"       // an operator retired the device
	ReasonReplaced     = "replaced"      // another device has taken its place
	ReasonExpired      = "expired"       // its certificate expired
	ReasonUntrusted    = "untrusted"     // the issuing CA of its certificate was removed
	ReasonShutdown     = "hub-shut-down" // the hub is stopping

	ReasonKeyProtection = "key-protection" // its model's keys must be in a TPM since, and its certificate doesn't say so
)
