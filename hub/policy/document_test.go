package policy

import (
	"bytes"
	"crypto/x509"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/identity"
)

func TestTheShippedFileIsTheDefaultAndWarnsOfNothing(t *testing.T) {
	p := mustParse(t, string(Shipped()))
	if p.Sum() != Default().Sum() || p.Rules() == 0 || len(p.Warnings()) != 0 {
		t.Errorf("%d rules, sum %s, default %s, warnings %q", p.Rules(), p.Sum(), Default().Sum(), p.Warnings())
	}
	var c Current
	if c.Policy() != Default() {
		t.Error("the zero Current has another policy")
	}
	deny := mustParse(t, "version: 1\nrules:\n- {rule: none, role: [device, service], deny: [publish, subscribe], topics: '#'}\n")
	c.Set(deny)
	if c.Allow(backend, Subscribe, "d/+/tele/#").Allowed || !Allow(backend, Subscribe, "d/+/tele/#").Allowed {
		t.Error("the policy in force is not the one that was set")
	}
}

// TestExamplesInTheShippedFileAreRules takes the # off them.
func TestExamplesInTheShippedFileAreRules(t *testing.T) {
	text, found := string(Shipped()), 0
	lines := strings.Split(text, "\n")
	in := false
	for i, l := range lines {
		if strings.HasPrefix(l, "  # - rule:") {
			in, found = true, found+1
		}
		if in = in && (strings.HasPrefix(l, "  # - ") || strings.HasPrefix(l, "  #   ")); in {
			lines[i] = strings.Replace(l, "# ", "", 1)
		}
	}
	p := mustParse(t, strings.Join(lines, "\n"))
	if found != 2 || p.Rules() != Default().Rules()+found {
		t.Fatalf("%d examples, %d rules", found, p.Rules())
	}
	software, tpm := pi(), pi()
	software.Attributes = func() (Attributes, bool) { return Attributes{Protection: "software"}, true }
	tpm.Attributes = func() (Attributes, bool) { return Attributes{Protection: "tpm"}, true }
	if d := p.Allow(software, Publish, "d/pi-1/tele/billing"); d.Rule != "no-billing-by-software-keys" {
		t.Errorf("%+v", d)
	}
	if d := p.Allow(tpm, Publish, "d/pi-1/tele/billing"); !d.Allowed {
		t.Errorf("%+v", d)
	}
	// The whole filter is refused, not what is denied of it alone.
	if d := p.Allow(backend, Subscribe, "$share/g/d/+/evt/#"); d.Allowed || d.Rule != "key-events-are-confidential" {
		t.Errorf("%+v", d)
	}
	security := backend
	security.OU = []string{"security"}
	if d := p.Allow(security, Subscribe, "$share/g/d/+/evt/#"); !d.Allowed {
		t.Errorf("%+v", d)
	}
}

