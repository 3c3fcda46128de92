package registry

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// fleet is some devices to pick from, at noon.
var noon = time.Date(2026, 4, 25, 12, 0, 0, 0, time.UTC)

func crowd() []Facts {
	north := &Attributes{Model: "pi4", Batch: "lot-0425", Station: "bench-1", Protection: "tpm", OU: []string{"pump", "eu"}, Issuers: []string{"aa"}, Labels: map[string]string{"site": "north", "line": "a"}}
	south := &Attributes{Model: "pi4, \"big\"", Batch: "lot-0426", Station: "bench-2", Protection: "software", Issuers: []string{"bb"}, Labels: map[string]string{"site": "south"}}
	bare := &Attributes{}
	return []Facts{
		{ID: "pi-1", State: StateActive, Attributes: north, Created: noon.AddDate(0, -2, 0), FirstSeen: noon.AddDate(0, -1, 0), LastSeen: noon.Add(-time.Hour), NotAfter: noon.AddDate(0, 0, 10)},
		{ID: "pi-2", State: StateRegistered, Attributes: north, Created: noon.AddDate(0, 0, -3), NotAfter: noon.AddDate(1, 0, 0)},
		{ID: "cam-1", State: StateSuspended, Attributes: south, Created: noon.AddDate(-1, 0, 0), FirstSeen: noon.AddDate(0, -6, 0), LastSeen: noon.AddDate(0, -3, 0), NotAfter: noon.AddDate(0, 0, -1)},
		{ID: "cam-2", State: StateRevoked, Attributes: bare, Created: noon.AddDate(-2, 0, 0), Changed: noon.Add(-time.Minute)},
	}
}

func picks(t testing.TB, text string) string {
	t.Helper()
	s, err := ParseSelector(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	m := s.Matcher(noon)
	var ids []string
	for _, f := range crowd() {
		if m.Match(&f) {
			ids = append(ids, f.ID)
		}
	}
	return strings.Join(ids, " ")
}

func TestSelectorPicks(t *testing.T) {
	all := "pi-1 pi-2 cam-1 cam-2"
	for text, want := range map[string]string{
		"":                                       all,
		"  ":                                     all,
		"id=*":                                   all,
		"id=pi-*":                                "pi-1 pi-2",
		"id=*-1":                                 "pi-1 cam-1",
		"id=*a*-*":                               "cam-1 cam-2",
		"id!=pi-1":                               "pi-2 cam-1 cam-2",
		"id=pi-1|cam-2":                          "pi-1 cam-2",
		"id!=pi-1|cam-2":                         "pi-2 cam-1",
		"id=PI-1":                                "",
		"state=active":                           "pi-1",
		"state=active|registered":                "pi-1 pi-2",
		"state!=revoked":                         "pi-1 pi-2 cam-1",
		"batch=lot-0425,model=pi4,last-seen<30d": "pi-1",
		" batch=lot-0425 , model=pi4 ":           "pi-1 pi-2",
		`model="pi4, \"big\""`:                   "cam-1",
		"model=pi4*":                             "pi-1 pi-2 cam-1",
		`model="pi4*"`:                           "",
		"model=":                                 "cam-2",
		`model=""`:                               "cam-2",
		"model!=":                                "pi-1 pi-2 cam-1",
		"model=*":                                "pi-1 pi-2 cam-1",
		"model=|pi4":                             "pi-1 pi-2 cam-2",
		"station=bench-2":                        "cam-1",
		"protection!=tpm":                        "cam-1 cam-2",
		"ou=eu":                                  "pi-1 pi-2",
		"ou!=eu":                                 "cam-1 cam-2",
		"ou=":                                    "cam-1 cam-2",
		"issuer=bb":                              "cam-1",
		"label.site=north":                       "pi-1 pi-2",
		"label.site!=north":                      "cam-1 cam-2",
		"label.site=*":                           "pi-1 pi-2 cam-1",
		"label.line=":                            "cam-1 cam-2",
		"last-seen<30d":                          "pi-1",
		"last-seen<=1h":                          "pi-1",
		"last-seen<1h":                           "",
		"last-seen>30d":                          "pi-2 cam-1 cam-2", // never is infinitely long ago
		"last-seen>30d,last-seen!=never":         "cam-1",
		"last-seen=never":                        "pi-2 cam-2",
		"first-seen<2026-01-01":                  "pi-2 cam-1 cam-2",
		"first-seen>=2026-01-01T00:00:00+02:00":  "pi-1",
		"registered<1w":                          "pi-2",
		"changed<2m":                             "cam-2",
		"expires<30d":                            "pi-1 cam-1",
		"expires<0s":                             "cam-1",
		"expires>30d":                            "pi-2",
		"expires=never":                          "cam-2",
		"expires<2026-05-01":                     "cam-1",
	} {
		if got := picks(t, text); got != want {
			t.Errorf("%q picks %q, want %q", text, got, want)
		}
	}
}

func TestSelectorRefusesWhatItDoesNotKnow(t *testing.T) {
	for text, say := range map[string]string{
		"bacth=lot-1":                    "there is no field",
		"=x":                             "there is no field",
		"site=north":                     "label.KEY",
		"label.=x":                       "there is no field",
		"label./=x":                      "there is no field",
		"state=activ":                    "is no state",
		"state=":                         "is no state",
		"model":                          "operator",
		"model<3":                        "is text",
		"model=a b":                      "comma is missing",
		"model=pi4;state=active":         "comma is missing",
		"model=pi4,":                     "there is no field",
		",model=pi4":                     "there is no field",
		`model="pi4`:                     "no end",
		`model="a\n"`:                    "backslash",
		`model="a" b`:                    "comma is missing",
		"last-seen=30d":                  "is a time",
		"last-seen<never":                "compared with never by",
		"last-seen<soon":                 "neither a duration",
		"last-seen<30":                   "neither a duration",
		"last-seen<-3d":                  "neither a duration",
		"last-seen<2026-13-01":           "neither a duration",
		"last-seen<99999999999999999d":   "neither a duration",
		"\xff":                           "UTF-8",
		strings.Repeat("x", 5000):        "bytes",
		strings.Repeat("id=a,", 40):      "terms",
		"id=" + strings.Repeat("a|", 99): "alternatives",
	} {
		_, err := ParseSelector(text)
		if !errors.Is(err, ErrSelector) || !strings.Contains(err.Error(), say) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 400 {
			t.Errorf("%.60q: %v; want one sentence with %q", text, err, say)
		}
	}
}

func TestSelectorsTogetherPickWhatBothPick(t *testing.T) {
	s, err := ParseSelector("model=pi4")
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]string{"lot-0425": `model=pi4,batch=lot-0425`, `a*,"b"`: `model=pi4,batch="a*,\"b\""`} {
		both := s.And(Equals("batch", value))
		if both.String() != want {
			t.Errorf("%s, want %s", both, want)
		}
		if again, err := ParseSelector(both.String()); err != nil || again.String() != both.String() {
			t.Errorf("it reads back as %s, %v", again, err)
		}
	}
	if s.String() != "model=pi4" || s.Any() || !(Selector{}).Any() {
		t.Error("And changed its receiver")
	}
}

