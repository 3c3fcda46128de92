package policy

import (
	"slices"
	"strings"
	"testing"
)

// naiveMatch is the definition of a filter's match, MQTT 5.0 §4.7.1, written
// for clarity.
func naiveMatch(filter, name []string) bool {
	if len(filter) == 1 && filter[0] == "#" {
		return true
	}
	if len(filter) == 0 || len(name) == 0 {
		return len(filter) == 0 && len(name) == 0
	}
	if filter[0] != "+" && filter[0] != name[0] {
		return false
	}
	if len(name) == 1 && len(filter) == 2 && filter[1] == "#" {
		return true
	}
	return naiveMatch(filter[1:], name[1:])
}

// naivePatterns are the rules written out again for pi-1 with site=north and
// for a service, as filters.
var naivePatterns = map[string]map[Action][]string{
	"device": {
		Publish: {"d/pi-1/tele/+", "d/pi-1/evt/+", "d/pi-1/res/+", "d/pi-1/twin/reported"},
		Receive: {"d/pi-1/cmd/#", "d/pi-1/twin/desired", "d/pi-1/sys/#", "g/site=north/cmd/#"},
	},
	"service": {
		Publish: {"d/+/cmd/+/+", "d/+/twin/desired", "g/+/cmd/+/+"},
		Receive: {"d/+/tele/#", "d/+/evt/#", "d/+/res/#", "d/+/twin/reported", "presence/#", "$SYS/#"},
	},
}

func naiveAllow(role string, a Action, name string) bool {
	if !ValidName(name) || a == Publish && strings.HasPrefix(name, "$") {
		return false
	}
	levels := strings.Split(name, "/")
	for _, p := range naivePatterns[role][a] {
		pattern := strings.Split(p, "/")
		if !naiveMatch(pattern, levels) {
			continue
		}
		if !plusLevelsNamed(pattern, levels) {
			continue
		}
		return true
	}
	return false
}

// plusLevelsNamed holds our one addition to MQTT's matching: where a rule says
// '+', the level must be a proper name.
func plusLevelsNamed(pattern, levels []string) bool {
	for i, p := range pattern {
		if p == "+" && (levels[i] == "" || len(levels[i]) > 128) {
			return false
		}
	}
	return true
}

// alphabet are the levels of which names are made up to contradict a filter.
var alphabet = []string{"d", "g", "presence", "pi-1", "pi-2", "site=north", "site=south", "tele", "evt", "res", "cmd", "sys", "twin", "desired", "reported", "x"}

// expand returns topic names that filter matches: every wildcard level is
// replaced by each of the alphabet in turn, '#' by nothing, one and two levels.
func expand(filter string) [][]string {
	names := [][]string{{}}
	for level := range strings.SplitSeq(filter, "/") {
		var next [][]string
		for _, n := range names {
			switch level {
			case "+":
				for _, a := range alphabet {
					next = append(next, append(slices.Clone(n), a))
				}
			case "#":
				next = append(next, n)
				for _, a := range alphabet {
					next = append(next, append(slices.Clone(n), a), append(slices.Clone(n), a, "x"), append(slices.Clone(n), a, "y", "z"))
				}
			default:
				next = append(next, append(slices.Clone(n), level))
			}
		}
		names = next
		if len(names) > 1<<16 {
			return names[:1<<16]
		}
	}
	return names
}

// FuzzPolicy holds Allow against the naive evaluator: names must agree exactly,
// and an allowed filter must match no name that its subject may not receive.
func FuzzPolicy(f *testing.F) {
	for _, s := range []string{
		"#", "+/#", "d/#", "d/+/cmd/#", "d/pi-1/cmd/#", "d/pi-1/cmd/+/+", "d/pi-1/twin/desired", "g/+/cmd/#", "g/site=north/cmd/#", "d/+/tele/#",
		"presence/#", "$share/g/d/+/tele/#", "$share/g/d/other/#", "$SYS/#", "d/pi-1", "d/pi-1/cmd", "d/pi-1/tele/machine", "d/pi-1/sys/#", "d/+/+/desired",
	} {
		f.Add(s)
	}
	subjects := map[string]Subject{"device": pi("site=north"), "service": backend}
	f.Fuzz(func(t *testing.T, topic string) {
		for role, s := range subjects {
			for _, a := range []Action{Publish, Receive} {
				if got, want := Allow(s, a, topic).Allowed, naiveAllow(role, a, topic); got != want {
					t.Errorf("%s %s %q: %v, naively %v", role, a, topic, got, want)
				}
			}
			if !Allow(s, Subscribe, topic).Allowed {
				continue
			}
			filter := topic
			if rest, ok := strings.CutPrefix(topic, "$share/"); ok {
				_, filter, _ = strings.Cut(rest, "/")
			}
			if strings.Count(filter, "+") > 2 {
				continue // too many names to try
			}
			for _, levels := range expand(filter) {
				name := strings.Join(levels, "/")
				if !ValidName(name) {
					continue
				}
				if d := Allow(s, Receive, name); !d.Allowed {
					t.Fatalf("%s may subscribe to %q, which matches %q, which it may not receive (%s)", role, topic, name, d.Rule)
				}
			}
		}
	})
}
