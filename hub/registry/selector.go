package registry

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
)

// Selector picks devices. It is a list of terms, all of which must hold:
//
//	batch=lot-0425,model=pi4,last-seen<30d
//
// A term is a field, an operator and a value. Text fields are id, state, model, batch,
// station, protection, ou, issuer and label.KEY, with the operators = and !=. Their
// value may have alternatives (state=active|registered) and wildcards (id=pi-*); in
// double quotes it is taken literally (model="pump, big"). An empty value stands for
// having none, and * alone for having one.
//
// Time fields are last-seen, first-seen, registered, changed and expires (of the newest
// usable certificate), with < <= > >= and a duration (45m, 12h, 30d, 2w) or a time
// (2026-03-01, 2026-03-01T08:00:00Z). A duration is an age: last-seen<30d are those seen
// within 30 days; of expires it is what is left: expires<30d are those with less. A
// device that was never seen was seen infinitely long ago; one without a usable
// certificate has no expiry to compare. last-seen=never and != ask for just that.
//
// The zero value picks every device. A Selector is immutable and safe for concurrent
// use.
type Selector struct {
	terms []term
}

// term is one condition. Of text and time one is set.
type term struct {
	field   string // as written: label.site
	op      string
	choices []choice // of a text field
	moment  moment   // of a time field
}

// choice is one alternative of a text value.
type choice struct {
	text string
	glob bool // text has wildcards
}

// moment is the value of a time field.
type moment struct {
	never bool
	span  time.Duration // if at is zero
	at    time.Time
	text  string // as written
}

// The fields that a selector knows, besides label.KEY.
var (
	textFields = []string{"id", "state", "model", "batch", "station", "protection", "ou", "issuer"}
	timeFields = []string{"last-seen", "first-seen", "registered", "changed", "expires"}
)

const labelPrefix = "label."

// Any reports whether the selector picks every device because it has no terms.
func (s Selector) Any() bool { return len(s.terms) == 0 }

// And returns a selector of the devices that both pick.
func (s Selector) And(other Selector) Selector {
	return Selector{slices.Concat(s.terms, other.terms)}
}

// Equals returns a selector of the devices whose text field has exactly that value. The
// field is one of those that Selector knows.
func Equals(field, value string) Selector {
	return Selector{[]term{{field: field, op: "=", choices: []choice{{text: value}}}}}
}

// String returns the selector as ParseSelector reads it.
func (s Selector) String() string {
	var b strings.Builder
	for i, t := range s.terms {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(t.field)
		b.WriteString(t.op)
		b.WriteString(t.moment.text)
		for j, c := range t.choices {
			if j > 0 {
				b.WriteByte('|')
			}
			if c.glob || c.bare() {
				b.WriteString(c.text)
			} else {
				b.WriteByte('"')
				b.WriteString(quoting.Replace(c.text))
				b.WriteByte('"')
			}
		}
	}
	return b.String()
}

var quoting = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// bare reports whether the text means itself without quotes.
func (c choice) bare() bool {
	return !strings.ContainsFunc(c.text, notBare) && !strings.ContainsAny(c.text, "*|")
}

// Matcher returns what decides about devices at that time.
func (s Selector) Matcher(now time.Time) *Matcher {
	m := &Matcher{now: now, known: make(map[*Attributes]bool)}
	for _, t := range s.terms {
		switch {
		case len(t.choices) == 0:
			m.times = append(m.times, t)
		case t.field == "id" || t.field == "state":
			m.own = append(m.own, t)
		default:
			m.shared = append(m.shared, t)
		}
	}
	return m
}

// Matcher decides which devices a selector picks. It remembers what it decided about
// attributes, so it is quick over a fleet in which many devices share theirs. It is for
// one goroutine.
type Matcher struct {
	now    time.Time
	own    []term // about the device alone
	shared []term // about its attributes
	times  []term
	known  map[*Attributes]bool
}

// maxKnown bounds what a Matcher remembers.
const maxKnown = 1 << 16

