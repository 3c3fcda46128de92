package listener

import (
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// never is a deadline that no test reaches.
var never = time.Now().Add(time.Hour)

// queueUp has a goroutine for each lane enter it, in that order, and returns where the
// numbers of those served arrive.
func queueUp(t *testing.T, l *lanes, order ...lane) <-chan int {
	t.Helper()
	served := make(chan int, len(order))
	var waiting sync.WaitGroup
	t.Cleanup(waiting.Wait)
	for i, in := range order {
		before := l.length(in)
		waiting.Go(func() {
			if _, err := l.enter(in, never, nil); err != nil {
				t.Errorf("number %d: %v", i, err)
			}
			served <- i
		})
		until(t, "it waits", func() bool { return l.length(in) == before+1 })
	}
	return served
}

func (l *lanes) length(in lane) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.queues[in].Len()
}

func TestLanesAreServedInOrder(t *testing.T) {
	const b, r, f = laneBegun, laneResumed, laneFull
	tests := []struct {
		name  string
		queue []lane
		want  []int
	}{
		{"first come, first served", []lane{f, f, f}, []int{0, 1, 2}},
		{"resumed before full", []lane{f, r, f, r}, []int{1, 3, 0, 2}},
		{"begun before all", []lane{f, r, b, r, b}, []int{2, 4, 1, 3, 0}},
		{"a full one's turn comes", []lane{f, f, r, r, r, r, r, r, r, r, r}, []int{2, 3, 4, 5, 6, 7, 8, 0, 9, 10, 1}},
		{"and begun ones don't delay it", []lane{f, b, r, r, r, r, r, r, r, r}, []int{1, 2, 3, 4, 5, 6, 7, 8, 0, 9}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := &lanes{}
			served := queueUp(t, l, tt.queue...)
			var got []int
			for range tt.queue {
				l.leave()
				got = append(got, <-served)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("served %v, want %v", got, tt.want)
			}
			l.leave()
			if l.free != 1 {
				t.Errorf("%d rights at the end of 1", l.free)
			}
		})
	}
}

func TestLanesRefuseAndDrop(t *testing.T) {
	closed := make(chan struct{})
	close(closed)
	tests := []struct {
		name     string
		deadline time.Time
		done     <-chan struct{}
		limit    int
		want     error
	}{
		{"full queue", never, nil, 1, errQueueFull},
		{"deadline passed", time.Now().Add(-time.Second), nil, 2, errQueueTimeout},
		{"connection closed", never, closed, 2, net.ErrClosed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := &lanes{}
			l.limits[laneFull] = tt.limit
			served := queueUp(t, l, laneFull)
			if _, err := l.enter(laneFull, tt.deadline, tt.done); !errors.Is(err, tt.want) {
				t.Errorf("the second ends with %v, want %v", err, tt.want)
			}
			l.leave()
			<-served
			l.leave()
			if l.free != 1 || l.length(laneFull) != 0 {
				t.Errorf("%d rights at the end of 1, %d wait", l.free, l.length(laneFull))
			}
		})
	}
}

// TestNoRightToComputeIsLost: also when the end of a wait and its turn coincide.
func TestNoRightToComputeIsLost(t *testing.T) {
	const computing = 3
	l := &lanes{free: computing}
	l.limits[laneFull] = 20
	var (
		workers sync.WaitGroup
		mu      sync.Mutex
		busy    int
	)
	for range 50 {
		workers.Go(func() {
			for range 100 {
				deadline := time.Now().Add(time.Duration(rand.IntN(200)) * time.Microsecond)
				if _, err := l.enter(lane(rand.IntN(int(laneCount))), deadline, nil); err != nil {
					continue
				}
				mu.Lock()
				if busy++; busy > computing {
					t.Errorf("%d compute", busy)
				}
				mu.Unlock()
				time.Sleep(time.Duration(rand.IntN(50)) * time.Microsecond) // not a wait: the work
				mu.Lock()
				busy--
				mu.Unlock()
				l.leave()
			}
		})
	}
	workers.Wait()
	if l.free != computing {
		t.Errorf("%d rights at the end of %d", l.free, computing)
	}
}

func TestUnansweredHandshakesHoldTheirOwnLaneBack(t *testing.T) {
	l := &lanes{free: 1, window: 1, patience: time.Hour}
	began := func(in lane) *answer {
		t.Helper()
		_, err := l.enter(in, never, nil)
		must(t, err)
		return l.await(in)
	}
	first := began(laneFull)
	served := queueUp(t, l, laneFull, laneFull)
	began(laneResumed) // the other lane is open
	for i := range 2 {
		if _, err := l.enter(laneBegun, never, nil); err != nil { // and what is begun goes on
			t.Error(err)
		}
		l.leave()
		l.answered(first)
		l.answered(first) // once is enough
		if got := <-served; got != i {
			t.Errorf("number %d was served, want %d", got, i)
		}
		first = l.await(laneFull)
	}
	if l.free != 1 {
		t.Errorf("%d rights at the end of 1", l.free)
	}
	l.stop()
}

func TestSilentPeersHoldNobodyBackForLong(t *testing.T) {
	l := &lanes{free: 1, window: 3, patience: time.Millisecond}
	for range 20 {
		if _, err := l.enter(laneFull, never, nil); err != nil {
			t.Fatal(err)
		}
		l.await(laneFull) // for ever
	}
	if n := l.awaited[laneFull].Len(); n > l.window {
		t.Errorf("%d answers count", n)
	}
	l.stop()
}
