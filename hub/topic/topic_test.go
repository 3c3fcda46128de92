package topic

import (
	"slices"
	"strings"
	"testing"
)

func TestValidFilter(t *testing.T) {
	tests := map[string]bool{
		"#": true, "+": true, "a/+/b": true, "a/#": true, "+/+": true, "/": true, "a//b": true, "+/+/#": true, "/+": true, "a b/ü": true,
		"$share/x/a/#": true, "$share/x/#": true, "$share/x//": true, "$SYS/#": true, "$shared": true, "$sharex/+/a": true,
		"": false, "sport#": false, "a/b+/c": false, "+a": false, "a/#/b": false, "#/a": false, "##": false, "a/##": false, "++": false,
		"$share//x": false, "$share/x": false, "$share/x/": false, "$share/+/x": false, "$share/#/x": false, "$share": false, "$share/": false,
		"$share/a+/x": false, "$share/x/a#": false, "$share/x/#/a": false,
		"a\x00b": false, "a\nb": false, "a\x7fb": false, "\x1f": false,
		strings.Repeat("a", 1024): true, strings.Repeat("a", 1025): false,
		strings.Repeat("/", 15): true, strings.Repeat("/", 16): false, strings.Repeat("+/", 32_000): false, strings.Repeat("/", 65_000): false,
	}
	for filter, want := range tests {
		if got := ValidFilter(filter); got != want {
			t.Errorf("ValidFilter(%.40q) = %v, want %v", filter, got, want)
		}
	}
}

func TestValidName(t *testing.T) {
	tests := map[string]bool{
		"a": true, "a/b": true, "/": true, "//": true, "$SYS/x": true, "d/pi-7/tele/machine": true, "ü": true,
		"": false, "#": false, "+": false, "a/+": false, "a+": false, "a/b#": false, "a\x00": false, "a\tb": false, "\x7f": false,
		strings.Repeat("a", 1024): true, strings.Repeat("a", 1025): false,
		strings.Repeat("/", 15): true, strings.Repeat("/", 16): false, strings.Repeat("/", 65_000): false,
	}
	for name, want := range tests {
		if got := ValidName(name); got != want {
			t.Errorf("ValidName(%.40q) = %v, want %v", name, got, want)
		}
	}
}

func TestCutShare(t *testing.T) {
	tests := []struct {
		filter, share, rest string
		shared              bool
	}{
		{"a/b", "", "a/b", false},
		{"$SYS/#", "", "$SYS/#", false},
		{"$sharex/a/b", "", "$sharex/a/b", false},
		{"$share/x", "", "$share/x", false}, // not a valid filter
		{"$share/x/a", "x", "a", true},
		{"$share/x//", "x", "/", true},
		{"$share/x/$SYS/#", "x", "$SYS/#", true},
		{"$share/workers/d/+/tele/#", "workers", "d/+/tele/#", true},
	}
	for _, tt := range tests {
		if share, rest, shared := CutShare(tt.filter); share != tt.share || rest != tt.rest || shared != tt.shared {
			t.Errorf("CutShare(%q) = %q, %q, %v", tt.filter, share, rest, shared)
		}
	}
}

