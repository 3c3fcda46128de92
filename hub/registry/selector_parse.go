package registry

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of a selector.
const (
	maxSelector = 4096 // bytes
	maxTerms    = 32
	maxChoices  = 64 // alternatives of one value
)

// ErrSelector is in the chain of every error about a selector's text.
var ErrSelector = errors.New("the selector can't be used")

// ParseSelector reads a selector. An unknown field is an error: a slip of the finger
// must not pick more devices than were meant. An empty text picks every device.
func ParseSelector(text string) (Selector, error) {
	if len(text) > maxSelector {
		return Selector{}, fmt.Errorf("%w: it has %d bytes, at most %d are read", ErrSelector, len(text), maxSelector)
	}
	if !utf8.ValidString(text) {
		return Selector{}, fmt.Errorf("%w: it is not UTF-8", ErrSelector)
	}
	if strings.TrimSpace(text) == "" {
		return Selector{}, nil
	}
	p := selectorParser{text: text}
	var s Selector
	for {
		if len(s.terms) == maxTerms {
			return Selector{}, fmt.Errorf("%w: it has more than %d terms", ErrSelector, maxTerms)
		}
		t, err := p.term()
		if err != nil {
			return Selector{}, fmt.Errorf("%w: %w, at %.40q", ErrSelector, err, text[min(p.at, len(text)):])
		}
		s.terms = append(s.terms, t)
		p.spaces()
		if p.at == len(text) {
			return s, nil
		}
		if text[p.at] != ',' {
			return Selector{}, fmt.Errorf("%w: a comma is missing at %.40q", ErrSelector, text[p.at:])
		}
		p.at++
	}
}

// selectorParser reads a selector from left to right.
type selectorParser struct {
	text string
	at   int
}

func (p *selectorParser) spaces() {
	for p.at < len(p.text) && p.text[p.at] == ' ' {
		p.at++
	}
}

// take returns what lies ahead as long as it satisfies ok.
func (p *selectorParser) take(ok func(rune) bool) string {
	rest := p.text[p.at:]
	end := strings.IndexFunc(rest, func(r rune) bool { return !ok(r) })
	if end < 0 {
		end = len(rest)
	}
	p.at += end
	return rest[:end]
}

func (p *selectorParser) term() (term, error) {
	p.spaces()
	start := p.at
	t := term{field: p.take(func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '.' || r == '_' || r == '-'
	})}
	text, moment := isField(t.field)
	if !text && !moment {
		p.at = start
		return t, errors.New(fieldError(t.field))
	}
	for _, op := range []string{"!=", "<=", ">=", "=", "<", ">"} {
		if strings.HasPrefix(p.text[p.at:], op) {
			t.op = op
			break
		}
	}
	if t.op == "" {
		return t, fmt.Errorf("an operator (= != < <= > >=) must follow %s", t.field)
	}
	p.at += len(t.op)
	if moment {
		return t, p.moment(&t)
	}
	if t.op != "=" && t.op != "!=" {
		return t, fmt.Errorf("%s is text and is compared with = or !=", t.field)
	}
	if err := p.choices(&t); err != nil {
		return t, err
	}
	if t.field != "state" {
		return t, nil
	}
	for _, c := range t.choices {
		if !c.glob && !State(c.text).Valid() {
			return t, fmt.Errorf("%.40q is no state; there are %v", c.text, States())
		}
	}
	return t, nil
}

// choices reads the value of a text field.
func (p *selectorParser) choices(t *term) error {
	for {
		if len(t.choices) == maxChoices {
			return fmt.Errorf("%s has more than %d alternatives", t.field, maxChoices)
		}
		c, err := p.choice()
		if err != nil {
			return err
		}
		t.choices = append(t.choices, c)
		if p.at == len(p.text) || p.text[p.at] != '|' {
			return nil
		}
		p.at++
	}
}

// notBare reports whether a character needs quotes around it in a value.
func notBare(r rune) bool {
	return r == ',' || r == '"' || r == '\\' || r == '<' || r == '>' || r == '=' || r == '!' || unicode.IsSpace(r) || !unicode.IsPrint(r)
}

func (p *selectorParser) choice() (choice, error) {
	if !strings.HasPrefix(p.text[p.at:], `"`) {
		text := p.take(func(r rune) bool { return !notBare(r) && r != '|' })
		return choice{text: text, glob: strings.Contains(text, "*")}, nil
	}
	var b strings.Builder
	for i := p.at + 1; i < len(p.text); i++ {
		switch c := p.text[i]; c {
		case '"':
			p.at = i + 1
			return choice{text: b.String()}, nil
		case '\\':
			i++
			if i == len(p.text) || p.text[i] != '"' && p.text[i] != '\\' {
				return choice{}, errors.New(`a backslash stands before " or \ only`)
			}
			b.WriteByte(p.text[i])
		default:
			b.WriteByte(c)
		}
	}
	return choice{}, errors.New("the quotation has no end")
}

// moment reads the value of a time field.
func (p *selectorParser) moment(t *term) error {
	t.moment.text = p.take(func(r rune) bool { return !notBare(r) })
	equal := t.op == "=" || t.op == "!="
	if t.moment.text == "never" {
		if !equal {
			return fmt.Errorf("%s is compared with never by = or !=", t.field)
		}
		t.moment.never = true
		return nil
	}
	if equal {
		return fmt.Errorf("%s is a time and is compared with < <= > >= (or with never by = and !=)", t.field)
	}
	var err error
	if t.moment.span, err = parseSpan(t.moment.text); err == nil {
		return nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t.moment.at, err = time.Parse(layout, t.moment.text); err == nil && !t.moment.at.IsZero() {
			return nil
		}
	}
	return fmt.Errorf("%.40q is neither a duration such as 45m, 12h, 30d or 2w nor a time such as 2026-03-01 or 2026-03-01T08:00:00Z", t.moment.text)
}

// parseSpan reads a duration of one number and one unit.
func parseSpan(text string) (time.Duration, error) {
	units := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
	if len(text) < 2 {
		return 0, errors.New("it is too short")
	}
	unit, ok := units[text[len(text)-1]]
	n, err := strconv.ParseUint(text[:len(text)-1], 10, 31)
	if !ok || err != nil || time.Duration(n) > time.Duration(1<<63-1)/unit {
		return 0, errors.New("it is no duration")
	}
	return time.Duration(n) * unit, nil
}
