package policy

import (
	"fmt"
	"strings"
)

// Explanation is a decision and why it is so.
type Explanation struct {
	Who     Who    `json:"who"`
	Action  string `json:"action"`
	Topic   string `json:"topic"`
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule"`             // that decided, or why none did
	Number  int    `json:"number,omitempty"` // of the rule in its file, from 1
	Why     string `json:"why"`              // in a sentence
	// Considered are the rules about that role and action, in the order in which they are
	// asked: those that deny first.
	Considered []Considered `json:"considered,omitempty"`
}

// Considered is what one topic of one rule has to say.
type Considered struct {
	Rule    string `json:"rule"`
	Number  int    `json:"number"`
	Effect  string `json:"effect"` // allow, deny
	Topic   string `json:"topic"`
	Applies bool   `json:"applies"`
	Why     string `json:"why"` // in a few words
}

// Explain decides as Allow does and says why.
func (p *Policy) Explain(s Subject, a Action, name string) Explanation {
	d := p.Allow(s, a, name)
	e := Explanation{Who: WhoIs(s), Action: a.String(), Topic: name, Allowed: d.Allowed, Rule: d.Rule, Number: d.Number}
	q := question{subject: &s}
	side, refusal := p.ask(&q, a, name)
	if side == nil {
		e.Why = refusalWords[refusal]
		return e
	}
	for _, list := range [][]line{side.deny.lines, side.allow.lines} {
		for i := range list {
			e.Considered = append(e.Considered, q.consider(&list[i], a))
		}
	}
	switch {
	case d.Allowed:
		e.Why = fmt.Sprintf("rule %d (%s) allows it", d.Number, d.Rule)
	case d.Number > 0 && a == Subscribe:
		e.Why = fmt.Sprintf("the filter can match what rule %d (%s) denies, so all of it is refused: subscribe to less", d.Number, d.Rule)
	case d.Number > 0:
		e.Why = fmt.Sprintf("rule %d (%s) denies it, and deny wins", d.Number, d.Rule)
	case a == Subscribe:
		e.Why = "no line of a rule allows everything that the filter can match, and what no rule allows is denied"
	default:
		e.Why = "no rule allows it, and what no rule allows is denied"
	}
	return e
}

// refusalWords are for when no rule is asked.
var refusalWords = map[string]string{
	"unknown-role":   "only devices and services may use MQTT",
	"reserved-topic": "topics that begin with $ are the hub's own: nobody publishes there, whatever the rules",
	"invalid-topic":  "it is no topic name: no wildcards, no control characters, at most 16 levels and 1,024 bytes",
	"invalid-filter": "it is no topic filter: # only as the last level, + only as a whole one, no control characters, at most 16 levels and 1,024 bytes, and after $share/ a name and a filter",
	"no-rule":        "there is no such action",
}

// consider says what a line means for the question.
func (q *question) consider(l *line, a Action) Considered {
	c := Considered{Rule: l.rule.name, Number: l.rule.number, Effect: "allow", Topic: l.pattern.text}
	matches := l.pattern.covers
	if l.rule.deny {
		c.Effect, matches = "deny", l.pattern.meets
	}
	switch {
	case q.shared && !l.rule.deny && !l.rule.shared:
		c.Why = "takes no shared subscriptions"
	case !matches(q, l.rule) && (a != Subscribe || l.rule.deny):
		c.Why = "is about other topics"
	case !matches(q, l.rule):
		c.Why = "doesn't allow all that the filter can match"
	case !l.rule.applies(q):
		c.Why = q.whyNot(l.rule)
	default:
		c.Applies, c.Why = true, "applies"
		if doubts := q.doubts(l.rule); doubts != "" {
			c.Why = "applies, because it isn't known: " + doubts
		}
	}
	return c
}

// whyNot says which condition keeps a rule from applying.
func (q *question) whyNot(r *rule) string {
	if r.when != nil {
		for i := range r.when.terms {
			if t := &r.when.terms[i]; t.holds(q) == no {
				return "is for " + t.String() + " only"
			}
		}
	}
	if r.unless != nil && r.unless.holds(q) == yes {
		words := make([]string, len(r.unless.terms))
		for i := range r.unless.terms {
			words[i] = r.unless.terms[i].String()
		}
		return "is not for " + strings.Join(words, " and ")
	}
	return "depends on what isn't known: " + q.doubts(r)
}

// doubts names what a rule depends on and nobody knows.
func (q *question) doubts(r *rule) string {
	var words []string
	for _, c := range []*condition{r.when, r.unless} {
		if c == nil {
			continue
		}
		for i := range c.terms {
			if t := &c.terms[i]; t.holds(q) == unknown {
				words = append(words, t.String())
			}
		}
	}
	return strings.Join(words, ", ")
}
