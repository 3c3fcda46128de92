package scenario

import (
	"errors"
	"fmt"
	"time"
)

// Storm is a fleet that reconnects all at once, as after a power cut or a restart of
// its hub.
type Storm struct {
	Devices     int
	Tickets     int           // of them, those that have earned a session ticket before
	ConnectRate Rate          // at which these earn it
	Limit       time.Duration // how long the storm may last
}

// Validate returns an error naming the flag that is out of bounds.
func (s Storm) Validate() error {
	switch {
	case s.Devices < 1 || s.Devices > MaxDevices:
		return fmt.Errorf("--devices %d: must be 1 to %d", s.Devices, MaxDevices)
	case s.Tickets < 0 || s.Tickets > s.Devices:
		return fmt.Errorf("--tickets %d: must be 0 to --devices", s.Tickets)
	case s.ConnectRate <= 0:
		return errors.New("--connect-rate: missing, such as 200/s")
	case s.Limit <= 0:
		return fmt.Errorf("--limit %s: must be more than nothing", s.Limit)
	}
	return nil
}
