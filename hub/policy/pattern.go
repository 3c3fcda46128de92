package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/topic"
)

// pattern is a topic of a rule, taken apart: levels and, if rest, a '#' behind them.
//
// What a pattern matches depends on the rule. Where an allow rule says '+', the level must
// be a proper name (protocol.ValidLevel, so not empty), and its wildcards match no topic
// that begins with '$' [MQTT-4.7.2-1]. In a deny rule wildcards match all there is.
type pattern struct {
	text   string
	levels []level
	rest   bool
	system bool // the first level begins with '$'
	own    bool // it has a variable
	wild   bool // it has a wildcard
}

type levelKind uint8

const (
	literal  levelKind = iota
	single             // '+'
	anyLabel           // ${label}: any of the subject's labels, as key=value
	composed           // of texts and variables
)

type level struct {
	kind  levelKind
	text  string // as written
	parts []part
}

// part is a text, ${id} or ${label.x}.
type part struct {
	variable variable
	text     string // or the label's name
}

type variable uint8

const (
	none variable = iota
	ofID
	ofLabel
)

// compilePattern takes a topic of a rule apart.
func compilePattern(text string, devicesOnly bool) (pattern, error) {
	p := pattern{text: text}
	if strings.HasPrefix(text, "$share/") || text == "$share" {
		return p, errors.New("a rule is about the topics of a shared subscription: leave $share/NAME/ out and say `shared: true`")
	}
	p.system = strings.HasPrefix(text, "$") && !strings.HasPrefix(text, "${")
	var plain []string // the levels with a letter in the place of each variable
	for i, word := range strings.Split(text, "/") {
		if word == "#" {
			p.rest, p.wild = true, true
			plain = append(plain, word)
			continue
		}
		l, shape, err := compileLevel(word)
		if err != nil {
			return p, err
		}
		if l.kind == anyLabel || l.kind == composed {
			p.own = true
			for _, part := range l.parts {
				if part.variable == ofLabel && !devicesOnly {
					return p, errors.New("services have no labels: make it a rule of role device alone")
				}
			}
			if i == 0 && (l.kind == anyLabel || l.parts[0].variable == ofLabel) {
				return p, errors.New("a label may not begin the first level: who sets labels would choose what the rule is about")
			}
		}
		if l.kind == anyLabel && !devicesOnly {
			return p, errors.New("services have no labels: make it a rule of role device alone")
		}
		p.wild = p.wild || l.kind == single
		p.levels = append(p.levels, l)
		plain = append(plain, shape)
	}
	if !topic.ValidFilter(strings.Join(plain, "/")) {
		return p, errors.New("it is no topic filter: # may be the last level and + any level, alone; at most 16 levels and 1,024 bytes, no control character")
	}
	return p, nil
}

// compileLevel returns a level, and its shape for checking it as MQTT would.
func compileLevel(word string) (l level, shape string, err error) {
	switch {
	case word == "+":
		return level{kind: single, text: word}, word, nil
	case word == "${label}":
		return level{kind: anyLabel, text: word}, "x", nil
	case !strings.Contains(word, "${"):
		return level{text: word}, word, nil
	}
	l.kind, l.text = composed, word
	for rest := word; rest != ""; {
		text, behind, found := strings.Cut(rest, "${")
		if text != "" {
			l.parts = append(l.parts, part{text: text})
			shape += text
		}
		if !found {
			break
		}
		name, behind, closed := strings.Cut(behind, "}")
		if !closed {
			return l, "", fmt.Errorf("the variable %.40q is not closed with }", "${"+name)
		}
		if n := len(l.parts); n > 0 && l.parts[n-1].variable != none {
			return l, "", errors.New("two variables touch, so that one's end could be taken for the other's beginning: put a text between them")
		}
		key, isLabel := strings.CutPrefix(name, "label.")
		switch {
		case name == "id":
			l.parts = append(l.parts, part{variable: ofID})
		case isLabel && key != "":
			l.parts = append(l.parts, part{variable: ofLabel, text: key})
		case name == "label":
			return l, "", errors.New("${label} is a whole level, key=value; for a value alone write ${label.KEY}")
		default:
			return l, "", fmt.Errorf("there is no variable ${%.40s}: there are ${id}, ${label} and ${label.KEY}", name)
		}
		shape += "x"
		rest = behind
	}
	return l, shape, nil
}

// covers reports whether the pattern, of an allow rule, matches every topic that the
// question's filter matches; a topic name is a filter that matches itself. It compares
// level by level and gives up at the first at which the filter could match something that
// the pattern doesn't.
//
// '+' covers '+', though it doesn't match the empty level: the messages with one are
// withheld when they come (Receive).
func (p *pattern) covers(q *question, r *rule) bool {
	n := len(p.levels)
	switch {
	case q.n < n, !p.rest && (q.rest || q.n > n):
		return false // "a" is covered by "a/#" [MQTT-4.7.1-2]; "a/#" by nothing but what ends so
	case q.system && !p.system:
		return false
	}
	for i := range p.levels {
		l, got := &p.levels[i], q.levels[i]
		if l.kind == literal {
			if got != l.text {
				return false
			}
			continue
		}
		if got == "+" {
			if l.kind == single {
				continue
			}
			return false
		}
		if !named(got) || l.kind != single && !l.equals(q, r.deny, got) {
			return false
		}
	}
	return true
}

// meets reports whether there is a topic that both the question's filter and the pattern,
// of a deny rule, match.
func (p *pattern) meets(q *question, r *rule) bool {
	n := len(p.levels)
	switch {
	case !p.rest && q.n > n, !q.rest && q.n < n:
		return false
	case p.system && !q.system && (q.n == 0 || q.levels[0] == "+"):
		return false // the filter's wildcard doesn't match the '$' [MQTT-4.7.2-1]
	}
	for i := range min(n, q.n) {
		l, got := &p.levels[i], q.levels[i]
		switch {
		case l.kind == single:
		case l.kind == literal:
			if got != l.text && got != "+" {
				return false
			}
		case !l.equals(q, r.deny, got):
			return false
		}
	}
	return true
}

// named reports whether a level of a valid topic can stand for a proper name: what is left
// of protocol.ValidLevel to ask.
func named(level string) bool { return uint(len(level)-1) < maxName }

// maxName is protocol.ValidLevel's bound in bytes, which a test holds it to.
const maxName = 128

// equals reports whether a level with variables is got, or can be if that is "+". Where a
// variable has no value, or none that can be a topic level, an allow rule matches nothing
// and a deny rule any level.
func (l *level) equals(q *question, deny bool, got string) bool {
	if l.kind == anyLabel {
		a, known := q.attributes()
		switch {
		case !known:
			return q.doubt(deny)
		case deny && !anyUsable(a.Labels):
			return true
		}
		return got == "+" || hasLabel(a.Labels, got)
	}
	rest, same := got, true
	for i := range l.parts {
		value, has := q.value(&l.parts[i])
		switch {
		case has == unknown:
			return q.doubt(deny)
		case has == no:
			return deny
		}
		if same {
			rest, same = strings.CutPrefix(rest, value)
		}
	}
	return got == "+" || same && rest == ""
}

// anyUsable reports whether any of the labels can be a topic level.
func anyUsable(labels map[string]string) bool {
	for key, value := range labels {
		if protocol.ValidLevel(key) && protocol.ValidLevel(value) {
			return true
		}
	}
	return false
}

// hasLabel reports whether level stands for one of the labels. It splits at every '='
// rather than build the level of each label, because keys and values are free text that
// may contain one.
func hasLabel(labels map[string]string, level string) bool {
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
