package policy

import (
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/topic"
)

// The limits of package topic: a test holds take to them.
const (
	maxBytes  = 1024
	maxLevels = 16
)

// question is what is asked, taken apart once for all rules. It lives on the stack.
type question struct {
	subject *Subject
	levels  [maxLevels]string
	n       int  // levels in use, without a '#'
	rest    bool // a '#' follows them
	system  bool // it begins with '$'
	shared  bool // it was a shared subscription

	asked, known bool // the registry
	registry     Attributes
}

// take takes a topic name, or a filter that is no shared subscription, apart, and reports
// whether it is valid, as topic.ValidName and topic.ValidFilter do.
func (q *question) take(name string, filter bool) bool {
	if name == "" || len(name) > maxBytes {
		return false
	}
	q.system = name[0] == '$'
	start, wild := 0, false // of the level
	for i := range len(name) {
		switch c := name[i]; {
		case c > '/' && c != 0x7f:
		case c == '/':
			if q.n == maxLevels || wild && (i-start > 1 || name[start] == '#') {
				return false
			}
			q.levels[q.n] = name[start:i]
			q.n++
			start, wild = i+1, false
		case c < 0x20, c == 0x7f, !filter && (c == '+' || c == '#'):
			return false
		case c == '+', c == '#':
			wild = true
		}
	}
	last := name[start:]
	if q.n == maxLevels || wild && len(last) > 1 {
		return false
	}
	if wild && last == "#" {
		q.rest = true
		return true
	}
	q.levels[q.n] = last
	q.n++
	return true
}

// attributes asks the registry, once a question.
func (q *question) attributes() (*Attributes, bool) {
	if !q.asked {
		q.asked, q.known = true, true
		if q.subject.Attributes != nil {
			q.registry, q.known = q.subject.Attributes()
		}
	}
	return &q.registry, q.known
}

// value returns what a part of a level stands for: no if there is nothing, or nothing
// that can be a topic level.
func (q *question) value(p *part) (string, verdict) {
	value := p.text
	switch p.variable {
	case none:
		return value, yes
	case ofID:
		return q.subject.ID, verdictOf(q.subject.ID != "") // an ID is a level by its grammar
	case ofLabel:
		a, known := q.attributes()
		if !known {
			return "", unknown
		}
		value = a.Labels[p.text]
	}
	return value, verdictOf(protocol.ValidLevel(value))
}

// Allow decides whether s may do a with topic, which is a topic filter for Subscribe and
// a topic name otherwise.
//
// A name is denied if a deny rule matches it, and else allowed if an allow rule does. A
// filter is denied if a deny rule matches any topic that it matches, and else allowed if
// one topic line of one allow rule matches all of them. So a wildcard can't reach around a
// rule: "#", "d/+/cmd/#" or "$share/x/d/other/#" from a device are refused by the default
// policy, though each of them matches something that the device may read.
func (p *Policy) Allow(s Subject, a Action, name string) Decision {
	q := question{subject: &s} // set here, or s would move to the heap
	side, refusal := p.ask(&q, a, name)
	if side == nil {
		return Decision{Rule: refusal}
	}
	if r := side.deny.decide(&q); r != nil {
		return Decision{Rule: r.name, Number: r.number}
	}
	if r := side.allow.decide(&q); r != nil {
		return Decision{Allowed: true, Rule: r.name, Number: r.number}
	}
	return Decision{Rule: "no-rule"}
}

// ask prepares a question and returns the rules to put it to, or why there are none.
func (p *Policy) ask(q *question, a Action, name string) (*side, string) {
	role := deviceRole
	switch q.subject.Role {
	case identity.RoleDevice:
	case identity.RoleService:
		role = serviceRole
	default:
		return nil, "unknown-role"
	}
	side := &p.tables[role].subscribe
	switch a {
	case Publish, Receive:
		if a == Publish {
			if strings.HasPrefix(name, "$") {
				return nil, "reserved-topic" // $SYS and kin [MQTT-4.7.2-1]
			}
			side = &p.tables[role].publish
		}
		if !q.take(name, false) {
			return nil, "invalid-topic"
		}
	case Subscribe:
		if strings.HasPrefix(name, "$share") {
			if !topic.ValidFilter(name) {
				return nil, "invalid-filter"
			}
			_, name, q.shared = topic.CutShare(name)
		}
		if !q.take(name, true) {
			return nil, "invalid-filter"
		}
	default:
		return nil, "no-rule"
	}
	return side, ""
}