func TestMistakesInAFileAreNamed(t *testing.T) {
	rule := func(text string) string { return "version: 1\nrules:\n- {" + text + "}\n" }
	for text, want := range map[string]string{
		"":                      "empty",
		"rules: []":             "version",
		"version: 2\nrules: []": "version: 2",
		"version: 1\nrulez: []": "rulez",
		"version: 1\nrules: [}": "line 2",
		"version: 1\nrules: []\n---\nversion: 1\nrules: []\n":                                                                        "second document",
		"version: 1\nx: &a [1]\nrules: *a\n":                                                                                         "aliases",
		"version: 1\nrules: " + strings.Repeat("[", 100):                                                                             "nested",
		"version: 1\n# " + strings.Repeat("x", 5000):                                                                                 "bytes",
		rule("role: device, allow: publish, topics: a"):                                                                              "name",
		rule("rule: 'a b', role: device, allow: publish, topics: a"):                                                                 "name",
		rule("rule: no-rule, role: device, allow: publish, topics: a"):                                                               "choose another",
		rule("rule: x, allow: publish, topics: a"):                                                                                   "role",
		rule("rule: x, role: operator, allow: publish, topics: a"):                                                                   "operator",
		rule("rule: x, role: [device, device], allow: publish, topics: a"):                                                           "twice",
		rule("rule: x, role: device, topics: a"):                                                                                     "allow or deny",
		rule("rule: x, role: device, allow: publish, deny: publish, topics: a"):                                                      "allow or deny",
		rule("rule: x, role: device, allow: [], topics: a"):                                                                          "publish, subscribe",
		rule("rule: x, role: device, allow: receive, topics: a"):                                                                     "subscribe",
		rule("rule: x, role: device, allow: read, topics: a"):                                                                        "read",
		rule("rule: x, role: device, allow: publish"):                                                                                "topics",
		rule("rule: x, role: device, allow: publish, topics: []"):                                                                    "topics",
		rule("rule: x, role: device, allow: publish, topics: 'a/#/b'"):                                                               "filter",
		rule("rule: x, role: device, allow: publish, topics: 'a/b+'"):                                                                "filter",
		rule("rule: x, role: device, allow: publish, topics: '$SYS/x'"):                                                              "$",
		rule("rule: x, role: device, allow: subscribe, topics: '$share/g/a'"):                                                        "shared",
		rule("rule: x, role: device, allow: subscribe, topics: 'a/${nobody}'"):                                                       "${nobody}",
		rule("rule: x, role: device, allow: subscribe, topics: 'a/${id'"):                                                            "closed",
		rule("rule: x, role: device, allow: subscribe, topics: 'a/x${label}'"):                                                       "whole level",
		rule("rule: x, role: device, allow: subscribe, topics: 'a/${id}${label.x}'"):                                                 "touch",
		rule("rule: x, role: device, allow: subscribe, topics: '${label.x}/a'"):                                                      "first level",
		rule("rule: x, role: device, allow: subscribe, topics: '${label}/a'"):                                                        "first level",
		rule("rule: x, role: service, allow: subscribe, topics: 'a/${label}'"):                                                       "services have no labels",
		rule("rule: x, role: [device, service], allow: subscribe, topics: 'a/${label.x}'"):                                           "services have no labels",
		rule("rule: x, role: service, allow: subscribe, when: {model: x}, topics: a"):                                                "only devices",
		rule("rule: x, role: device, deny: subscribe, shared: true, topics: a"):                                                      "shared",
		rule("rule: x, role: device, allow: publish, shared: true, topics: a"):                                                       "shared",
		rule("rule: x, role: device, allow: publish, when: {}, topics: a"):                                                           "says nothing",
		rule("rule: x, role: device, allow: publish, when: {ou: []}, topics: a"):                                                     "names nothing",
		rule("rule: x, role: device, allow: publish, when: {label: {site: []}}, topics: a"):                                          "names nothing",
		rule("rule: x, role: device, allow: publish, when: {ou: ['']}, topics: a"):                                                   "empty",
		rule("rule: x, role: device, allow: publish, unless: {model: 'a*b'}, topics: a"):                                             "*",
		rule("rule: x, role: device, allow: publish, when: {san: pi.example}, topics: a"):                                            "dns:",
		rule("rule: x, role: device, allow: publish, when: {colour: red}, topics: a"):                                                "colour",
		rule("rule: x, role: device, allow: publish, topics: a") + "- {rule: x, role: device, allow: publish, topics: b}":            "rule 1",
		rule("rule: x, role: device, allow: publish, topics: [" + strings.Repeat("a, ", 1) + "'" + strings.Repeat("a/", 20) + "a']"): "16 levels",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.80q: %v, want one line that says %q", text, err, want)
		}
	}
	many := "version: 1\nrules:\n" + strings.Repeat("- {rule: x, role: device, allow: publish, topics: a}\n", maxRules+1)
	if _, err := Parse([]byte(many)); err == nil {
		t.Error("too many rules are taken")
	}
	if _, err := Parse(bytes.Repeat([]byte("#\n"), maxFile)); err == nil {
		t.Error("a file that is too large is taken")
	}
}

func TestWarningsNameWhatEveryDeviceCouldDo(t *testing.T) {
	for topic, want := range map[string]int{"d/+/tele/#": 1, "#": 1, "d/${id}/#": 0, "g/${label}/#": 0, "news/all": 0, "$SYS/#": 1, "presence/x": 0} {
		p := mustParse(t, "version: 1\nrules:\n- {rule: x, role: device, allow: subscribe, topics: '"+topic+"'}\n")
		if got := p.Warnings(); len(got) != want {
			t.Errorf("%s: %q", topic, got)
		}
	}
}

