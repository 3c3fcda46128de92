package station

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"testing"
	"time"
)

// BenchmarkBatch is `provisioning batch --count 10000`: keys, certificates and files of
// 10,000 devices, each step durable.
func BenchmarkBatch(b *testing.B) {
	const devices = 10_000
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // as the program does
	s, _ := bench(b)
	s.authority.Load().maxDevices = math.MaxInt32
	out := b.TempDir()
	before := processorTime(b)
	for i := 0; b.Loop(); i++ {
		o := BatchOrder{Prefix: "sim-", Count: devices, Out: filepath.Join(out, fmt.Sprint(i))}
		if _, err := s.Batch(context.Background(), o, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((processorTime(b)-before).Seconds()/float64(b.N), "cpu-s/batch")
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/batch")
	b.ReportMetric(float64(b.N)*devices/b.Elapsed().Seconds(), "devices/s")
}

// processorTime is what this process has used, which a busy machine doesn't change much.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
