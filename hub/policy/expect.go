package policy

import (
	"errors"
	"fmt"
)

// Expectations is a file of decisions as they are meant to be: what `hub policy test`
// holds a policy against.
//
//	tests:
//	  - who: {role: device, id: pi-1, label: {site: north}}
//	    allowed:
//	      publish: [d/pi-1/tele/machine]
//	      subscribe: [d/pi-1/cmd/#, g/site=north/cmd/#]
//	    denied:
//	      subscribe: ["#", $share/x/d/pi-2/cmd/#]
//	  - who: {role: service, id: grafana}
//	    by: service-system      # and by this rule
//	    allowed: {subscribe: $SYS/#}
type Expectations struct {
	Tests []Expectation `yaml:"tests"`
}

// Expectation is what one subject may and may not do.
type Expectation struct {
	Who     Who      `yaml:"who"`
	By      string   `yaml:"by"` // the rule that decides, or why none does; "": any
	Allowed Requests `yaml:"allowed"`
	Denied  Requests `yaml:"denied"`
}

// Requests are topics by action.
type Requests struct {
	Publish   Words `yaml:"publish"`
	Subscribe Words `yaml:"subscribe"`
	Receive   Words `yaml:"receive"`
}

func (r Requests) of(a Action) Words {
	switch a {
	case Publish:
		return r.Publish
	case Subscribe:
		return r.Subscribe
	}
	return r.Receive
}

// Surprise is a decision that isn't as expected.
type Surprise struct {
	Test     int         `json:"test"` // its number in the file, from 1
	Expected string      `json:"expected"`
	Got      Explanation `json:"got"`
}

// ParseExpectations reads a file of expectations. An error is one line that says where
// and what is wrong. A file that expects nothing is an error: it would prove nothing.
func ParseExpectations(data []byte) (Expectations, error) {
	var e Expectations
	if err := decode(data, &e); err != nil {
		return e, err
	}
	if len(e.Tests) == 0 {
		return e, errors.New("tests: the file has none")
	}
	for i, t := range e.Tests {
		if _, err := t.Who.Subject(); err != nil {
			return e, fmt.Errorf("test %d: who: %w", i+1, err)
		}
		n := 0
		for _, a := range []Action{Publish, Subscribe, Receive} {
			n += len(t.Allowed.of(a)) + len(t.Denied.of(a))
		}
		if n == 0 {
			return e, fmt.Errorf("test %d: it expects nothing: name topics under allowed or denied", i+1)
		}
	}
	return e, nil
}

// Check returns how many decisions were looked at and those that a policy makes
// otherwise, in the file's order.
func (e Expectations) Check(p *Policy) (looked int, surprises []Surprise, err error) {
	for i, t := range e.Tests {
		s, err := t.Who.Subject()
		if err != nil {
			return looked, surprises, fmt.Errorf("test %d: who: %w", i+1, err)
		}
		for _, a := range []Action{Publish, Subscribe, Receive} {
			for _, of := range []struct {
				topics  Words
				allowed bool
				word    string
			}{{t.Allowed.of(a), true, "allowed"}, {t.Denied.of(a), false, "denied"}} {
				for _, topic := range of.topics {
					looked++
					d := p.Allow(s, a, topic)
					if d.Allowed == of.allowed && (t.By == "" || t.By == d.Rule) {
						continue
					}
					expected := of.word
					if t.By != "" {
						expected += " by " + t.By
					}
					surprises = append(surprises, Surprise{Test: i + 1, Expected: expected, Got: p.Explain(s, a, topic)})
				}
			}
		}
	}
	return looked, surprises, nil
}
