package journal

import (
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkAppendersWaitingForTheirCommit is what the broker does: 50 publishers, each with so many records of 200 B in
// flight, each of which waits for its own commit. cpu-µs is user and system time of the whole process per record.
func BenchmarkAppendersWaitingForTheirCommit(b *testing.B) {
	for _, inflight := range []int{1, 32} {
		b.Run(fmt.Sprintf("inflight=%d", inflight), func(b *testing.B) {
			c := Config{Dir: filepath.Join(b.TempDir(), "j"), Retain: Retain{Bytes: -1}}
			j := created(b, c)
			record := make([]byte, 200)
			before := cpu(b)
			b.ResetTimer()
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					told := make(signal, inflight)
					pending := 0
					for range b.N/50 + min(1, max(0, b.N%50-i)) {
						if pending == inflight {
							if err := <-told; err != nil {
								b.Error(err)
							}
							pending--
						}
						if _, err := j.Append(record, told); err != nil {
							b.Error(err)
						}
						pending++
					}
					for range pending {
						if err := <-told; err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			used := cpu(b) - before
			s := j.Stats()
			b.ReportMetric(float64(used.Nanoseconds())/1e3/float64(b.N), "cpu-µs/record")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(s.Committed)/float64(s.Batches), "records/fsync")
			closed(b, j)
		})
	}
}

// BenchmarkOpen replays a million records of 200 B.
func BenchmarkOpen(b *testing.B) {
	const records = 1_000_000
	c := Config{Dir: filepath.Join(b.TempDir(), "j")}
	j := created(b, c)
	record := make([]byte, 200)
	for i := range records {
		if _, err := j.Append(record, nil); err != nil {
			b.Fatal(err)
		}
		if i%10_000 == 0 {
			if err := j.Sync(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	closed(b, j)
	before := cpu(b)
	for b.Loop() {
		n := 0
		j, err := Open(c, func(Position, []byte) error { n++; return nil })
		if err != nil || n != records {
			b.Fatal(n, err)
		}
		closed(b, j)
	}
	b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/1e3/float64(b.N)/records, "cpu-µs/record")
}

// cpu returns the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
