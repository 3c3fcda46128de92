package fleet

import (
	"context"
	"fmt"
	"sync"
)

// flights keeps two requests of one order from being carried out at the same time, as
// when a client repeats one that it has got no answer to. The zero value is ready.
type flights struct {
	mu  sync.Mutex               // guards ids
	ids map[string]chan struct{} // closed when the order has ended
}

// begin waits until no order is under way under that ID, or ctx ends. Whoever calls it
// calls end once its own has ended.
func (l *flights) begin(ctx context.Context, id string) (end func(), err error) {
	for {
		l.mu.Lock()
		other, busy := l.ids[id]
		if !busy {
			own := make(chan struct{})
			if l.ids == nil {
				l.ids = make(map[string]chan struct{})
			}
			l.ids[id] = own
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.ids, id)
				l.mu.Unlock()
				close(own)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the same order to end: %w", ctx.Err())
		}
	}
}
