package command

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a flag value: what time.ParseDuration takes, and whole days (90d) and
// years of 365 days (2y), in which lifetimes of certificates are told.
type Duration time.Duration

// Set parses text; only positive durations are accepted.
func (d *Duration) Set(text string) error {
	unit := time.Duration(0)
	switch {
	case strings.HasSuffix(text, "d"):
		unit = 24 * time.Hour
	case strings.HasSuffix(text, "y"):
		unit = 365 * 24 * time.Hour
	}
	if unit != 0 {
		n, err := strconv.Atoi(text[:len(text)-1])
		if err != nil || n <= 0 || n > 100*365 {
			return fmt.Errorf("%.40q is not a whole positive number of days (90d) or years (2y)", text)
		}
		if time.Duration(n) > 100*365*24*time.Hour/unit {
			return fmt.Errorf("%.40q is more than 100 years", text)
		}
		*d = Duration(time.Duration(n) * unit)
		return nil
	}
	parsed, err := time.ParseDuration(text)
	if err != nil || parsed <= 0 {
		return fmt.Errorf("%.40q is not a positive duration such as 90d, 2y, 12h or 30s", text)
	}
	*d = Duration(parsed)
	return nil
}

// String returns the duration, in days where it is whole days.
func (d Duration) String() string {
	const day = 24 * time.Hour
	if v := time.Duration(d); v >= day && v%day == 0 {
		return strconv.Itoa(int(v/day)) + "d"
	}
	return time.Duration(d).String()
}

// Type names the value in the help text.
func (d *Duration) Type() string { return "duration" }
