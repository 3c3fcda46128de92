package report

import (
	_ "embed"
	"encoding/csv"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"
)

// columns is the header of the CSV.
var columns = [...]string{"time", "result", "id", "serial", "sha256", "model", "order", "protection", "state", "supersedes", "address", "reason", "detail", "count"}

// WriteCSV writes a line a device and a line a refusal, below a header (RFC 4180). Times
// are RFC 3339. No cell is a formula to a spreadsheet, whatever a model is called.
func (r Report) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	if err := out.Write(columns[:]); err != nil {
		return err
	}
	line := func(cells ...string) error {
		for i, cell := range cells {
			cells[i] = inert(cell)
		}
		return out.Write(cells)
	}
	for _, d := range r.Devices {
		if err := line(r.stamp(d.At), "issued", d.ID, d.Serial, d.Fingerprint, d.Model, d.OrderName, string(d.Protection), string(d.State), d.Supersedes, "", "", "", "1"); err != nil {
			return err
		}
	}
	for _, f := range r.Refusals {
		if err := line(r.stamp(f.At), "refused", "", "", "", "", "", "", "", "", f.Address, f.Reason, f.Detail, fmt.Sprint(f.Count)); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

// inert keeps a spreadsheet from calculating a cell: OWASP "CSV Injection".
func inert(cell string) string {
	if cell != "" && strings.ContainsRune("=+-@\t\r\n", rune(cell[0])) {
		return "'" + cell
	}
	return cell
}

func (r Report) stamp(at time.Time) string { return at.In(r.zone).Format(time.RFC3339) }

//go:embed report.html
var pageText string

// WriteHTML writes a page that stands by itself: no script, no style or picture from
// anywhere, for a screen and for paper.
func (r Report) WriteHTML(w io.Writer) error {
	page, err := template.New("report").Funcs(template.FuncMap{
		"stamp": func(at time.Time) string { return at.In(r.zone).Format("2006-01-02 15:04:05") },
		"hour":  func(at time.Time) string { return at.In(r.zone).Format("2006-01-02 15:04") },
		"zone":  func(at time.Time) string { return at.In(r.zone).Format("MST -0700") },
	}).Parse(pageText)
	if err != nil {
		return fmt.Errorf("read the report's page: %w", err)
	}
	return page.Execute(w, r)
}