// Match reports whether the selector picks a device with these facts.
func (m *Matcher) Match(f *Facts) bool {
	for i := range m.own {
		value := f.ID
		if m.own[i].field == "state" {
			value = string(f.State)
		}
		if !m.own[i].holds(value) {
			return false
		}
	}
	for i := range m.times {
		if !m.times[i].holdsAt(f, m.now) {
			return false
		}
	}
	return len(m.shared) == 0 || m.matchAttributes(f.Attributes)
}

func (m *Matcher) matchAttributes(a *Attributes) bool {
	picked, ok := m.known[a]
	if ok {
		return picked
	}
	picked = !slices.ContainsFunc(m.shared, func(t term) bool { return !t.holdsFor(a) })
	if len(m.known) < maxKnown {
		m.known[a] = picked
	}
	return picked
}

// holdsFor reports whether a term about attributes holds.
func (t *term) holdsFor(a *Attributes) bool {
	switch t.field {
	case "model":
		return t.holds(a.Model)
	case "batch":
		return t.holds(a.Batch)
	case "station":
		return t.holds(a.Station)
	case "protection":
		return t.holds(a.Protection)
	case "ou":
		return t.holds(a.OU...)
	case "issuer":
		return t.holds(a.Issuers...)
	}
	value, ok := a.Labels[strings.TrimPrefix(t.field, labelPrefix)]
	if !ok {
		return t.holds()
	}
	return t.holds(value)
}

// holds reports whether a text term holds for a field with those values; an empty one
// is none.
func (t *term) holds(values ...string) bool {
	found := false
	for _, c := range t.choices {
		if c.text == "" {
			found = found || !slices.ContainsFunc(values, func(v string) bool { return v != "" })
			continue
		}
		found = found || slices.ContainsFunc(values, func(v string) bool { return v != "" && c.matches(v) })
	}
	return found == (t.op == "=")
}

func (c choice) matches(value string) bool {
	if !c.glob {
		return value == c.text
	}
	return matchGlob(c.text, value)
}

// matchGlob reports whether * in the pattern can stand for something each so that it
// is the text. It takes time in proportion to the product of their lengths at worst.
func matchGlob(pattern, text string) bool {
	p, t, star, mark := 0, 0, -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, t
			p++
		case p < len(pattern) && pattern[p] == text[t]:
			p++
			t++
		case star >= 0:
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// holdsAt reports whether a term about time holds.
func (t *term) holdsAt(f *Facts, now time.Time) bool {
	var at time.Time
	switch t.field {
	case "last-seen":
		at = f.LastSeen
	case "first-seen":
		at = f.FirstSeen
	case "registered":
		at = f.Created
	case "changed":
		at = f.Changed
	case "expires":
		at = f.NotAfter
	}
	switch {
	case t.moment.never:
		return at.IsZero() == (t.op == "=")
	case t.field == "expires" && at.IsZero():
		return false
	case !t.moment.at.IsZero():
		return compares(at.Compare(t.moment.at), t.op)
	case t.field == "expires":
		return compares(cmp.Compare(at.Sub(now), t.moment.span), t.op)
	case at.IsZero():
		return t.op == ">" || t.op == ">="
	}
	return compares(cmp.Compare(now.Sub(at), t.moment.span), t.op)
}

func compares(order int, op string) bool {
	switch op {
	case "<":
		return order < 0
	case "<=":
		return order <= 0
	case ">":
		return order > 0
	default: // ">="
		return order >= 0
	}
}

// fieldError is the sentence about a field that doesn't exist.
func fieldError(name string) string {
	return "there is no field " + strconv.Quote(name) + "; there are " + strings.Join(textFields, ", ") + ", label.KEY, " + strings.Join(timeFields, ", ")
}

// isField reports whether name is a text field, or a time field.
func isField(name string) (text, moment bool) {
	if key, ok := strings.CutPrefix(name, labelPrefix); ok {
		return identity.ValidID(key) == nil, false
	}
	return slices.Contains(textFields, name), slices.Contains(timeFields, name)
}
