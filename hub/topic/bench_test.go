package topic

import (
	"fmt"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
)

// fleetSize is how many devices the benchmarks have, each subscribed to three filters below its own d/<id>/.
const fleetSize = 100_000

// option is about what a broker keeps with a subscription.
type option struct {
	identifier uint32
	qos, flags byte
}

func fleet(x *Index[string, option]) {
	x.Subscribe("d/+/tele/#", "backend", option{qos: 1, identifier: 1})
	x.Subscribe("d/+/evt/#", "backend", option{qos: 1, flags: 1})
	x.Subscribe("presence/#", "backend", option{})
	for i := range fleetSize {
		id := "d-" + strconv.Itoa(i)
		x.Subscribe("d/"+id+"/cmd/#", id, option{})
		x.Subscribe("d/"+id+"/twin/desired", id, option{})
		x.Subscribe("d/"+id+"/sys/#", id, option{})
	}
}

func resident() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkMemory measures what a device's subscription occupies, the filter's own bytes included.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		before := resident()
		x := new(Index[string, option])
		fleet(x)
		b.ReportMetric(float64(resident()-before)/float64(x.Len()), "B/subscription")
		runtime.KeepAlive(x)
	}
}

func BenchmarkMatch(b *testing.B) {
	var x Index[string, option]
	fleet(&x)
	for _, name := range []string{"d/d-7/tele/machine", "d/d-7/twin/desired", "nobody/listens"} {
		b.Run("kept/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				x.Match(name)
			}
		})
	}
	names := make([]string, 4*cacheSlots)
	for i := range names {
		names[i] = fmt.Sprint("d/d-", i%fleetSize, "/tele/", i)
	}
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			x.Match(names[i%len(names)])
		}
	})
	b.Run("kept/parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				x.Match("d/d-7/tele/machine")
			}
		})
	})
	b.Run("kept/parallel-storm", func(b *testing.B) {
		var stop atomic.Bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; !stop.Load(); i++ {
				id := "d-" + strconv.Itoa(i%fleetSize)
				x.Subscribe("d/"+id+"/cmd/#", id, option{})
			}
		}()
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				x.Match(names[i%1000])
			}
		})
		stop.Store(true)
		<-done
	})
}

func BenchmarkSubscribe(b *testing.B) {
	var x Index[string, option]
	fleet(&x)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		id := "d-" + strconv.Itoa(i%fleetSize)
		x.Unsubscribe("d/"+id+"/cmd/#", id)
		x.Subscribe("d/"+id+"/cmd/#", id, option{})
	}
}

// BenchmarkGroup is a command to everyone: gathering the subscribers of one filter, and their coming back.
func BenchmarkGroup(b *testing.B) {
	var x Index[string, option]
	ids := make([]string, fleetSize)
	for i := range ids {
		ids[i] = "d-" + strconv.Itoa(i)
		x.Subscribe("g/site=north/cmd/#", ids[i], option{})
	}
	b.Run("gather", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			x.Match("g/site=north/cmd/reboot/" + strconv.Itoa(i))
		}
	})
	b.Run("resubscribe", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			id := ids[i%len(ids)]
			x.Unsubscribe("g/site=north/cmd/#", id)
			x.Subscribe("g/site=north/cmd/#", id, option{})
		}
	})
}

func BenchmarkRetained(b *testing.B) {
	var r Retained[*option]
	for i := range fleetSize {
		r.Set(fmt.Sprint("d/d-", i, "/twin/desired"), &option{})
		r.Set(fmt.Sprint("d/d-", i, "/twin/reported"), &option{})
		r.Set(fmt.Sprint("presence/d-", i), &option{})
	}
	for _, filter := range []string{"d/d-7/cmd/#", "d/d-7/twin/desired", "presence/#", "d/+/twin/reported"} {
		b.Run(filter, func(b *testing.B) {
			for b.Loop() {
				r.Match(filter)
			}
		})
	}
	b.Run("set", func(b *testing.B) {
		for b.Loop() {
			r.Set("d/d-7/twin/reported", nil)
		}
	})
}
