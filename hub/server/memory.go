package server

import (
	"context"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"syscall"
	"time"
)

// The garbage collector runs seldom in a busy hub (see gcPercent in hub serve), which
// saves processor time; what a storm has left behind would stay for minutes. So
// memory is given back when the hub has little else to do.
const (
	tidyInterval = 5 * time.Second
	tidySlack    = 16 << 20 // octets that are not worth it
	tidyIdle     = 0.2      // of one core, used since the last look
)

// tidy gives memory back to the system in quiet times, until ctx ends.
func tidy(ctx context.Context) {
	tick := time.NewTicker(tidyInterval)
	defer tick.Stop()
	sample := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	used, tidied := processorTime(), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		before := used
		used = processorTime()
		runtimemetrics.Read(sample)
		live, resident := sample[0].Value.Uint64(), sample[1].Value.Uint64()-sample[2].Value.Uint64()
		busy := float64(used-before) > tidyIdle*float64(tidyInterval)
		// What was left after the last time is needed, as far as that could tell.
		if busy || resident < max(live+live/2, tidied+tidied/8)+tidySlack {
			continue
		}
		debug.FreeOSMemory()
		runtimemetrics.Read(sample)
		tidied = sample[1].Value.Uint64() - sample[2].Value.Uint64()
	}
}

// processorTime returns what the process has used so far.
func processorTime() time.Duration {
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
