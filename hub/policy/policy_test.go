package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/protocol"
)

func pi(labels ...string) Subject {
	s := Subject{Role: identity.RoleDevice, ID: "pi-1"}
	if len(labels) > 0 {
		m := make(map[string]string)
		for _, l := range labels {
			k, v, _ := strings.Cut(l, "=")
			m[k] = v
		}
		s.Attributes = func() (Attributes, bool) { return Attributes{Labels: m}, true }
	}
	return s
}

var backend = Subject{Role: identity.RoleService, ID: "backend"}

func TestDeviceKeepsToItsOwnTopicsInTheStatedDirection(t *testing.T) {
	tests := []struct {
		action Action
		topic  string
		rule   string // empty: denied
	}{
		{Publish, "d/pi-1/tele/machine", "device-telemetry"},
		{Publish, "d/pi-1/evt/offline", "device-event"},
		{Publish, "d/pi-1/res/7", "device-result"},
		{Publish, "d/pi-1/twin/reported", "device-reported"},
		{Publish, "d/pi-1/twin/desired", ""},
		{Publish, "d/pi-1/cmd/reboot/1", ""},
		{Publish, "d/pi-1/sys/renew", ""},
		{Publish, "d/pi-1/tele", ""},
		{Publish, "d/pi-1/tele/", ""},
		{Publish, "d/pi-1/tele/a/b", ""},
		{Publish, "d/pi-2/tele/machine", ""},
		{Publish, "d/pi-1x/tele/machine", ""},
		{Publish, "d/PI-1/tele/machine", ""},
		{Publish, "D/pi-1/tele/machine", ""},
		{Publish, "/d/pi-1/tele/machine", ""},
		{Publish, "d//tele/machine", ""},
		{Publish, "g/site=north/cmd/reboot/1", ""},
		{Publish, "presence/pi-1", ""},
		{Publish, "$SYS/broker/version", ""},
		{Publish, "$sys/broker/version", ""},
		{Publish, "$share/x/d/pi-1/tele/machine", ""},
		{Publish, "", ""},
		{Publish, "d/pi-1/tele/+", ""},
		{Publish, "d/pi-1/tele/a\x00b", ""},

		{Subscribe, "d/pi-1/cmd/#", "device-command"},
		{Subscribe, "d/pi-1/cmd/+/+", "device-command"},
		{Subscribe, "d/pi-1/cmd/reboot/1", "device-command"},
		{Subscribe, "d/pi-1/cmd/+/#", "device-command"},
		{Subscribe, "d/pi-1/twin/desired", "device-desired"},
		{Subscribe, "d/pi-1/sys/#", "device-system"},
		{Subscribe, "g/site=north/cmd/#", "device-group-command"},
		{Subscribe, "g/site=north/cmd/reboot/+", "device-group-command"},
		{Subscribe, "g/site=south/cmd/#", ""},
		{Subscribe, "g/+/cmd/#", ""},
		{Subscribe, "g/#", ""},
		{Subscribe, "g/site=north/#", ""},
		{Subscribe, "#", ""},
		{Subscribe, "+", ""},
		{Subscribe, "+/pi-1/cmd/#", ""},
		{Subscribe, "d/#", ""},
		{Subscribe, "d/+/cmd/#", ""},
		{Subscribe, "d/pi-1/#", ""},
		{Subscribe, "d/pi-1/+/#", ""},
		{Subscribe, "d/pi-1/+/desired", ""},
		{Subscribe, "d/pi-1/tele/machine", ""},
		{Subscribe, "d/pi-1/twin/+", ""},
		{Subscribe, "d/pi-2/cmd/#", ""},
		{Subscribe, "presence/#", ""},
		{Subscribe, "$SYS/#", ""},
		{Subscribe, "$share/g/d/other/#", ""},
		{Subscribe, "$share/g/d/pi-1/cmd/#", ""},
		{Subscribe, "$SHARE/g/d/pi-1/cmd/#", ""},

		{Receive, "d/pi-1/cmd/reboot/1", "device-command"},
		{Receive, "d/pi-2/cmd/reboot/1", ""},
		{Receive, "d/pi-1/cmd/+/1", ""},
		{Receive, "d/pi-1/cmd/#", ""},
		{Receive, "g/site=north/cmd/reboot/1", "device-group-command"},
		{Receive, "g/site=/cmd/reboot/1", ""},
		{Receive, "g/a=b=c=d/cmd/reboot/1", ""},
		{Receive, "presence/pi-1", ""},
		{0, "d/pi-1/tele/machine", ""},
	}
	for _, tt := range tests {
		t.Run(tt.action.String()+" "+tt.topic, func(t *testing.T) {
			check(t, pi("site=north"), tt.action, tt.topic, tt.rule)
		})
	}
}

