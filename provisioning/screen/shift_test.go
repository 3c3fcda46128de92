package screen

import (
	"testing"
	"time"

	"github.com/fleethub/fleethub/provisioning/report"
)

func TestShiftIsBoundedByItsTimes(t *testing.T) {
	b := newBench(t, nil)
	b.order(3, "po-1", "", "a", "b", "c")
	l := b.station.Ledger()
	r, _, err := l.Device("b")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		from, to time.Time
		want     int
	}{
		"from is in":     {r.IssuedAt, time.Now().Add(time.Minute), 2},
		"to is out":      {r.IssuedAt.Add(-time.Hour), r.IssuedAt, 1},
		"nothing before": {r.IssuedAt.Add(-2 * time.Hour), r.IssuedAt.Add(-time.Hour), 0},
	} {
		got, err := report.Collect(l, report.Shift{Station: "x", From: c.from, To: c.to})
		if err != nil || len(got.Devices) != c.want {
			t.Errorf("%s: %d, want %d: %v", name, len(got.Devices), c.want, err)
		}
		for i, d := range got.Devices {
			if d.OrderName != "po-1" || len(d.Fingerprint) != 64 || i > 0 && d.At.Before(got.Devices[i-1].At) {
				t.Errorf("%s: %+v", name, d)
			}
		}
	}
}
