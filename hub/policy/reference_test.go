package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/fleethub/fleethub/certs/identity"
)

// The reference evaluator: slow, and right at a glance. It fills a rule's variables in,
// which leaves plain MQTT filters, and decides about a filter by trying every topic name of
// a small world on it.

// world are all topic names of up to four levels over a few words. "fresh" occurs in no
// rule and no filter: what a wildcard matches besides what is named.
var world = func() [][]string {
	words := []string{"a", "pi-1", "north", "south", "site=north", "", "fresh", "x=y", "site=south", "other=a"}
	names := [][]string{}
	last := [][]string{{}}
	for range 4 {
		var next [][]string
		for _, n := range last {
			for _, w := range words {
				next = append(next, append(slices.Clone(n), w))
			}
			if len(n) == 0 {
				next = append(next, []string{"$SYS"})
			}
		}
		names = append(names, next...)
		last = next
	}
	return names
}()

// mqttMatch is MQTT 5.0 §4.7 with its rule about '$'.
func mqttMatch(filter, name []string) bool {
	if strings.HasPrefix(name[0], "$") && (filter[0] == "+" || filter[0] == "#") {
		return false
	}
	return naiveMatch(filter, name)
}

// filled returns the plain filters that a rule's topic stands for, of a subject whose
// registry record is known.
func filled(topic string, who Who, deny bool) []string {
	filters := []string{""}
	for i, word := range strings.Split(topic, "/") {
		values := []string{word}
		switch {
		case word == "${label}":
			values = nil
			for k, v := range who.Label {
				values = append(values, k+"="+v)
			}
			values = slices.DeleteFunc(values, func(v string) bool { return strings.ContainsAny(v, "/+#") })
			if len(values) == 0 && deny {
				values = []string{"+"}
			}
		case strings.Contains(word, "${"):
			site := who.Label["site"]
			word = strings.ReplaceAll(word, "${id}", who.ID)
			switch {
			case !strings.Contains(word, "${label.site}"):
				values = []string{word}
			case site != "" && !strings.ContainsAny(site, "/+#"):
				values = []string{strings.ReplaceAll(word, "${label.site}", site)}
			case deny:
				values = []string{"+"}
			default:
				values = nil
			}
		}
		var next []string
		for _, f := range filters {
			for _, v := range values {
				if strings.ContainsAny(v, "/") || v != "+" && v != "#" && strings.ContainsAny(v, "+#") {
					continue // no topic has such a level
				}
				if i > 0 {
					v = f + "/" + v
				}
				next = append(next, v)
			}
		}
		filters = next
	}
	return filters
}

// refers reports whether a rule is about the subject, all of whom is known.
func refers(c *Condition, who Who) bool {
	if c == nil {
		return true
	}
	any := func(words Words, has ...string) bool {
		if words == nil {
			return true
		}
		for _, w := range words {
			for _, h := range has {
				if h == "" {
					continue
				}
				if head, ok := strings.CutSuffix(w, "*"); ok && strings.HasPrefix(h, head) || w == h {
					return true
				}
			}
		}
		return false
	}
	for k, words := range c.Label {
		if !any(words, who.Label[k]) {
			return false
		}
	}
	return any(c.ID, who.ID) && any(c.OU, who.OU...) && any(c.SAN, who.SAN...) && any(c.Model, who.Model) && any(c.Protection, who.Protection)
}

// proper reports whether each level that an allow rule's '+' stands for is a proper name.
func proper(filter, name []string) bool {
	for i, f := range filter {
		if f == "+" && name[i] == "" {
			return false
		}
	}
	return true
}