func TestServiceReadsWhatDevicesSendAndWritesWhatTheyReceive(t *testing.T) {
	tests := []struct {
		action Action
		topic  string
		rule   string
	}{
		{Subscribe, "d/+/tele/#", "service-telemetry"},
		{Subscribe, "d/pi-1/tele/machine", "service-telemetry"},
		{Subscribe, "d/+/evt/+", "service-event"},
		{Subscribe, "d/+/res/#", "service-result"},
		{Subscribe, "d/+/twin/reported", "service-reported"},
		{Subscribe, "presence/#", "service-presence"},
		{Subscribe, "presence/+", "service-presence"},
		{Subscribe, "$share/workers/d/+/tele/#", "service-telemetry"},
		{Subscribe, "$share/workers/#", ""},
		{Subscribe, "$share/workers/$SYS/#", ""},
		{Subscribe, "$share/a/$share/b/d/+/tele/#", ""},
		{Subscribe, "#", ""},
		{Subscribe, "d/#", ""},
		{Subscribe, "d/+/+/#", ""},
		{Subscribe, "d/+/twin/+", ""},
		{Subscribe, "d/+/twin/desired", ""},
		{Subscribe, "d/+/cmd/#", ""},
		{Subscribe, "$SYS/#", "service-system"},
		{Subscribe, "$SYS/broker/clients/+", "service-system"},
		{Subscribe, "$OTHER/#", ""},
		{Publish, "$SYS/broker/version", ""},
		{Publish, "d/pi-1/cmd/reboot/1", "service-command"},
		{Publish, "d/pi-1/twin/desired", "service-desired"},
		{Publish, "g/site=north/cmd/reboot/1", "service-group-command"},
		{Publish, "d/pi-1/cmd/reboot", ""},
		{Publish, "d//cmd/reboot/1", ""},
		{Publish, "d/pi-1/sys/renew", ""},
		{Publish, "d/pi-1/tele/machine", ""},
		{Publish, "d/pi-1/twin/reported", ""},
		{Publish, "presence/pi-1", ""},
		{Receive, "d/pi-1/tele/machine", "service-telemetry"},
		{Receive, "presence/pi-1", "service-presence"},
		{Receive, "d/pi-1/cmd/reboot/1", ""},
		{Receive, "$SYS/broker/version", "service-system"},
	}
	for _, tt := range tests {
		t.Run(tt.action.String()+" "+tt.topic, func(t *testing.T) {
			check(t, backend, tt.action, tt.topic, tt.rule)
		})
	}
}

func check(t *testing.T, s Subject, a Action, topic, rule string) {
	t.Helper()
	got := Allow(s, a, topic)
	if got.Allowed != (rule != "") || rule != "" && got.Rule != rule {
		t.Errorf("Allow = %+v, want rule %q", got, rule)
	}
	if got.Rule == "" {
		t.Error("the decision names no rule")
	}
}

