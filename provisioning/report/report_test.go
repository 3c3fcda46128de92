package report

import (
	"bytes"
	"encoding/csv"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/provisioning/ledger"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// The formulas and the markup that a model, an order or a detail may be.
var hostile = []string{`=HYPERLINK("http://x")`, "+1", "-1", "@SUM(A1)", "\t=1", "</td><script>alert(1)</script>", `"quoted", comma` + "\nline"}

func sample() Report {
	r := Report{Station: "line-1", From: noon.Add(-8 * time.Hour), To: noon, zone: time.UTC}
	for i, text := range hostile {
		r.Devices = append(r.Devices, Device{At: noon.Add(time.Duration(i-8) * 40 * time.Minute), ID: "pi-1", Serial: "0a", Model: text, OrderName: text, Protection: ledger.TPM})
	}
	r.AddRefusals([]Refusal{
		{At: noon.Add(-time.Minute), Address: "192.0.2.1", Reason: "order", Detail: hostile[0], Count: 3},
		{At: noon.Add(-9 * time.Hour), Reason: "before"},
		{At: noon, Reason: "after"},
	}, noon.Add(-time.Hour))
	return r
}

func TestNoCellOfTheCSVIsAFormula(t *testing.T) {
	var out bytes.Buffer
	if err := sample().WriteCSV(&out); err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(&out).ReadAll()
	if err != nil || len(lines) != 1+len(hostile)+1 {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	for i, line := range lines {
		if len(line) != len(columns) {
			t.Errorf("line %d has %d cells", i, len(line))
		}
		for _, cell := range line {
			if cell != "" && strings.ContainsRune("=+-@\t\r\n", rune(cell[0])) {
				t.Errorf("%q", cell)
			}
		}
	}
	if lines[3][5] != "'-1" || lines[7][5] != hostile[6] || lines[8][1] != "refused" || lines[8][13] != "3" || lines[1][0] != "2026-11-22T06:40:00Z" {
		t.Errorf("%q", lines)
	}
}

func TestPageEscapesAndSaysSinceWhenRefusalsAreKnown(t *testing.T) {
	var out bytes.Buffer
	r := sample()
	if err := r.WriteHTML(&out); err != nil {
		t.Fatal(err)
	}
	page := out.String()
	for _, want := range []string{"7 certificates issued", "&lt;script&gt;", "Noted since 2026-11-22 11:00:00", "192.0.2.1", "<td>3</td>"} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is missing", want)
		}
	}
	for _, bad := range []string{"<script", "before", "after", "http-equiv", " src="} {
		if strings.Contains(page, bad) {
			t.Errorf("%q is there", bad)
		}
	}
	r.RefusalsSince = time.Time{}
	out.Reset()
	if err := r.WriteHTML(&out); err != nil || !strings.Contains(out.String(), "Not known") {
		t.Errorf("%v", err)
	}
}

func TestHoursAreThoseOfTheClockOnTheWall(t *testing.T) {
	r := sample()
	r.zone = time.FixedZone("", 30*60)
	var total int
	var last time.Time
	for _, h := range r.Hours() {
		if h.Begin.Minute() != 0 || !h.Begin.After(last) {
			t.Errorf("%v", h)
		}
		total, last = total+h.Issued, h.Begin
	}
	if total != len(r.Devices) || last.Hour() != 11 {
		t.Errorf("%d of %d, the last from %v", total, len(r.Devices), last)
	}
}
