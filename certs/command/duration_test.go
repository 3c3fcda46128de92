package command_test

import (
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/command"
)

func TestLifetimesAreToldInDaysAndYears(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, c := range []struct {
		text string
		want time.Duration // 0: refused
		back string        // how it prints, where not as it was written
	}{
		{"90d", 90 * day, ""},
		{"1d", day, ""},
		{"2y", 730 * day, "730d"},
		{"100y", 36500 * day, "36500d"},
		{"36500d", 36500 * day, ""},
		{"12h", 12 * time.Hour, "12h0m0s"},
		{"48h", 2 * day, "2d"},
		{"36h", 36 * time.Hour, "36h0m0s"},
		{"1h30m", 90 * time.Minute, "1h30m0s"},
		{"30s", 30 * time.Second, ""},
		{"", 0, ""},
		{"0", 0, ""},
		{"0d", 0, ""},
		{"-1d", 0, ""},
		{"-1h", 0, ""},
		{"d", 0, ""},
		{"y", 0, ""},
		{"90", 0, ""},
		{"1.5d", 0, ""},
		{"1d12h", 0, ""},
		{"90 d", 0, ""},
		{"90D", 0, ""},
		{"101y", 0, ""},
		{"36501d", 0, ""},
		{"9223372036854775807y", 0, ""},
		{strings.Repeat("9", 1000) + "d", 0, ""},
	} {
		d := command.Duration(7)
		err := d.Set(c.text)
		if c.want == 0 {
			if err == nil || d != 7 || len(err.Error()) > 200 {
				t.Errorf("%.40q is %s, %.300v; want an error and no change", c.text, d, err)
			}
			continue
		}
		if c.back == "" {
			c.back = c.text
		}
		if err != nil || time.Duration(d) != c.want || d.String() != c.back {
			t.Errorf("%q is %s (%s), %v; want %s (%s)", c.text, time.Duration(d), d, err, c.want, c.back)
		}
		var again command.Duration
		if err := again.Set(d.String()); err != nil || again != d {
			t.Errorf("%s reads back as %s, %v", d, again, err)
		}
	}
}
