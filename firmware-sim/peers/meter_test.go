package peers

import (
	"errors"
	"sync/atomic"
	"time"
)

// creditBatch is how many messages one credit allows.
const creditBatch = 20

// meter counts deliveries and gives publishers credit for more messages when all deliveries of earlier ones have arrived, so
// that no server has to drop a message because its subscribers lag.
type meter struct {
	each   int64 // deliveries that make one credit
	total  atomic.Int64
	credit chan struct{}
}

// newMeter returns a meter that gives ahead credits at once, and one more for every creditBatch messages that have reached
// all of so many subscribers.
func newMeter(ahead, subscribers int) *meter {
	m := &meter{each: int64(creditBatch * subscribers), credit: make(chan struct{}, 1<<20)}
	for range ahead {
		m.credit <- struct{}{}
	}
	return m
}

func (m *meter) add(n int) {
	after := m.total.Add(int64(n))
	for credits := after/m.each - (after-int64(n))/m.each; credits > 0; credits-- {
		m.credit <- struct{}{}
	}
}

// errLost is returned when deliveries don't come.
var errLost = errors.New("the server has lost messages")

// wait takes one credit.
func (m *meter) wait() error {
	select {
	case <-m.credit:
		return nil
	default:
	}
	select {
	case <-m.credit:
		return nil
	case <-time.After(patience):
		return errLost
	}
}
