package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/identity"
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

func TestDecisionAllocatesNothing(t *testing.T) {
	s := pi("site=north")
	for _, topic := range []string{"d/pi-1/tele/machine", "g/site=north/cmd/a/1", "d/pi-2/x"} {
		if n := testing.AllocsPerRun(100, func() { Allow(s, Publish, topic); Allow(s, Receive, topic); Allow(s, Subscribe, topic) }); n != 0 {
			t.Errorf("%s: %v allocations, want 0", topic, n)
		}
	}
}

// BenchmarkAllow has the decisions that the hub makes all day, by the default policy and
// by one of a hundred lines for the role, those that matter last.
func BenchmarkAllow(b *testing.B) {
	large := "version: 1\nrules:\n"
	for i := range 50 {
		large += fmt.Sprintf("- {rule: deny-%d, role: device, deny: [publish, subscribe], when: {label: {plant: p%[1]d}}, topics: 'd/${id}/tele/secret-%[1]d'}\n", i)
		large += fmt.Sprintf("- {rule: allow-%d, role: device, allow: [publish, subscribe], topics: 'd/${id}/tele/c-%[1]d'}\n", i)
	}
	large += "- {rule: cmd, role: device, allow: subscribe, when: {label: {site: north}, model: pi*, protection: tpm}, topics: 'g/site=${label.site}/cmd/#'}\n"
	policies := []struct {
		name string
		p    *Policy
	}{{"default", Default()}, {"of-100-lines", mustParse(b, large)}}
	s := pi("site=north")
	s.OU = []string{"pump"}
	labels := map[string]string{"site": "north"}
	s.Attributes = func() (Attributes, bool) {
		return Attributes{Labels: labels, Model: "pi4", Protection: "tpm"}, true
	}
	for _, p := range policies {
		for _, q := range []struct {
			name   string
			action Action
			topic  string
		}{
			{"publish", Publish, "d/pi-1/tele/c-49"}, {"receive", Receive, "g/site=north/cmd/reboot/1"},
			{"subscribe", Subscribe, "g/site=north/cmd/#"}, {"denied", Publish, "d/pi-2/tele/c-49"},
		} {
			b.Run(p.name+"/"+q.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					p.p.Allow(s, q.action, q.topic)
				}
			})
		}
	}
}

func mustParse(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}
