package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/hub/topic"
)

// ErrFilter is in the chain of Watch's error about a filter that is none.
var ErrFilter = errors.New("invalid topic filter")

// ErrClosed is returned by Watch when the broker stops.
var ErrClosed = errors.New("the hub is stopping")

// Message is a message as an operator sees it. Payload is shared: nobody may
// write to it.
type Message struct {
	Topic    string
	Payload  []byte
	QoS      byte
	Retained bool      // was stored before the watch began
	Time     time.Time // when the hub accepted it
	Missed   uint64    // messages dropped since the one before, because the watcher lagged

	number uint64
}

// watcher is one Watch under way.
type watcher struct {
	filter string
	queue  chan Message
	missed atomic.Uint64
	b      *Broker
}

// watchers are all of them, as an immutable list.
type watchers struct {
	mu   sync.Mutex // held by who changes list
	list atomic.Pointer[[]*watcher]
}

func (w *watchers) any() bool { return w.list.Load() != nil }

func (w *watchers) len() int {
	if list := w.list.Load(); list != nil {
		return len(*list)
	}
	return 0
}

func (w *watchers) add(one *watcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*watcher
	if old := w.list.Load(); old != nil {
		list = append(list, *old...)
	}
	list = append(list, one)
	w.list.Store(&list)
}

func (w *watchers) remove(one *watcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*watcher
	for _, other := range *w.list.Load() {
		if other != one {
			list = append(list, other)
		}
	}
	if len(list) == 0 {
		w.list.Store(nil)
		return
	}
	w.list.Store(&list)
}

// show gives a message to the watchers whose filter matches it. Its payload must be
// nobody's buffer if there are any.
func (w *watchers) show(m *message) {
	list := w.list.Load()
	if list == nil {
		return
	}
	for _, one := range *list {
		if topic.Match(one.filter, m.Topic) {
			one.show(m)
		}
	}
}

func (w *watcher) show(m *message) {
	select {
	case w.queue <- messageOf(m):
	default:
		w.missed.Add(1)
		w.b.counters.watchDropped.Add(1)
	}
}

// Watch delivers every message that matches filter, from retained ones on,
// until ctx ends, and returns nil then. It returns ErrClosed when the broker
// stops. deliver is called on Watch's goroutine, one message at a time. A
// watcher that lags more than Config.WatchQueue messages behind misses some;
// nobody waits for it.
//
// It is for operators, who may see everything but $-topics: policy is not asked.
func (b *Broker) Watch(ctx context.Context, filter string, deliver func(Message)) error {
	if !topic.ValidFilter(filter) || strings.HasPrefix(filter, "$") {
		return fmt.Errorf("%w %q: levels are separated by /, + stands for a whole level, # for the rest", ErrFilter, filter)
	}
	if !b.enter() {
		return ErrClosed
	}
	defer b.serving.Done()
	w := &watcher{filter: filter, queue: make(chan Message, b.config.WatchQueue), b: b}
	b.watchers.add(w)
	defer b.watchers.remove(w)
	// Past the queue, which a fleet's retained messages would overflow.
	shown := make(map[uint64]bool) // a message may become retained, and be shown, while we look
	for _, name := range b.retained.Match(filter) {
		if ctx.Err() != nil {
			return nil
		}
		if m, ok := b.retained.Get(name); ok && !expired(m, b.config.Now()) {
			seen := messageOf(m)
			seen.Retained = true
			shown[m.Number] = true
			deliver(seen)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.context.Done():
			return ErrClosed
		case m := <-w.queue:
			if shown[m.number] {
				continue
			}
			m.Missed = w.missed.Swap(0)
			deliver(m)
		}
	}
}

func messageOf(m *message) Message {
	return Message{Topic: m.Topic, Payload: m.Payload, QoS: m.QoS, Time: m.Time.UTC(), number: m.Number}
}