// TestGlobMatchesAsItsDefinition compares with the definition: a star is any text.
func TestGlobMatchesAsItsDefinition(t *testing.T) {
	var slow func(pattern, text string) bool
	slow = func(pattern, text string) bool {
		if pattern == "" {
			return text == ""
		}
		if pattern[0] == '*' {
			return slow(pattern[1:], text) || text != "" && slow(pattern, text[1:])
		}
		return text != "" && pattern[0] == text[0] && slow(pattern[1:], text[1:])
	}
	rapid.Check(t, func(t *rapid.T) {
		pattern, text := rapid.StringMatching(`[ab*]{0,7}`).Draw(t, "pattern"), rapid.StringMatching(`[ab]{0,9}`).Draw(t, "text")
		if got, want := matchGlob(pattern, text), slow(pattern, text); got != want {
			t.Fatalf("%q against %q: %v, want %v", pattern, text, got, want)
		}
	})
}

// FuzzParseSelector: whatever the text, it is refused with a sentence or reads back
// from what it prints and picks the same.
func FuzzParseSelector(f *testing.F) {
	for _, text := range []string{"", "batch=lot-0425,model=pi4,last-seen<30d", `model="a, \"b\"\\"|c*`, "expires>=2026-03-01T08:00:00Z", "label.site!=|*", "id=a|b|c,,", "state=active=", "last-seen!=never", "changed<=2w"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSelector(text)
		if err != nil {
			if !errors.Is(err, ErrSelector) || strings.ContainsAny(err.Error(), "\n\r") {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		again, err := ParseSelector(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q prints %q, which reads as %q, %v", text, s, again, err)
		}
		a, b := s.Matcher(noon), again.Matcher(noon)
		for _, facts := range crowd() {
			first := a.Match(&facts)
			if first != b.Match(&facts) || first != a.Match(&facts) {
				t.Fatalf("%q and %q differ about %s", text, s, facts.ID)
			}
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	s, err := ParseSelector("batch=lot-0425,model=pi4,last-seen<30d")
	if err != nil {
		b.Fatal(err)
	}
	m, facts := s.Matcher(noon), crowd()[0]
	b.ReportAllocs()
	for b.Loop() {
		if !m.Match(&facts) {
			b.Fatal("not picked")
		}
	}
}
