package listener

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"
)

func TestLogOfRefusalsIsBounded(t *testing.T) {
	var out bytes.Buffer
	r := refusals{log: slog.New(slog.NewTextHandler(&out, nil))}
	for range 10_000 {
		r.add(&net.TCPAddr{}, "a-storm", "", "of refusals")
	}
	r.add(&net.TCPAddr{}, "something-else", "pi-1", "which is not drowned")
	if n := strings.Count(out.String(), "a-storm"); n < int(refusalLines.burst) || n > 100 {
		t.Errorf("%d lines of 10,000 refusals", n)
	}
	if !strings.Contains(out.String(), "pi-1") {
		t.Error("another reason was drowned")
	}
	spared := r.suppressed()
	logged := strings.Count(out.String(), "a-storm")
	if spared+uint64(logged) != 10_000 {
		t.Errorf("%d logged and %d counted of 10,000", logged, spared)
	}
	r.close()
	if !strings.Contains(out.String(), fmt.Sprintf("reason=a-storm count=%d", spared)) {
		t.Errorf("the log doesn't say how many it was spared:\n%s", out.String())
	}
	r.add(&net.TCPAddr{}, "a-storm", "", "after the end")
	if r.summary != nil {
		t.Error("a summary is due after the end")
	}
}

func TestLogIsToldLaterWhatItWasSpared(t *testing.T) {
	r := refusals{log: slog.New(slog.DiscardHandler)}
	for i := range 2 {
		now := start0.Add(time.Duration(i) * time.Hour)
		for range int(refusalLines.burst) {
			if !r.pass("x", now) {
				t.Fatal("the first lines are not logged")
			}
		}
		if r.pass("x", now) || r.summary == nil {
			t.Fatal("there is no end, or no summary")
		}
		r.summarize()
		if r.summary != nil || r.reasons["x"].suppressed != 0 {
			t.Fatal("the summary is not over")
		}
	}
	r.close()
}