func TestOtherRolesHaveNoTopics(t *testing.T) {
	for _, r := range []identity.Role{identity.RoleOperator, identity.RoleStation, identity.RoleHub, ""} {
		for _, a := range []Action{Publish, Subscribe, Receive} {
			if d := Allow(Subject{Role: r, ID: "pi-1"}, a, "d/pi-1/tele/machine"); d.Allowed {
				t.Errorf("%s may %s: %+v", r, a, d)
			}
		}
	}
}

func TestLabelMayContainTheSeparator(t *testing.T) {
	s := pi()
	s.Attributes = func() (Attributes, bool) {
		return Attributes{Labels: map[string]string{"a=b": "c", "x": "y=z"}}, true
	}
	for topic, want := range map[string]bool{"g/a=b=c/cmd/n/1": true, "g/x=y=z/cmd/n/1": true, "g/a=b/cmd/n/1": false, "g/=/cmd/n/1": false} {
		if got := Allow(s, Receive, topic); got.Allowed != want {
			t.Errorf("%s: %+v, want %v", topic, got, want)
		}
	}
}

func TestValidFilter(t *testing.T) {
	tests := map[string]bool{
		"#": true, "+": true, "a/+/b": true, "a/#": true, "+/+": true, "/": true, "a//b": true, "$share/x/a/#": true, "$SYS/#": true,
		"": false, "sport#": false, "a/b+/c": false, "+a": false, "a/#/b": false, "#/a": false, "##": false, "a/##": false, "++": false,
		"$share//x": false, "$share/x": false, "$share/x/": false, "$share/+/x": false, "$share/#/x": false, "$share": false, "$share/": false,
		"a\x00b": false, "a\nb": false, strings.Repeat("a", 1025): false, strings.Repeat("/", 16): false, strings.Repeat("/", 15): true,
	}
	for filter, want := range tests {
		if got := ValidFilter(filter); got != want {
			t.Errorf("ValidFilter(%q) = %v, want %v", filter, got, want)
		}
	}
}

// FuzzTopicIsTakenApartAsItIsDefined holds the one pass over a topic to package topic's
// definitions, and what it makes of it to the topic.
func FuzzTopicIsTakenApartAsItIsDefined(f *testing.F) {
	for _, s := range []string{"", "#", "+", "a", "a/", "/", "//", "a/+", "a/#", "#/a", "a+", "+a", "a/+b/c", "##", "++/a", "a\x00", "a\x7f", "ä/ö", "$SYS/#", strings.Repeat("/", 15), strings.Repeat("/", 16), strings.Repeat("a/", 15) + "#", strings.Repeat("a/", 16) + "#", strings.Repeat("x", 1024), strings.Repeat("x", 1025)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		for filter, want := range map[bool]bool{false: ValidName(name), true: ValidFilter(name)} {
			if filter && strings.HasPrefix(name, "$share") {
				continue // its share is taken off before
			}
			var q question
			if got := q.take(name, filter); got != want {
				t.Fatalf("%q as a filter (%v) is taken apart: %v, want %v", name, filter, got, want)
			}
			levels := slices.Clone(q.levels[:q.n])
			if q.rest {
				levels = append(levels, "#")
			}
			if back := strings.Join(levels, "/"); want && back != name {
				t.Fatalf("%q becomes %q", name, back)
			}
			for _, l := range levels {
				if want && l != "+" && l != "#" && named(l) != protocol.ValidLevel(l) {
					t.Fatalf("level %q of %q: named is %v", l, name, named(l))
				}
			}
		}
	})
}

