package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// verdict is whether a condition holds. What isn't known is neither yes nor no: who asks
// says what it counts for.
type verdict uint8

const (
	no verdict = iota
	unknown
	yes
)

func verdictOf(holds bool) verdict {
	if holds {
		return yes
	}
	return no
}

func (v verdict) not() verdict { return yes - v }

// key names one thing that a condition can ask about.
type key uint8

const (
	keyID key = iota
	keyOU
	keySAN
	keyLabel
	keyModel
	keyProtection
	keyBatch
	keyStation
)

var keyNames = [...]string{"id", "ou", "san", "label", "model", "protection", "batch", "station"}

// condition holds if all of its terms do.
type condition struct{ terms []term }

// term is one key of a condition.
type term struct {
	key   key
	label string // of keyLabel
	words []glob
}

// glob is a text, or the beginning or the end of one.
type glob struct {
	text        string
	open, begun bool // more may follow; more may come before
}

func (g glob) matches(s string) bool {
	switch {
	case g.open && g.text == "":
		return s != ""
	case g.open:
		return strings.HasPrefix(s, g.text)
	case g.begun:
		return strings.HasSuffix(s, g.text)
	}
	return s == g.text
}

func compileGlob(word string) (glob, error) {
	g := glob{text: word}
	if g.text, g.open = strings.CutSuffix(word, "*"); !g.open {
		g.text, g.begun = strings.CutPrefix(word, "*")
	}
	switch {
	case word == "":
		return g, errors.New("an empty text matches nobody")
	case strings.Contains(g.text, "*"):
		return g, fmt.Errorf("%.80q: a * may begin or end a text, not both, and stand nowhere else", word)
	}
	return g, nil
}

// compileCondition returns nil for nil. Only devices have what the registry knows.
func compileCondition(c *Condition, devicesOnly bool) (*condition, error) {
	if c == nil {
		return nil, nil
	}
	compiled := new(condition)
	add := func(k key, label string, words Words) error {
		if words == nil {
			return nil
		}
		t := term{key: k, label: label}
		name := keyNames[k]
		if k == keyLabel {
			name += "." + label
		}
		if k >= keyLabel && !devicesOnly {
			return fmt.Errorf("%s: only devices have one: make it a rule of role device alone", name)
		}
		if len(words) == 0 {
			return fmt.Errorf("%s: it names nothing", name)
		}
		for _, word := range words {
			g, err := compileGlob(word)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if prefix, _, found := strings.Cut(word, ":"); k == keySAN && !g.begun && (!found || !slices.Contains([]string{"dns", "ip", "email", "uri"}, prefix)) {
				return fmt.Errorf("%s: %.80q begins with none of dns:, ip:, email: and uri: as it must", name, word)
			}
			t.words = append(t.words, g)
		}
		compiled.terms = append(compiled.terms, t)
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(c.Label)) {
		words := c.Label[key]
		if words == nil {
			words = Words{}
		}
		if err := add(keyLabel, key, words); err != nil {
			return nil, err
		}
	}
	for _, k := range []struct {
		key   key
		words Words
	}{
		{keyID, c.ID}, {keyOU, c.OU}, {keySAN, c.SAN}, {keyModel, c.Model}, {keyProtection, c.Protection}, {keyBatch, c.Batch}, {keyStation, c.Station},
	} {
		if err := add(k.key, "", k.words); err != nil {
			return nil, err
		}
	}
	if len(compiled.terms) == 0 {
		return nil, errors.New("it says nothing: remove it, or name what it depends on")
	}
	return compiled, nil
}

// holds asks each term, and stops at the first that doesn't hold.
func (c *condition) holds(q *question) verdict {
	all := yes
	for i := range c.terms {
		v := c.terms[i].holds(q)
		if v == no {
			return no
		}
		all = min(all, v)
	}
	return all
}

func (t *term) holds(q *question) verdict {
	switch t.key {
	case keyOU:
		return t.ofCertificate(q, q.subject.OU)
	case keySAN:
		return t.ofCertificate(q, q.subject.SAN)
	}
	has, known := q.single(t.key, t.label)
	if !known {
		return unknown
	}
	return verdictOf(t.matches(has))
}

// single returns what the subject has of a key of which one has one: empty if it has
// none, false if that isn't known.
func (q *question) single(k key, label string) (has string, known bool) {
	if k == keyID {
		return q.subject.ID, true
	}
	a, known := q.attributes()
	if !known {
		return "", false
	}
	switch k {
	case keyLabel:
		has = a.Labels[label]
	case keyModel:
		has = a.Model
	case keyProtection:
		has = a.Protection
	case keyBatch:
		has = a.Batch
	case keyStation:
		has = a.Station
	}
	return has, true
}

func (t *term) ofCertificate(q *question, has []string) verdict {
	if q.subject.Unseen {
		return unknown
	}
	return verdictOf(slices.ContainsFunc(has, t.matches))
}

// matches reports whether any of the words matches. What is missing is the empty text,
// which none matches.
func (t *term) matches(s string) bool {
	for i := range t.words {
		if t.words[i].matches(s) && s != "" {
			return true
		}
	}
	return false
}

// applies reports whether the rule is about the subject. What isn't known counts against
// the subject, so a rule that denies applies and one that allows doesn't; or, if the
// subject is Provisional, the other way round.
func (r *rule) applies(q *question) bool {
	v := yes
	if r.when != nil {
		v = r.when.holds(q)
	}
	if r.unless != nil && v != no {
		v = min(v, r.unless.holds(q).not())
	}
	return v == yes || v == unknown && r.doubt(q)
}

// doubt is what the rule does where something isn't known.
func (r *rule) doubt(q *question) bool { return q.doubt(r.deny) }

// doubt is what rules that deny, or that allow, do where something isn't known.
func (q *question) doubt(deny bool) bool { return deny != q.subject.Provisional }
