// Package scenario says what simulated devices do: how many there are, how
// fast they connect, and what each publishes. It knows nothing of networks.
package scenario

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Channel is the telemetry channel that simulated devices publish on.
const Channel = "sim"

// Bounds of a scenario.
const (
	MaxDevices = 1_000_000
	MaxSize    = 256 << 10 // bytes of payload; a hub takes less than MQTT allows
	maxRate    = 100_000   // per second
)

// Scenario is one run.
type Scenario struct {
	Devices     int
	Rate        Rate          // messages of each device
	ConnectRate Rate          // connects of all devices together
	Duration    time.Duration // of publishing; 0 is until told to stop
	Size        int           // bytes of each payload
}

// Validate returns an error naming the flag that is out of bounds.
func (s Scenario) Validate() error {
	switch {
	case s.Devices < 1 || s.Devices > MaxDevices:
		return fmt.Errorf("--devices %d: must be 1 to %d", s.Devices, MaxDevices)
	case s.Rate <= 0:
		return errors.New("--rate: missing, such as 1/s")
	case s.ConnectRate <= 0:
		return errors.New("--connect-rate: missing, such as 200/s")
	case s.Duration < 0:
		return fmt.Errorf("--duration %s: must not be negative; 0 runs until Ctrl-C", s.Duration)
	case s.Size < 1 || s.Size > MaxSize:
		return fmt.Errorf("--size %d: must be 1 to %d bytes", s.Size, MaxSize)
	}
	return nil
}

// Messages returns how many messages all devices together publish in
// Duration, or 0 if it has no end.
func (s Scenario) Messages() int64 {
	return int64(math.Floor(s.Duration.Seconds() * float64(s.Rate) * float64(s.Devices)))
}

// Due returns when, after the start, message n of all (from 0) is due. The
// devices take turns, evenly spread over the time between two messages of
// one: see [Scenario.Turn].
func (s Scenario) Due(n int64) time.Duration {
	return time.Duration(float64(n) / (float64(s.Rate) * float64(s.Devices)) * float64(time.Second))
}

// Turn returns which device publishes message n of all.
func (s Scenario) Turn(n int64) int { return int(n % int64(s.Devices)) }

// Rate is events per second. It is a flag value in the form 10/s, 0.5/s, 6/m
// or 100/h; a bare number is per second.
type Rate float64

// ParseRate reads a rate greater than zero.
func ParseRate(text string) (Rate, error) {
	count, unit, _ := strings.Cut(text, "/")
	n, err := strconv.ParseFloat(count, 64)
	if err != nil || math.IsNaN(n) || n <= 0 {
		return 0, fmt.Errorf("%.40q is not a rate such as 1/s, 0.5/s or 6/m", text)
	}
	switch unit {
	case "s", "":
	case "m":
		n /= 60
	case "h":
		n /= 3600
	default:
		return 0, fmt.Errorf("%.40q is not a rate: its unit must be s, m or h", text)
	}
	if strings.HasSuffix(text, "/") {
		return 0, fmt.Errorf("%.40q is not a rate: its unit must be s, m or h", text)
	}
	if n < 1e-6 || n > maxRate {
		return 0, fmt.Errorf("%.40q is out of bounds: the most is %d/s", text, maxRate)
	}
	return Rate(n), nil
}

// Set, String and Type make Rate a flag value.
func (r *Rate) Set(text string) (err error) {
	parsed, err := ParseRate(text)
	if err == nil {
		*r = parsed
	}
	return err
}

// String returns the rate as ParseRate reads it.
func (r Rate) String() string { return strconv.FormatFloat(float64(r), 'g', -1, 64) + "/s" }

// Type names the flag's value in the help text.
func (r Rate) Type() string { return "rate" }

// Interval returns the time between two events.
func (r Rate) Interval() time.Duration {
	return time.Duration(float64(time.Second) / float64(r))
}