// TestManyRulesOfOneTopicAreFoundByTheirConditions: also where what they demand isn't
// known.
func TestManyRulesOfOneTopicAreFoundByTheirConditions(t *testing.T) {
	var text strings.Builder
	text.WriteString("version: 1\nrules:\n")
	for i := range 20 {
		fmt.Fprintf(&text, "- {rule: ou-%d, role: device, allow: publish, when: {ou: [o%[1]d, x%[1]d]}, topics: a/ou}\n", i)
		fmt.Fprintf(&text, "- {rule: san-%d, role: device, allow: publish, when: {san: 'dns:n%[1]d'}, topics: a/san/#}\n", i)
		fmt.Fprintf(&text, "- {rule: station-%d, role: device, allow: publish, when: {station: s%[1]d, label: {b: 'y*'}}, topics: a/station}\n", i)
		fmt.Fprintf(&text, "- {rule: no-ou-%d, role: device, deny: subscribe, when: {ou: o%[1]d}, topics: 'b/${id}/+'}\n", i)
		fmt.Fprintf(&text, "- {rule: no-batch-%d, role: device, deny: subscribe, when: {batch: b%[1]d}, topics: 'c/+/#'}\n", i)
	}
	text.WriteString("- {rule: rest, role: device, allow: subscribe, topics: ['b/#', 'c/#']}\n")
	p := mustParse(t, text.String())
	somebody := func(ou, san, station, batch string) Subject {
		s, err := Who{Role: identity.RoleDevice, ID: "pi-1", OU: Words{"other", ou}, SAN: Words{san}, Station: station, Batch: batch, Label: map[string]string{"b": "yes"}}.Subject()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	stranger, known := somebody("o99", "dns:n99", "s99", "b99"), somebody("o19", "dns:n7", "s12", "b3")
	dark := known
	dark.Unseen, dark.Attributes = true, func() (Attributes, bool) { return Attributes{}, false }
	kept := dark
	kept.Provisional = true
	tests := []struct {
		action Action
		topic  string
		// The rules that decide about them.
		known, stranger, dark, kept string
	}{
		{Publish, "a/ou", "ou-19", "no-rule", "no-rule", "ou-0"},
		{Publish, "a/san", "san-7", "no-rule", "no-rule", "san-0"},
		{Publish, "a/san/x", "san-7", "no-rule", "no-rule", "san-0"},
		{Publish, "a/station", "station-12", "no-rule", "no-rule", "station-0"},
		{Subscribe, "b/pi-1/x", "no-ou-19", "rest", "no-ou-0", "rest"},
		{Subscribe, "b/#", "no-ou-19", "rest", "no-ou-0", "rest"},
		{Subscribe, "b/+/x", "no-ou-19", "rest", "no-ou-0", "rest"},
		{Subscribe, "b/pi-2/x", "rest", "rest", "rest", "rest"},
		{Subscribe, "c/#", "no-batch-3", "rest", "no-batch-0", "rest"},
		{Receive, "c/x/y/z", "no-batch-3", "rest", "no-batch-0", "rest"},
		{Receive, "c", "rest", "rest", "rest", "rest"},
	}
	for _, tt := range tests {
		for i, s := range []Subject{known, stranger, dark, kept} {
			want := []string{tt.known, tt.stranger, tt.dark, tt.kept}[i]
			if d := p.Allow(s, tt.action, tt.topic); d.Rule != want {
				t.Errorf("%s %s of the %s: %+v, want %s", tt.action, tt.topic, []string{"known", "stranger", "unknown", "unknown who is away"}[i], d, want)
			}
		}
	}
}

// TestFirstLevelOfVariablesMayBeginWithADollar, and then keeps to what begins with one.
func TestFirstLevelOfVariablesMayBeginWithADollar(t *testing.T) {
	p := mustParse(t, `version: 1
rules:
- {rule: own, role: device, allow: subscribe, topics: '$S${id}/#'}
- {rule: plain, role: device, allow: subscribe, topics: ['+/x', 's${label.a}/#']}
- {rule: none, role: device, deny: subscribe, topics: '$T${id}/#'}
`)
	s := pi("a=b")
	for topic, rule := range map[string]string{"$Spi-1/x": "own", "$Spi-2/x": "no-rule", "$Tpi-1/x": "none", "+/x": "plain", "sb/y": "plain"} {
		if d := p.Allow(s, Subscribe, topic); d.Rule != rule {
			t.Errorf("%s: %+v, want %s", topic, d, rule)
		}
	}
	s.Attributes, s.Provisional = func() (Attributes, bool) { return Attributes{}, false }, true
	if d := p.Allow(s, Subscribe, "$x/y"); d.Allowed {
		t.Errorf("$x/y of somebody unknown: %+v", d)
	}
}

func TestDecisionAllocatesNothing(t *testing.T) {
	s := pi("site=north", "plant=p7")
	for _, p := range []*Policy{Default(), plants(t, 20)} {
		for _, topic := range []string{"d/pi-1/tele/machine", "g/site=north/cmd/a/1", "d/pi-2/x", "d/+/#", "all/cmd/+", "$share/x/all/#"} {
			if n := testing.AllocsPerRun(100, func() { p.Allow(s, Publish, topic); p.Allow(s, Receive, topic); p.Allow(s, Subscribe, topic) }); n != 0 {
				t.Errorf("%s: %v allocations, want 0", topic, n)
			}
		}
	}
}

// BenchmarkAllow has the decisions that the hub makes all day: by the default policy, and by
// large ones of three rules for each of many plants, with what matters last.
func BenchmarkAllow(b *testing.B) {
	s := pi("site=north")
	s.OU = []string{"pump"}
	labels := map[string]string{"site": "north", "plant": "none"}
	s.Attributes = func() (Attributes, bool) {
		return Attributes{Labels: labels, Model: "pi4", Protection: "tpm"}, true
	}
	for _, p := range []struct {
		name string
		p    *Policy
	}{{"default", Default()}, {"of-150-rules", plants(b, 50)}, {"of-1000-rules", plants(b, 332)}} {
		for _, q := range []struct {
			name    string
			action  Action
			topic   string
			allowed bool // by the large ones
		}{
			{"publish", Publish, "d/pi-1/tele/c-49", true},
			{"receive", Receive, "g/site=north/cmd/reboot/1", true},
			{"subscribe", Subscribe, "g/site=north/cmd/#", true},
			{"subscribe-across-denials", Subscribe, "d/pi-1/tele/#", true},
			{"subscribe-one-of-many-alike", Subscribe, "all/cmd/+/+", true},
			{"denied", Publish, "d/pi-2/tele/c-49", false},
		} {
			if d := p.p.Allow(s, q.action, q.topic); p.name != "default" && d.Allowed != q.allowed {
				b.Fatalf("%s: %+v", q.name, d)
			}
			b.Run(p.name+"/"+q.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					p.p.Allow(s, q.action, q.topic)
				}
			})
		}
	}
}