func referenceAllows(doc Document, who Who, a Action, topic string) bool {
	filter, shared := topic, false
	if a == Subscribe {
		if !ValidFilter(topic) {
			return false
		}
		if rest, ok := strings.CutPrefix(topic, "$share/"); ok {
			_, filter, _ = strings.Cut(rest, "/")
			shared = true
		}
	} else if !ValidName(topic) || a == Publish && topic[0] == '$' {
		return false
	}
	word := "subscribe"
	if a == Publish {
		word = "publish"
	}
	levels := strings.Split(filter, "/")
	// The names in question: of a name, itself.
	var names [][]string
	if a != Subscribe {
		names = [][]string{levels}
	} else {
		for _, n := range world {
			if mqttMatch(levels, n) {
				names = append(names, n)
			}
		}
	}
	allowed := false
	for _, r := range doc.Rules {
		if !slices.Contains(r.Role, string(who.Role)) || !slices.Contains(append(slices.Clone(r.Allow), r.Deny...), word) {
			continue
		}
		if !refers(r.When, who) || r.Unless != nil && refers(r.Unless, who) {
			continue
		}
		for _, t := range r.Topics {
			for _, f := range filled(t, who, r.Deny != nil) {
				rule := strings.Split(f, "/")
				if r.Deny != nil {
					// A denying wildcard matches what begins with '$', too.
					if slices.ContainsFunc(names, func(n []string) bool { return naiveMatch(rule, n) }) {
						return false
					}
					continue
				}
				all := len(names) > 0 && (!shared || r.Shared)
				for _, n := range names {
					// The empty level is what '+' against '+' leaves to Receive.
					if a == Subscribe && !proper(levels, n) {
						continue
					}
					all = all && mqttMatch(rule, n) && proper(rule, n)
				}
				// A variable is one name, never a wildcard.
				allowed = allowed || all
			}
		}
	}
	return allowed
}

func drawRules(t *rapid.T) Document {
	levels := []string{"a", "pi-1", "north", "+", "${id}", "${label}", "site=${label.site}", "${label.site}", ""}
	topic := rapid.Custom(func(t *rapid.T) string {
		words := []string{rapid.SampledFrom([]string{"a", "$SYS", "+", "${id}", "", "a"}).Draw(t, "first")}
		words = append(words, rapid.SliceOfN(rapid.SampledFrom(levels), 0, 2).Draw(t, "levels")...)
		switch rapid.IntRange(0, 3).Draw(t, "end") {
		case 0:
			words = append(words, "#")
		case 1:
			if rapid.IntRange(0, 9).Draw(t, "bare") == 0 {
				words = []string{"#"}
			}
		}
		text := strings.Join(words, "/")
		if text == "" {
			text = "a"
		}
		return text
	})
	conditions := []*Condition{
		nil, nil, nil, {OU: Words{"pump"}}, {Label: map[string]Words{"site": {"north", "so*"}}}, {Model: Words{"pi*"}, Protection: Words{"tpm"}}, {SAN: Words{"dns:x"}}, {ID: Words{"pi-*"}},
	}
	doc := Document{Version: 1}
	// Few rules, which are asked one by one, or many, which are found by their words.
	for i := range rapid.SampledFrom([]int{1, 2, 3, 4, 5, 6, 20, 40}).Draw(t, "rules") {
		r := Rule{
			Name: fmt.Sprintf("r%d", i), Role: Words{"device"},
			When: rapid.SampledFrom(conditions).Draw(t, "when"), Unless: rapid.SampledFrom(conditions).Draw(t, "unless"),
			Topics: rapid.SliceOfN(topic, 1, 3).Draw(t, "topics"),
		}
		actions := rapid.SampledFrom([]Words{{"subscribe"}, {"subscribe", "publish"}, {"publish"}}).Draw(t, "actions")
		if rapid.IntRange(0, 2).Draw(t, "deny") == 0 {
			r.Deny = actions
		} else {
			r.Allow = actions
			r.Shared = actions[0] == "subscribe" && rapid.Bool().Draw(t, "shared")
			if len(actions) > 1 || actions[0] == "publish" {
				for i, topic := range r.Topics {
					if strings.HasPrefix(topic, "$SYS") {
						r.Topics[i] = "a"
					}
				}
			}
		}
		doc.Rules = append(doc.Rules, r)
	}
	return doc
}