func TestConditionsAreHeldAgainstCertificateAndRegistry(t *testing.T) {
	base := Who{Role: identity.RoleDevice, ID: "pi-1", OU: Words{"pump", "eu"}, SAN: Words{"dns:pi-1.north.example"}, Label: map[string]string{"site": "north"}, Model: "pi4", Protection: "tpm", Batch: "lot-0425", Station: "bench-1"}
	for when, want := range map[string]bool{
		"{ou: pump}": true, "{ou: [x, eu]}": true, "{ou: pum}": false, "{ou: 'pum*'}": true, "{ou: '*'}": true,
		"{san: 'dns:*'}": true, "{san: '*.north.example'}": true, "{san: 'ip:*'}": false,
		"{label: {site: north}}": true, "{label: {site: [south, 'no*']}}": true, "{label: {site: south}}": false, "{label: {line: '*'}}": false,
		"{model: pi4, protection: tpm}": true, "{model: pi4, protection: software}": false,
		"{batch: 'lot-*', station: bench-1}": true, "{id: ['pi-*']}": true, "{id: pi}": false,
	} {
		for _, as := range []string{"when", "unless"} {
			p := mustParse(t, "version: 1\nrules:\n- {rule: x, role: device, allow: publish, "+as+": "+when+", topics: a}\n- {rule: y, role: device, allow: publish, topics: b}\n")
			s, err := base.Subject()
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Allow(s, Publish, "a").Allowed; got != (want == (as == "when")) {
				t.Errorf("%s %s: %v", as, when, got)
			}
		}
	}
}

func TestNamesAreThoseOfTheCertificate(t *testing.T) {
	u, err := url.Parse("spiffe://fleet.example/device/pi-1")
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{DNSNames: []string{"pi-1.example"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}, EmailAddresses: []string{"ops@fleet.example"}, URIs: []*url.URL{u}}
	want := []string{"dns:pi-1.example", "ip:192.0.2.1", "email:ops@fleet.example", "uri:spiffe://fleet.example/device/pi-1"}
	if got := Names(c); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if Names(nil) != nil {
		t.Error("no certificate has names")
	}
}

func TestExpectationsNameEachSurprise(t *testing.T) {
	e, err := ParseExpectations([]byte(`
tests:
  - who: {role: device, id: pi-1, label: {site: north}}
    allowed:
      publish: d/pi-1/tele/machine
      subscribe: [d/pi-1/cmd/#, g/site=north/cmd/#, g/site=south/cmd/#]
    denied:
      subscribe: ["#", $share/x/d/pi-2/cmd/#]
      receive: d/pi-1/cmd/reboot/1
  - who: {role: service, id: grafana}
    by: service-telemetry
    allowed: {subscribe: [d/+/tele/#, $SYS/#]}
`))
	if err != nil {
		t.Fatal(err)
	}
	looked, surprises, err := e.Check(Default())
	if err != nil || looked != 9 || len(surprises) != 3 {
		t.Fatalf("%d, %+v, %v", looked, surprises, err)
	}
	for i, want := range []string{"g/site=south/cmd/#", "d/pi-1/cmd/reboot/1", "$SYS/#"} {
		if surprises[i].Got.Topic != want || surprises[i].Got.Why == "" {
			t.Errorf("%+v, want %s", surprises[i], want)
		}
	}
	for text, want := range map[string]string{
		"tests: []": "none", "tests: [{who: {role: device, id: pi-1}}]": "expects nothing", "tests: [{who: {role: hub, id: x}, allowed: {publish: a}}]": "role",
		"tests: [{who: {role: device, id: 'a b'}, allowed: {publish: a}}]": "id", "tests: [{who: {role: service, id: x, model: y}, allowed: {publish: a}}]": "only devices",
		"tests: [{who: {role: device, id: a}, allow: {publish: a}}]": "allow",
	} {
		if _, err := ParseExpectations([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestExplanationSaysWhy(t *testing.T) {
	p := mustParse(t, `version: 1
rules:
- {rule: read, role: service, allow: subscribe, topics: "d/+/evt/#"}
- {rule: keys, role: service, deny: subscribe, unless: {ou: security}, topics: "d/+/evt/key"}
- {rule: write, role: service, allow: publish, when: {ou: ops}, topics: "d/+/cmd/#"}
`)
	unseen := backend
	unseen.Unseen = true
	security := backend
	security.OU = []string{"security"}
	for _, tt := range []struct {
		s      Subject
		action Action
		topic  string
		wants  []string
	}{
		{backend, Subscribe, "d/+/evt/#", []string{"can match what rule 2 (keys) denies", "applies", "applies"}},
		{backend, Receive, "d/pi-1/evt/key", []string{"rule 2 (keys) denies it, and deny wins", "applies", "applies"}},
		{backend, Receive, "d/pi-1/evt/door", []string{"rule 1 (read) allows it", "is about other topics", "applies"}},
		{security, Subscribe, "d/+/evt/#", []string{"rule 1 (read) allows it", "is not for ou security", "applies"}},
		{security, Subscribe, "d/#", []string{"no line of a rule allows everything", "is not for ou security", "doesn't allow all that the filter can match"}},
		{security, Subscribe, "$share/g/d/+/evt/#", []string{"no line", "is not for ou security", "takes no shared subscriptions"}},
		{backend, Publish, "d/pi-1/cmd/x/1", []string{"no rule allows it", "is for ou ops only"}},
		{unseen, Publish, "d/pi-1/cmd/x/1", []string{"no rule allows it", "depends on what isn't known: ou ops"}},
		{unseen, Receive, "d/pi-1/evt/key", []string{"deny wins", "applies, because it isn't known: ou security", "applies"}},
		{backend, Publish, "$SYS/x", []string{"hub's own"}},
		{backend, Publish, "a/+", []string{"no topic name"}},
		{backend, Subscribe, "a/#/b", []string{"no topic filter"}},
		{Subject{Role: identity.RoleOperator, ID: "ann"}, Publish, "a", []string{"only devices and services"}},
	} {
		e := p.Explain(tt.s, tt.action, tt.topic)
		got := []string{e.Why}
		for _, c := range e.Considered {
			got = append(got, c.Why)
		}
		if len(got) != len(tt.wants) {
			t.Errorf("%s %s: %q", tt.action, tt.topic, got)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], tt.wants[i]) {
				t.Errorf("%s %s: %q, want %q", tt.action, tt.topic, got[i], tt.wants[i])
			}
		}
	}
}

// FuzzParse: whatever a file holds, it is refused or decides.
func FuzzParse(f *testing.F) {
	f.Add(Shipped(), "d/pi-1/tele/machine")
	f.Add([]byte("version: 1\nrules:\n- {rule: x, role: device, deny: [subscribe], unless: {label: {a: '*'}}, topics: ['${id}/${label}', '+/x${label.a}y/#']}\n"), "$share/g/+/#")
	f.Add([]byte("version: 1\nrules: !!binary x"), "#")
	f.Fuzz(func(t *testing.T, data []byte, topic string) {
		p, err := Parse(data)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines: %q", err)
			}
			return
		}
		s := pi("a=b")
		for _, a := range []Action{Publish, Subscribe, Receive} {
			if e, d := p.Explain(s, a, topic), p.Allow(s, a, topic); e.Allowed != d.Allowed || e.Why == "" {
				t.Errorf("%s %q: %+v explained by %+v", a, topic, d, e)
			}
		}
	})
}

