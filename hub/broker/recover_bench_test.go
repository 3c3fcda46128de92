package broker

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/wire"
)

// anyDevice is a registry that has everybody.
type anyDevice struct{ devices }

func (*anyDevice) Status(string) (registry.Status, bool) {
	return registry.Status{State: registry.StateRegistered}, true
}

// BenchmarkRestore measures the way back of 100,000 sessions with 1,000,000 queued messages of 128 bytes: reading the
// journal and building the sessions, with the file in the page cache.
func BenchmarkRestore(b *testing.B) {
	dir := b.TempDir()
	fillJournal(b, dir, 100_000, 10)
	b.ResetTimer()
	for b.Loop() {
		start := time.Now()
		j, state := openBigJournal(b, dir)
		read := time.Since(start)
		hub, err := New(Config{Devices: new(anyDevice), Journal: j, State: state})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(read.Seconds(), "s-reading")
		b.ReportMetric(time.Since(start).Seconds(), "s-ready")
		if n := hub.Stats().Sessions; n != 100_000 {
			b.Fatalf("%d sessions", n)
		}
		b.StopTimer()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.HeapAlloc>>20), "MiB")
		hub.Close()
		j.Close()
		b.StartTimer()
	}
}

// fillJournal writes sessions with messages queued for each, as they come: each message in turn for all.
func fillJournal(b *testing.B, dir string, sessions, each int) {
	b.Helper()
	j, _ := openBigJournal(b, dir)
	log := ingest.New(j, 0)
	for n := range uint64(sessions) {
		id := fmt.Sprintf("pi-%06d", n+1)
		_, err := log.Session(&ingest.Session{
			Number: n + 1, Key: "device/" + id, Version: 4, Expiry: 24 * time.Hour, Left: time.Now(),
			Subs: []ingest.Subscription{{Subscription: wire.Subscription{Filter: "d/" + id + "/cmd/#", QoS: 1}}},
		}, nil)
		if err != nil {
			b.Fatal(err)
		}
		if n%1000 == 0 {
			must(b, j.Sync(b.Context()))
		}
	}
	payload := make([]byte, 128)
	for k := range each {
		for n := range uint64(sessions) {
			m := &ingest.Message{
				Number: uint64(k*sessions) + n + 1, Time: time.Now(), From: ingest.Sender{Role: ingest.SenderService, ID: "backend"},
				Publish: wire.Publish{Topic: fmt.Sprintf("d/pi-%06d/cmd/step/%d", n+1, k), Payload: payload, QoS: 1},
				Entries: []ingest.Entry{{Session: n + 1, Delivery: ingest.Delivery{ID: uint16(k + 1), QoS: 1}}},
			}
			if _, err := log.Message(m, nil); err != nil {
				b.Fatal(err)
			}
			if n%1000 == 0 {
				must(b, j.Sync(b.Context()))
			}
		}
	}
	must(b, j.Close())
	entries, err := os.ReadDir(dir + "/journal")
	must(b, err)
	b.Logf("%d files", len(entries))
}