func drawWho(t *rapid.T) Who {
	return Who{
		Role: identity.RoleDevice, ID: rapid.SampledFrom([]string{"pi-1", "a"}).Draw(t, "id"),
		OU:         rapid.SampledFrom([]Words{nil, {"pump"}, {"x", "pump"}}).Draw(t, "ou"),
		SAN:        rapid.SampledFrom([]Words{nil, {"dns:x"}}).Draw(t, "san"),
		Label:      rapid.SampledFrom([]map[string]string{nil, {"site": "north"}, {"site": "+"}, {"site": "a/b"}, {"other": "a"}, {"site": "south", "x": "y"}}).Draw(t, "label"),
		Model:      rapid.SampledFrom([]string{"", "pi4", "x"}).Draw(t, "model"),
		Protection: rapid.SampledFrom([]string{"", "tpm", "software"}).Draw(t, "protection"),
	}
}

func drawTopic(t *rapid.T, a Action) string {
	words := []string{"a", "pi-1", "north", "site=north", "", "+"}
	topic := strings.Join(append([]string{rapid.SampledFrom([]string{"a", "pi-1", "$SYS", "+", "", "a"}).Draw(t, "first")}, rapid.SliceOfN(rapid.SampledFrom(words), 0, 2).Draw(t, "levels")...), "/")
	if a != Subscribe {
		return topic
	}
	switch rapid.IntRange(0, 5).Draw(t, "end") {
	case 0, 1:
		topic += "/#"
	case 2:
		topic = "#"
	}
	return rapid.SampledFrom([]string{"", "", "$share/g/"}).Draw(t, "share") + topic
}

// tally counts what decided, so that a test can tell that it looked at something.
type tally struct{ allowed, denied int }

// check holds some decisions of one policy about one subject against the reference.
func (n *tally) check(t *rapid.T) {
	doc, who := drawRules(t), drawWho(t)
	p, err := New(doc)
	if err != nil {
		t.Fatalf("%+v: %v", doc, err)
	}
	s, err := who.Subject()
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		a := rapid.SampledFrom([]Action{Publish, Subscribe, Subscribe, Receive}).Draw(t, "action")
		topic := drawTopic(t, a)
		got, want := p.Allow(s, a, topic), referenceAllows(doc, who, a, topic)
		if got.Allowed != want {
			t.Fatalf("%s %q: %+v, the reference says %v\nof %+v\nby %+v", a, topic, got, want, who, doc)
		}
		if want {
			n.allowed++
		} else if got.Number > 0 {
			n.denied++
		}
		e := p.Explain(s, a, topic)
		first := slices.IndexFunc(e.Considered, func(c Considered) bool { return c.Applies })
		if e.Allowed != got.Allowed || e.Rule != got.Rule || e.Why == "" || (first >= 0) != (got.Number > 0) || first >= 0 && e.Considered[first].Number != got.Number {
			t.Fatalf("%s %q: %+v is explained by %+v", a, topic, got, e)
		}
		// What isn't known is never a reason to allow, and in his favour never one to deny.
		dark := s
		dark.Attributes, dark.Unseen = func() (Attributes, bool) { return Attributes{}, false }, true
		if p.Allow(dark, a, topic).Allowed && !got.Allowed {
			t.Fatalf("%s %q is denied, and allowed to somebody unknown\nof %+v\nby %+v", a, topic, who, doc)
		}
		dark.Provisional = true
		if got.Allowed && !p.Allow(dark, a, topic).Allowed {
			t.Fatalf("%s %q is allowed, and wouldn't be kept while he is away\nof %+v\nby %+v", a, topic, who, doc)
		}
	}
}

func TestDecisionsAreThoseOfTheReference(t *testing.T) {
	var n tally
	rapid.Check(t, n.check)
	if n.allowed < 20 || n.denied < 20 {
		t.Errorf("only %d allowed and %d denied by a rule: the test looks at nothing", n.allowed, n.denied)
	}
}

func FuzzDecisionsAreThoseOfTheReference(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) { new(tally).check(t) }))
}
