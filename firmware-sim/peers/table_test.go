package peers

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
)

// figure is a row of a table: what was measured, at each peer, and what the hub must reach.
type figure struct {
	name   string
	unit   string // for ReportMetric: a fraction of it has digits
	format string
	values map[string]float64 // by the peer's name

	rival string  // the hub is held against this peer; "": against limit itself
	limit float64 // of hub ÷ rival, or of the hub's value; 0: it is held against nothing
	least bool    // the limit is the least, not the most
}

// verdict says what the hub must reach and whether it did.
func (f figure) verdict() (must string, reached string) {
	if f.limit == 0 {
		return "", ""
	}
	sign, value := "≤", f.values["hub"]
	if f.least {
		sign = "≥"
	}
	must = fmt.Sprintf("%s %s", sign, strings.TrimSpace(fmt.Sprintf(f.format, f.limit)))
	if f.rival != "" {
		must = fmt.Sprintf("%s %.2f × %s", sign, f.limit, f.rival)
		value /= f.values[f.rival]
	}
	if value <= f.limit == !f.least || value == f.limit {
		return must, "yes"
	}
	return must, "NO"
}

// printFigures prints a table with a row for each figure and a column for each peer.
func printFigures(b *testing.B, title string, peers []peer, figures []figure) {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "%s\t", title)
	for _, p := range peers {
		fmt.Fprintf(t, "%s\t", p.name)
	}
	for _, p := range peers[1:] {
		fmt.Fprintf(t, "hub ÷ %s\t", p.name)
	}
	fmt.Fprintln(t, "must reach\treached\t")
	for _, f := range figures {
		fmt.Fprintf(t, "%s\t", f.name)
		for _, p := range peers {
			fmt.Fprintf(t, f.format+"\t", f.values[p.name])
		}
		for _, p := range peers[1:] {
			fmt.Fprintf(t, "%.2f\t", f.values["hub"]/f.values[p.name])
		}
		must, reached := f.verdict()
		fmt.Fprintf(t, "%s\t%s\t\n", must, reached)
		b.ReportMetric(f.values["hub"], f.unit)
	}
	t.Flush()
	b.ReportMetric(0, "ns/op")
}
