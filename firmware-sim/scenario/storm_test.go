package scenario

import (
	"strings"
	"testing"
	"time"
)

func TestStormOutOfBoundsNamesItsFlag(t *testing.T) {
	good := Storm{Devices: 10, Tickets: 10, ConnectRate: 1, Limit: time.Minute}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for flag, spoil := range map[string]func(*Storm){
		"--devices":      func(s *Storm) { s.Devices = 0 },
		"--tickets":      func(s *Storm) { s.Tickets = 11 },
		"--connect-rate": func(s *Storm) { s.ConnectRate = 0 },
		"--limit":        func(s *Storm) { s.Limit = 0 },
	} {
		s := good
		spoil(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}
