package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen at once.
const patience = 30 * time.Second

func inMemory(m *memory) Config {
	return Config{Dir: "j", FS: m, SegmentSize: 3 * pageSize, Retain: Retain{Bytes: 4 * pageSize}, Retry: time.Millisecond}
}

// story is a life of a journal: two processes, several segments, checkpoints and trimming. It goes on after errors, as
// the broker does. Afterwards the process is dead, and checkpoints are those that may be in force.
func story(t *testing.T, m *memory, l *ledger) (checkpoints []Position) {
	c := inMemory(m)
	if err := Create(c); err != nil {
		if err := Create(c); err != nil && m.names["j/"+controlFile] == nil && !m.fault.sticky {
			t.Fatalf("Create doesn't succeed after a failure: %v", err)
		}
	}
	for life := range 2 {
		j, found, err := opened(c)
		if err != nil {
			j, found, err = opened(c) // a supervisor starts the hub again
		}
		if err != nil {
			continue
		}
		if err := l.settle(found, checkpoints...); err != nil {
			t.Fatalf("life %d: %v", life, err)
		}
		for i := range 8 {
			for k := range 3 {
				if l.append(j, 100+700*k) != nil {
					break
				}
			}
			if i == 4 {
				_ = l.append(j, 5*pageSize) // a segment of its own
			}
			l.wait(t)
			if i%4 == 3 {
				if p := j.Last(); j.Checkpoint(p) == nil {
					l.checkpoint = p
					checkpoints = nil
				} else {
					checkpoints = append(checkpoints, p)
				}
			}
		}
		if life == 1 {
			m.kill()
		}
		_ = j.Close()
	}
	m.kill()
	return checkpoints
}

func TestWhateverCallFailsNothingDurableIsLostAndNothingFailedComesBack(t *testing.T) {
	endings := map[string]func(*memory, *rand.Rand) *memory{
		"killed":                  func(m *memory, _ *rand.Rand) *memory { return m.survivor() },
		"power cut, all lost":     func(m *memory, r *rand.Rand) *memory { return m.powerCut(some(r, 0)) },
		"power cut, some written": func(m *memory, r *rand.Rand) *memory { return m.powerCut(some(r, 0.5)) },
	}
	for _, sticky := range []bool{false, true} {
		for _, effect := range []bool{false, true} {
			for ending, survive := range endings {
				t.Run(fmt.Sprintf("sticky=%t/effect=%t/%s", sticky, effect, ending), func(t *testing.T) {
					t.Parallel()
					for n := 1; ; n++ {
						m, l := newMemory(), &ledger{}
						m.arm(fault{at: n, sticky: sticky, effect: effect})
						checkpoints := story(t, m, l)
						if m.calls < n {
							if n < 100 || l.count(durable) == 0 {
								t.Fatalf("the story has only %d calls", n)
							}
							return
						}
						if d := l.count(doubtful); d > 0 && !sticky {
							t.Fatalf("call %d: %d records in doubt after a single failure", n, d)
						}
						again(t, n, survive(m, rand.New(rand.NewPCG(uint64(n), 1))), l, checkpoints)
					}
				})
			}
		}
	}
}

// again opens the journal that a story left, uses it, loses its power and opens it once more.
func again(t *testing.T, n int, m *memory, l *ledger, checkpoints []Position) {
	t.Helper()
	c := inMemory(m)
	j, found, err := opened(c)
	if err != nil {
		if m.names["j/"+controlFile] == nil && len(l.entries) == 0 {
			return // it was never created
		}
		t.Fatalf("call %d: %v", n, err)
	}
	if err := l.settle(found, checkpoints...); err != nil {
		t.Fatalf("call %d: %v", n, err)
	}
	if err := l.append(j, 10); err != nil {
		t.Fatalf("call %d: %v", n, err)
	}
	if err := synced(t, j); err != nil || l.last() != durable {
		t.Fatalf("call %d: %v", n, err)
	}
	m.kill()
	_ = j.Close()
	m = m.powerCut(some(rand.New(rand.NewPCG(uint64(n), 2)), 0.3))
	c.FS = m
	if j, found, err = opened(c); err != nil {
		t.Fatalf("call %d: %v", n, err)
	}
	if err := l.settle(found); err != nil {
		t.Fatalf("call %d: %v", n, err)
	}
	if err := j.Close(); err != nil {
		t.Fatalf("call %d: %v", n, err)
	}
	r, err := check(m, "j", nil)
	if err != nil || !r.Clean || r.Torn != 0 {
		t.Fatalf("call %d: %+v %v", n, r, err)
	}
	if names, _ := m.List("j"); len(names) != r.Segments+2 {
		t.Fatalf("call %d: there are %d segments, and the folder holds %v", n, r.Segments, names)
	}
}

func TestARefusingJournalTellsItsWaitersInOrderThenAcceptsAgainByItself(t *testing.T) {
	m, l := newMemory(), &ledger{}
	c := inMemory(m)
	states := make(chan error, 10)
	c.OnState = func(err error) { states <- err }
	j := created(t, c)
	if err := l.append(j, 10); err != nil || synced(t, j) != nil {
		t.Fatal(err)
	}
	m.arm(fault{at: 1, sticky: true})
	for range 5 {
		if err := l.append(j, 10); err != nil {
			break // the disk was faster than us
		}
	}
	if err := synced(t, j); !errors.Is(err, ErrUnavailable) || !errors.Is(err, errInjected) {
		t.Fatalf("Sync on a broken disk: %v", err)
	}
	if err := <-states; !errors.Is(err, ErrUnavailable) {
		t.Fatalf("OnState was told %v", err)
	}
	if err := l.append(j, 10); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("Append to a refusing journal: %v", err)
	}
	if j.Stats().Refusing == nil || j.Stats().Failed != 1 {
		t.Fatalf("%+v", j.Stats())
	}
	m.arm(fault{})
	if err := <-states; err != nil {
		t.Fatalf("OnState was told %v", err)
	}
	if err := l.append(j, 10); err != nil || synced(t, j) != nil {
		t.Fatalf("Append to a journal that accepts again: %v", err)
	}
	closed(t, j)
	j, found, err := opened(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.settle(found); err != nil {
		t.Fatal(err)
	}
	closed(t, j)
}
