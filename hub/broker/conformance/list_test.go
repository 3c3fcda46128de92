package conformance

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/hub/wire"
)

// statement is one row of CONFORMANCE.md.
type statement struct {
	version, number string
	chapter, reason string // one of them
}

// statements reads CONFORMANCE.md.
func statements(t *testing.T) []statement {
	t.Helper()
	data, err := os.ReadFile("../../wire/CONFORMANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{"## MQTT 3.1.1": "3.1.1", "## MQTT 5.0": "5.0", "## Without a number": "either"}
	var all []statement
	section := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "## ") {
			section = sections[line]
			continue
		}
		cells := strings.Split(line, " | ")
		if section == "" || len(cells) != 4 || strings.HasPrefix(line, "| n") && !strings.Contains(line, "`") {
			continue // prose, or a table's head
		}
		s := statement{version: section, number: strings.TrimPrefix(cells[0], "| "), reason: strings.TrimSuffix(cells[3], " |")}
		if chapter := regexp.MustCompile("^`(\\w+)`$").FindStringSubmatch(s.reason); chapter != nil {
			s.chapter, s.reason = chapter[1], ""
		}
		versions := []string{s.version}
		if s.version == "either" {
			versions = []string{"3.1.1", "5.0"}
			if cells[1] != "both" {
				versions = []string{cells[1]}
			}
		}
		for _, s.version = range versions {
			all = append(all, s)
		}
	}
	return all
}

// allThemes are the chapters of every test.
func allThemes() []theme { return append(themes(), theme{"open", openRules()}) }

func TestListAndTestsAgree(t *testing.T) {
	tests := make(map[statement]bool) // false: not seen in the list
	seen := make(map[string]bool)
	for _, theme := range allThemes() {
		for _, rule := range theme.rules {
			for _, version := range []byte{wire.V311, wire.V5} {
				for _, number := range rule.numbers(version) {
					name := versionName(version) + " " + number
					if seen[name] {
						t.Errorf("%s has two tests", name)
					}
					seen[name] = true
					tests[statement{version: versionName(version), number: number, chapter: theme.name}] = false
				}
			}
		}
	}
	listed := make(map[string]bool)
	for _, s := range statements(t) {
		name := s.version + " " + s.number
		switch _, tested := tests[s]; {
		case listed[name]:
			t.Errorf("%s is listed twice", name)
		case s.chapter != "" && !tested:
			t.Errorf("%s is listed with a test in chapter %s, which has none of that name", name, s.chapter)
		case s.chapter == "" && s.reason == "":
			t.Errorf("%s is listed with neither test nor reason", name)
		case tested:
			tests[s] = true
		}
		listed[name] = true
	}
	for test, isListed := range tests {
		if !isListed {
			t.Errorf("%s %s has a test in chapter %s and is not listed with it", test.version, test.number, test.chapter)
		}
	}
}

// TestListIsComplete: the statements of a section are numbered from 1, and the specifications have this many.
func TestListIsComplete(t *testing.T) {
	totals := map[string]int{"3.1.1": 141, "5.0": 251}
	sections := make(map[string][]int)
	for _, s := range statements(t) {
		at := strings.LastIndexByte(s.number, '-')
		if !strings.HasPrefix(s.number, "MQTT-") {
			continue
		}
		n, err := strconv.Atoi(s.number[at+1:])
		if err != nil {
			t.Errorf("%s: %v", s.number, err)
		}
		key := s.version + " " + s.number[:at]
		sections[key] = append(sections[key], n)
		totals[s.version]--
	}
	for section, numbers := range sections {
		first := 1
		if section == "5.0 MQTT-2.2.1" {
			first = 2 // there is no MQTT-2.2.1-1
		}
		for i, n := range numbers {
			if n != first+i {
				t.Errorf("%s is numbered %s", section, fmt.Sprint(numbers))
				break
			}
		}
	}
	for version, missing := range totals {
		if missing != 0 {
			t.Errorf("of %s, %d statements are missing", version, missing)
		}
	}
}
