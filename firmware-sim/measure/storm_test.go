package measure

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestStormSumsUp(t *testing.T) {
	s := Storm{Devices: 4, Connected: 4, Full: 1, Resumed: 3, AllIn: time.Second, Failures: map[string]Trouble{"closed": {Count: 7, Example: "reset"}}}
	s.Attempted([]uint64{9, 1, 2, 1})
	if s.Attempts.P50 != 1 || s.Attempts.Max != 9 {
		t.Errorf("attempts %+v", s.Attempts)
	}
	if err := s.Failed(); err != nil {
		t.Errorf("all are in, and yet: %v", err)
	}
	var b bytes.Buffer
	if err := s.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"4 (1 full, 3 resumed handshakes)", "max 9", "7 × closed: reset", "1s"} {
		if !strings.Contains(b.String(), part) {
			t.Errorf("the table doesn't say %q:\n%s", part, b.String())
		}
	}
	s.Connected, s.Refused = 3, 1
	if err := s.Failed(); err == nil || !strings.Contains(err.Error(), "1 of 4") {
		t.Errorf("one is missing: %v", err)
	}
	s.Attempted(nil)
}