// TestMatch has the examples of MQTT 5.0 §4.7.1 to §4.7.3 and their edges.
func TestMatch(t *testing.T) {
	tests := []struct {
		filter, name string
		want         bool
	}{
		{"sport/tennis/player1/#", "sport/tennis/player1", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
		{"sport/tennis/player1/#", "sport/tennis/player2", false},
		{"sport/tennis/player1/#", "sport/tennis", false},
		{"sport/#", "sport", true},
		{"sport/#", "sports", false},
		{"sport/#", "sport/", true},
		{"#", "sport", true},
		{"#", "/", true},
		{"sport/tennis/+", "sport/tennis/player1", true},
		{"sport/tennis/+", "sport/tennis/player1/ranking", false},
		{"sport/+", "sport", false},
		{"sport/+", "sport/", true},
		{"+/+", "/finance", true},
		{"/+", "/finance", true},
		{"+", "/finance", false},
		{"+/tennis/#", "sport/tennis", true},
		{"sport/+/player1", "sport/tennis/player1", true},
		{"#", "$SYS/broker", false},
		{"+/monitor/Clients", "$SYS/monitor/Clients", false},
		{"+", "$SYS", false},
		{"$SYS/#", "$SYS/monitor/Clients", true},
		{"$SYS/#", "$SYS", true},
		{"$SYS/monitor/+", "$SYS/monitor/Clients", true},
		{"a/+", "a/$b", true},
		{"ACCOUNTS", "Accounts", false},
		{"a", "a/", false},
		{"a/", "a", false},
		{"/a", "a", false},
		{"a/b", "a/b", true},
		{"a/b", "a/b/c", false},
		{"a/b/c", "a/b", false},
		{"a//b", "a//b", true},
		{"a/+/b", "a//b", true},
	}
	for _, tt := range tests {
		if got := Match(tt.filter, tt.name); got != tt.want {
			t.Errorf("Match(%q, %q) = %v", tt.filter, tt.name, got)
		}
		if got := defined(strings.Split(tt.filter, "/"), strings.Split(tt.name, "/")); got != tt.want {
			t.Errorf("the tests' own definition says %v of %q and %q", got, tt.filter, tt.name)
		}
	}
}

func TestMatchOfManyLevelsStaysOnePass(t *testing.T) {
	name := strings.Repeat("a/", 32_000) + "a"
	for filter, want := range map[string]bool{
		strings.Repeat("+/", 32_000) + "#":   true,
		strings.Repeat("+/", 32_000) + "b":   false,
		strings.Repeat("a/", 32_000) + "a/#": true,
	} {
		if got := Match(filter, name); got != want {
			t.Errorf("Match(%.10q…) = %v, want %v", filter, got, want)
		}
		if n := testing.AllocsPerRun(1, func() { Match(filter, name) }); n != 0 {
			t.Errorf("%v allocations, want 0", n)
		}
	}
}

// defined is MQTT 5.0 §4.7 written for clarity.
func defined(filter, name []string) bool {
	if strings.HasPrefix(name[0], "$") && (filter[0] == "+" || filter[0] == "#") {
		return false
	}
	if last := len(filter) - 1; filter[last] == "#" {
		return len(name) >= last && agree(filter[:last], name[:last])
	}
	return len(filter) == len(name) && agree(filter, name)
}

func agree(filter, name []string) bool {
	for i := range filter {
		if filter[i] != "+" && filter[i] != name[i] {
			return false
		}
	}
	return true
}

// FuzzFilter holds validity against its definition, and every way of matching against each other.
func FuzzFilter(f *testing.F) {
	for _, filter := range []string{
		"#", "+/#", "d/+/cmd/#", "d/pi-1/cmd/#", "$share/g/d/+/tele/#", "$share/g//", "$SYS/#", "a//b", "/", "sport#", "$share//x", "a/+/b/+", "a\x00b", "/+", "a",
		strings.Repeat("+/", 15) + "#", strings.Repeat("/", 16),
	} {
		for _, name := range []string{"d/pi-1/cmd", "d/pi-1/tele/machine", "$SYS/x", "a//b", "/", "a", "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p", "sport#"} {
			f.Add(filter, name)
		}
	}
	f.Fuzz(func(t *testing.T, filter, name string) {
		if got, want := ValidFilter(filter), definedValid(filter); got != want {
			t.Fatalf("ValidFilter(%q) = %v", filter, got)
		}
		if got, want := ValidName(name), definedValid(name) && !strings.ContainsAny(name, "+#") || nameOnly(name); got != want {
			t.Fatalf("ValidName(%q) = %v", name, got)
		}
		_, text, _ := CutShare(filter)
		want := ValidFilter(filter) && ValidName(name) && defined(strings.Split(text, "/"), strings.Split(name, "/"))
		if ValidFilter(filter) && ValidName(name) && Match(text, name) != want {
			t.Fatalf("Match(%q, %q) = %v", text, name, !want)
		}
		var x Index[string, int]
		if x.Subscribe(filter, "key", 1) || x.Len() == 1 != ValidFilter(filter) {
			t.Fatalf("Subscribe(%q): %d subscriptions", filter, x.Len())
		}
		for range 2 { // the second answer is the cache's
			if r := x.Match(name); len(r.Direct)+len(r.Shared) == 1 != want {
				t.Fatalf("Index.Match(%q) of %q: %+v", name, filter, r)
			}
		}
		if x.Unsubscribe(filter, "key") != ValidFilter(filter) || x.Len() != 0 {
			t.Fatalf("Unsubscribe(%q): %d subscriptions", filter, x.Len())
		}
		var kept Retained[int]
		kept.Set(name, 1)
		want = ValidFilter(filter) && defined(strings.Split(filter, "/"), strings.Split(name, "/"))
		if names := kept.Match(filter); slices.Equal(names, []string{name}) != want {
			t.Fatalf("Retained.Match(%q) of %q: %q", filter, name, names)
		}
	})
}

// nameOnly reports whether s is a name although it would be no filter, for want of a share.
func nameOnly(s string) bool {
	return (s == "$share" || strings.HasPrefix(s, "$share/")) && !strings.ContainsAny(s, "+#") && definedValid("x"+s[1:])
}

func definedValid(filter string) bool {
	if filter == "" || len(filter) > 1024 || strings.ContainsFunc(filter, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return false
	}
	levels := strings.Split(filter, "/")
	if len(levels) > 16 {
		return false
	}
	if levels[0] == "$share" {
		if len(levels) < 3 || levels[1] == "" || strings.ContainsAny(levels[1], "+#") || len(levels) == 3 && levels[2] == "" {
			return false
		}
		levels = levels[2:]
	}
	for i, l := range levels {
		if strings.ContainsAny(l, "+#") && l != "+" && !(l == "#" && i == len(levels)-1) {
			return false
		}
	}
	return true
}