// plants returns a large policy: for each of n plants a channel that its devices may not
// use, one that all may, and commands of the plant.
func plants(t testing.TB, n int) *Policy {
	t.Helper()
	var text strings.Builder
	text.WriteString("version: 1\nrules:\n")
	for i := range n {
		fmt.Fprintf(&text, "- {rule: deny-%d, role: device, deny: [publish, subscribe], when: {label: {plant: p%[1]d}}, topics: 'd/${id}/tele/secret-%[1]d'}\n", i)
		fmt.Fprintf(&text, "- {rule: allow-%d, role: device, allow: [publish, subscribe], topics: 'd/${id}/tele/c-%[1]d'}\n", i)
		fmt.Fprintf(&text, "- {rule: plant-%d, role: device, allow: subscribe, when: {label: {plant: p%[1]d}}, topics: 'all/cmd/#'}\n", i)
	}
	text.WriteString(`
- {rule: cmd, role: device, allow: subscribe, when: {label: {site: north}, model: pi*, protection: tpm}, topics: 'g/site=${label.site}/cmd/#'}
- {rule: echo, role: device, allow: subscribe, topics: 'd/${id}/tele/#'}
- {rule: planted, role: device, allow: subscribe, when: {label: {plant: none}}, topics: 'all/cmd/#'}
`)
	return mustParse(t, text.String())
}

func mustParse(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}
