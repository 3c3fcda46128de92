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
	tidyUnused   = 10       // looks before what is given back would be used again
)

// memory is how much a process has, in octets.
type memory struct {
	live      uint64 // after the last collection
	resident  uint64
	allocated uint64 // since it began
}

func readMemory() memory {
	sample := []runtimemetrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"}, {Name: "/gc/heap/allocs:bytes"},
	}
	runtimemetrics.Read(sample)
	value := func(i int) uint64 { return sample[i].Value.Uint64() }
	return memory{live: value(0), resident: value(1) - value(2), allocated: value(3)}
}

// leftBehind reports whether much of the memory is needed no more. What was left after it
// was last given back is needed, as far as that could tell; and what the program would soon
// allocate again costs more to give back, page by page, than it is worth.
func (m memory) leftBehind(before memory, tidied uint64) bool {
	needed := max(m.live+m.live/2, tidied+tidied/8) + tidySlack
	return m.resident > needed && (m.allocated-before.allocated)*tidyUnused < m.resident-needed
}

// tidy gives memory back to the system in quiet times, until ctx ends.
func tidy(ctx context.Context) {
	tick := time.NewTicker(tidyInterval)
	defer tick.Stop()
	used, has, tidied := processorTime(), readMemory(), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		usedBefore, before := used, has
		used, has = processorTime(), readMemory()
		busy := float64(used-usedBefore) > tidyIdle*float64(tidyInterval)
		if busy || !has.leftBehind(before, tidied) {
			continue
		}
		debug.FreeOSMemory()
		tidied = readMemory().resident
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
