package consumer

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/hub/ingest"
)

// BenchmarkFeed reads messages of 128 bytes back from the journal; BenchmarkFeedOfOthers those that no filter picks.
func BenchmarkFeed(b *testing.B) { benchmarkFeed(b, "d/pi-1/#", 1) }

func BenchmarkFeedOfOthers(b *testing.B) { benchmarkFeed(b, "d/pi-1/x", 0) }

func benchmarkFeed(b *testing.B, filter string, part int) {
	r := newRig(b)
	const n = 20_000
	for range n {
		r.from(ingest.Sender{Role: ingest.SenderDevice, ID: "pi-1"}, "d/pi-1/tele", strings.Repeat("x", 128))
	}
	r.publish("pi-1", "last")
	b.ReportAllocs()
	got := 0
	for b.Loop() {
		f := r.consumers.Feed(filter, 1)
		for {
			if _, err := f.TryNext(b.Context()); err != nil {
				break
			}
			got++
		}
		f.Close()
	}
	b.StopTimer()
	if got != part*b.N*(n+1) {
		b.Fatalf("%d messages", got)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/message")
}

// BenchmarkSink delivers messages of 128 bytes, 100 at a time, to an HTTPS server in the same process, places stored in a
// real store.
func BenchmarkSink(b *testing.B) {
	r := newRig(b)
	taken := make(chan struct{}, 1)
	web := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil || strings.Contains(string(body), `"last"`) {
			taken <- struct{}{}
		}
	}))
	defer web.Close()
	config := r.sinkAt(web, "warehouse")
	s := NewSinks(SinksConfig{Consumers: r.consumers, Dir: r.dir})
	defer s.Close()
	r.must(s.Apply(b.Context(), []SinkConfig{config}))
	for range b.N {
		r.from(ingest.Sender{Role: ingest.SenderDevice, ID: "pi-1"}, "d/pi-1/tele", strings.Repeat("x", 128))
	}
	r.publish("pi-1", "last")
	b.ResetTimer()
	s.Start()
	<-taken
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
