package measure

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// exact returns the quantile by its definition.
func exact(sorted []time.Duration, q float64) time.Duration {
	rank := int(math.Ceil(q*float64(len(sorted)) - 1e-9))
	return sorted[max(rank, 1)-1]
}

func TestQuantilesAreCloseToTheTruthAndNeverBelowIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h Histogram
		all := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) time.Duration {
			return time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "d") >> rapid.IntRange(0, 42).Draw(t, "shift"))
		}), 1, 500).Draw(t, "durations")
		for _, d := range all {
			h.Add(d)
		}
		slices.Sort(all)
		if h.Max() != all[len(all)-1] || h.Count() != uint64(len(all)) {
			t.Fatalf("max %s, count %d", h.Max(), h.Count())
		}
		for _, q := range []float64{0.001, 0.5, 0.9, 0.99, 1} {
			want, got := exact(all, q), h.Quantile(q)
			if limit := want + want/sub + 2*time.Microsecond; got < want || got > limit {
				t.Fatalf("quantile %g is %s, want %s to %s", q, got, want, limit)
			}
		}
	})
}

func TestEmptyHistogramIsZero(t *testing.T) {
	var h Histogram
	if h.Quantile(0.5) != 0 || h.Max() != 0 || h.Count() != 0 {
		t.Error("an empty histogram has values")
	}
}

func TestHistogramTakesAnyDuration(t *testing.T) {
	var h Histogram
	for _, d := range []time.Duration{math.MinInt64, -1, 0, math.MaxInt64} {
		h.Add(d)
	}
	if h.Max() != math.MaxInt64 || h.Quantile(0.5) > time.Microsecond {
		t.Errorf("max %d, p50 %d", h.Max(), h.Quantile(0.5))
	}
}

func TestBucketsAreInOrderWithoutGaps(t *testing.T) {
	for b := range bucketCount {
		if low, high := bucketOf(ceilingOf(b)), bucketOf(ceilingOf(b)+1); low != b || (high != b+1 && b != bucketCount-1) {
			t.Fatalf("bucket %d ends at %d µs, which is in %d; the next is in %d", b, ceilingOf(b), low, high)
		}
	}
}

func TestRecorderCountsFromManyGoroutines(t *testing.T) {
	var r Recorder
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				r.Latency.Add(time.Millisecond)
				r.Acked.Add(1)
				r.Error("lost", "the first")
				r.Lag(time.Second)
			}
		})
	}
	wg.Wait()
	s := r.Summary(8, time.Minute)
	if s.Acked != 8000 || s.Errors["lost"].Count != 8000 || s.Failed() != 8000 || s.Lag != time.Second || s.Latency.Max != time.Millisecond || r.Errors() != 8000 {
		t.Errorf("summary is %+v", s)
	}
}

func TestSummaryReadsAsATableAndAsJSON(t *testing.T) {
	var r Recorder
	r.Full.Add(2)
	r.Resumed.Add(1)
	r.Sent.Add(10)
	r.Acked.Add(9)
	r.Error("unacknowledged", "no PUBACK came")
	r.Latency.Add(1234567 * time.Nanosecond)
	r.Lag(time.Second)
	s := r.Summary(3, 5*time.Second)
	var b bytes.Buffer
	if err := s.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"3 (2 full, 1 resumed handshakes)", "10 sent, 9 acknowledged", "p99 1.23ms", "1 × unacknowledged: no PUBACK came", "simulator lag"} {
		if !strings.Contains(b.String(), part) {
			t.Errorf("table doesn't say %q:\n%s", part, b.String())
		}
	}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back Summary
	if err := json.Unmarshal(data, &back); err != nil || back.Errors["unacknowledged"].Count != 1 || back.Connects != 3 {
		t.Errorf("%s: %v", data, err)
	}
}
