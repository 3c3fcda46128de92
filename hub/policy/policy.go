// Package policy answers one question: may this identity use this topic? Its
// rules are those of hub/DESIGN.md "Topics", compiled into the program for now.
//
// A device publishes and receives below its own d/<id>/ in the stated direction
// and receives the group topics of its own labels; a service reads what devices
// send and writes what is sent to them; every other role has no business here.
// What no rule allows is denied.
//
// Everything here is a pure function over immutable tables: safe for concurrent
// use, free of I/O, and free of allocations.
package policy

import (
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/protocol"
)

// Action is what an identity wants to do with a topic.
type Action uint8

// The actions. Publish and Receive take a topic name, Subscribe a topic filter.
const (
	Publish   Action = iota + 1 // send a message, or leave a will
	Subscribe                   // ask for every message that a filter matches
	Receive                     // be sent one message, now
)

// String returns the action as a word for logs and metrics.
func (a Action) String() string {
	switch a {
	case Publish:
		return "publish"
	case Subscribe:
		return "subscribe"
	case Receive:
		return "receive"
	}
	return "unknown"
}

// Subject is who asks.
type Subject struct {
	Role identity.Role
	ID   string
	// Labels returns the device's labels as the registry has them now. It is
	// asked only where a group topic is at stake, so that a change of labels
	// takes effect with the next message. Nil means no labels.
	Labels func() map[string]string
}

// Decision is the answer. The zero value is a denial.
type Decision struct {
	Allowed bool
	// Rule names the rule that allowed, or why none could ("no-rule",
	// "reserved-topic", "invalid-topic", "invalid-filter", "unknown-role").
	Rule string
}

// rule allows what its pattern matches. A pattern is a topic filter in which
// {id} stands for the subject's own ID and {label} for any of its labels.
type rule struct {
	name    string
	pattern string
}

// role is the compiled policy of one role.
type role struct {
	write, read []rule
	share       bool // may take part in shared subscriptions
}

// devices and services are the default policy; nothing changes them.
var (
	devices = role{
		write: []rule{
			{"device-telemetry", "d/{id}/tele/+"},
			{"device-event", "d/{id}/evt/+"},
			{"device-result", "d/{id}/res/+"},
			{"device-reported", "d/{id}/twin/reported"},
		},
		read: []rule{
			{"device-command", "d/{id}/cmd/#"},
			{"device-desired", "d/{id}/twin/desired"},
			{"device-system", "d/{id}/sys/#"},
			{"device-group-command", "g/{label}/cmd/#"},
		},
	}
	services = role{
		write: []rule{
			{"service-command", "d/+/cmd/+/+"},
			{"service-desired", "d/+/twin/desired"},
			{"service-group-command", "g/+/cmd/+/+"},
		},
		read: []rule{
			{"service-telemetry", "d/+/tele/#"},
			{"service-event", "d/+/evt/#"},
			{"service-result", "d/+/res/#"},
			{"service-reported", "d/+/twin/reported"},
			{"service-presence", "presence/#"},
		},
		share: true,
	}
)

// Allow decides whether s may do a with topic, which is a topic filter for
// Subscribe and a topic name otherwise.
//
// A filter is allowed only if one rule allows every topic that the filter
// matches. So a wildcard can't reach around a rule: "#", "d/+/cmd/#" or
// "$share/x/d/other/#" from a device are refused, though each of them matches
// something that the device may read.
func Allow(s Subject, a Action, topic string) Decision {
	var own *role
	switch s.Role {
	case identity.RoleDevice:
		own = &devices
	case identity.RoleService:
		own = &services
	default:
		return Decision{Rule: "unknown-role"}
	}
	rules := own.read
	switch a {
	case Publish, Receive:
		if a == Publish {
			rules = own.write
		}
		if strings.HasPrefix(topic, "$") {
			return Decision{Rule: "reserved-topic"} // $SYS and kin [MQTT-4.7.2-1]
		}
		if !ValidName(topic) {
			return Decision{Rule: "invalid-topic"}
		}
	case Subscribe:
		if !ValidFilter(topic) {
			return Decision{Rule: "invalid-filter"}
		}
		if strings.HasPrefix(topic, "$") {
			rest, shared := strings.CutPrefix(topic, "$share/")
			if !shared || !own.share {
				return Decision{Rule: "reserved-topic"}
			}
			_, topic, _ = strings.Cut(rest, "/") // behind the share name
		}
	default:
		return Decision{Rule: "no-rule"}
	}
	for i := range rules {
		if contains(s, rules[i].pattern, topic) {
			return Decision{Allowed: true, Rule: rules[i].name}
		}
	}
	return Decision{Rule: "no-rule"}
}

// contains reports whether every topic name that filter matches is matched by
// pattern. A topic name is a filter that matches itself, so this is also the
// test of a single message. It compares level by level and gives up at the
// first level at which filter could match something that pattern doesn't.
func contains(s Subject, pattern, filter string) bool {
	for {
		want, wantRest, wantMore := strings.Cut(pattern, "/")
		if want == "#" {
			return true // whatever filter still says, including "#"
		}
		got, gotRest, gotMore := strings.Cut(filter, "/")
		if !levelContains(s, want, got) {
			return false
		}
		if !gotMore {
			// The end of filter. The parent of a pattern's "#" belongs to it [MQTT-4.7.1-2].
			return !wantMore || wantRest == "#"
		}
		if !wantMore {
			return false
		}
		pattern, filter = wantRest, gotRest
	}
}

// levelContains is contains for one level.
func levelContains(s Subject, want, got string) bool {
	if got == "#" {
		return false // matches more levels than any want below
	}
	switch want {
	case "+":
		return got == "+" || protocol.ValidLevel(got)
	case "{id}":
		return got == s.ID
	case "{label}":
		return hasLabel(s, got)
	}
	return got == want
}

// hasLabel reports whether level stands for one of the subject's labels. It
// splits at every '=' rather than build the level of each label, because keys
// and values are free text that may contain one.
func hasLabel(s Subject, level string) bool {
	if s.Labels == nil || !protocol.ValidLevel(level) {
		return false
	}
	labels := s.Labels()
	for at := strings.IndexByte(level, '='); at >= 0 && at < len(level); {
		if v, ok := labels[level[:at]]; ok && v == level[at+1:] {
			return true
		}
		next := strings.IndexByte(level[at+1:], '=')
		if next < 0 {
			return false
		}
		at += 1 + next
	}
	return false
}
