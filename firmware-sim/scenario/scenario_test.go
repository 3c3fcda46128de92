package scenario

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/protocol"
	"pgregory.net/rapid"
)

func TestRatesAreReadPerSecondMinuteOrHour(t *testing.T) {
	for text, want := range map[string]Rate{"1/s": 1, "0.5/s": 0.5, "6/m": 0.1, "3600/h": 1, "2": 2, "100000/s": 100000} {
		if got, err := ParseRate(text); err != nil || math.Abs(float64(got-want)) > 1e-12 {
			t.Errorf("ParseRate(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "/s", "s", "sometimes", "0/s", "-1/s", "NaN/s", "Inf/s", "1/", "1/d", "1/s/s", "100001/s", "1e-9/s"} {
		if got, err := ParseRate(text); err == nil {
			t.Errorf("ParseRate(%q) = %v", text, got)
		}
	}
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"1/s", "0.5/m", "1e3/h", "+5", "0x1p-2/s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRate(s)
		if err != nil {
			return
		}
		if r <= 0 || r > maxRate || r.Interval() <= 0 {
			t.Errorf("%q is %v, every %s", s, r, r.Interval())
		}
		if again, err := ParseRate(r.String()); err != nil || again != r {
			t.Errorf("%v comes back as %v, %v", r, again, err)
		}
	})
}

func TestBoundsNameTheirFlag(t *testing.T) {
	good := Scenario{Devices: 1, Rate: 1, ConnectRate: 1, Size: 1}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for flag, spoil := range map[string]func(*Scenario){
		"--devices":      func(s *Scenario) { s.Devices = 0 },
		"--rate":         func(s *Scenario) { s.Rate = 0 },
		"--connect-rate": func(s *Scenario) { s.ConnectRate = 0 },
		"--duration":     func(s *Scenario) { s.Duration = -1 },
		"--size":         func(s *Scenario) { s.Size = MaxSize + 1 },
	} {
		s := good
		spoil(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

func TestDevicesTakeTurnsAtTheirRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Scenario{
			Devices:  rapid.IntRange(1, 50).Draw(t, "devices"),
			Rate:     Rate(rapid.Float64Range(0.1, 100).Draw(t, "rate")),
			Duration: time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "duration")),
		}
		last := make(map[int]time.Duration)
		for n := range min(s.Messages(), 500) {
			due, turn := s.Due(n), s.Turn(n)
			if due > s.Duration || turn < 0 || turn >= s.Devices {
				t.Fatalf("message %d is due at %s, turn of %d", n, due, turn)
			}
			if before, ok := last[turn]; ok {
				if gap := due - before; (gap - s.Rate.Interval()).Abs() > time.Microsecond {
					t.Fatalf("device %d publishes after %s, want %s", turn, gap, s.Rate.Interval())
				}
			}
			last[turn] = due
		}
	})
}

func TestPayloadHasItsSizeAndIsAReading(t *testing.T) {
	at := time.Now()
	for size := 1; size < 400; size++ {
		b := Payload(size, "sim-0a1b2c3d", 7, at)
		if len(b) != size {
			t.Fatalf("%d bytes, want %d", len(b), size)
		}
		if size < 128 {
			continue // the default has room for a reading
		}
		var r protocol.Reading
		if err := json.Unmarshal(b, &r); err != nil || r.Seq != 7 || r.Boot != "sim-0a1b2c3d" || r.Values["fill"] == nil || r.Time.Unix() != at.Unix() {
			t.Fatalf("%s is %+v, %v", b, r, err)
		}
	}
}