func TestWildcardsOfClientsDontReachTheHubsOwnTopicsAndThoseOfDenyRulesDo(t *testing.T) {
	open := "version: 1\nrules:\n- {rule: all, role: service, allow: subscribe, topics: ['#', '$SYS/#', '$other/a']}\n"
	for _, tt := range []struct {
		deny, filter string
		want         bool
	}{
		{"$SYS/#", "#", true}, {"$SYS/#", "+/a", true}, {"$SYS/#", "a/#", true}, {"$SYS/broker/+", "$SYS/#", false}, {"$SYS/a", "$SYS/b", true}, {"$SYS/a", "$SYS/+", false},
		{"#", "$SYS/#", false}, {"+/a", "$other/a", false}, {"+/b", "$other/a", true}, {"a/#", "$SYS/#", true}, {"a/#", "a", false}, {"a/+/c", "a/b/#", false}, {"a/+/c", "a/b", true},
		{"a//b", "a/+/b", false}, {"a/+/b", "a//b", false}, {"a/b", "$share/x/#", false}, {"a/b", "$share/x/a/+", false},
	} {
		p := mustParse(t, strings.Replace(open, "subscribe,", "subscribe, shared: true,", 1)+"- {rule: no, role: service, deny: subscribe, topics: '"+tt.deny+"'}\n")
		if d := p.Allow(backend, Subscribe, tt.filter); d.Allowed != tt.want {
			t.Errorf("%s with %s denied: %+v", tt.filter, tt.deny, d)
		}
	}
	all := mustParse(t, strings.Replace(open, ", '$SYS/#', '$other/a'", "", 1))
	for topic, want := range map[string]bool{"#": true, "+/#": true, "$SYS/#": false, "$SYS": false, "a/$SYS": true} {
		if d := all.Allow(backend, Subscribe, topic); d.Allowed != want {
			t.Errorf("# allowed: %s is %+v", topic, d)
		}
	}
}
