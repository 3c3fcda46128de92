package consumer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// SinksConfig says what Sinks stand on.
type SinksConfig struct {
	Consumers *Consumers
	Dir       string        // where the files that sinks name are, unless they say
	Backoff   time.Duration // after a first failure, half to all of it; 0: 2 s. It doubles up to 5 minutes
}

// Sinks are the webhooks of a hub. Its methods may be called concurrently.
type Sinks struct {
	config   SinksConfig
	ctx      context.Context // of every sink
	cancel   context.CancelFunc
	applying sync.Mutex // lets one change at a time

	mu      sync.Mutex // guards what follows
	byName  map[string]*sink
	started bool
}

// NewSinks returns none; see Apply. Close them in any case.
func NewSinks(config SinksConfig) *Sinks {
	if config.Backoff <= 0 {
		config.Backoff = minBackoff
	}
	s := &Sinks{config: config, byName: make(map[string]*sink)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Apply makes the sinks those of a configuration: new ones begin with what is accepted from now on, or where a sink of
// that name had come before; changed ones go on where they are; those that are gone stop, and their places stay. Files
// are read again. On an error about the configuration nothing has changed.
func (s *Sinks) Apply(ctx context.Context, configs []SinkConfig) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	if s.ctx.Err() != nil {
		return nil // closed
	}
	if err := CheckSinks(configs); err != nil {
		return err
	}
	targets := make(map[string]*target)
	for _, c := range configs {
		t, err := c.load(s.config.Dir)
		if err != nil {
			return fmt.Errorf("sink %s: %w", c.Name, err)
		}
		if one, err := s.config.Consumers.Get(c.Name); err == nil && !one.Sink {
			return fmt.Errorf("sink %s: there is a consumer of that name: choose another, or remove that one with `hub consumer delete`", c.Name)
		}
		targets[c.Name] = t
	}
	for _, former := range s.all() {
		t := targets[former.target.Name]
		if t != nil && former.target.same(t) {
			delete(targets, t.Name)
			continue
		}
		former.end()
		if t == nil {
			s.mu.Lock()
			delete(s.byName, former.target.Name)
			s.mu.Unlock()
		}
	}
	var failed error
	for _, t := range targets {
		if err := s.config.Consumers.adopt(ctx, t.Name, t.Filter); err != nil {
			failed = errors.Join(failed, fmt.Errorf("sink %s: %w", t.Name, err))
			if t = s.former(t.Name); t == nil {
				continue
			}
		}
		s.add(t)
	}
	return failed
}

// same reports whether nothing has changed.
func (t *target) same(other *target) bool {
	return t.SinkConfig == other.SinkConfig && bytes.Equal(t.secret, other.secret) && bytes.Equal(t.roots, other.roots)
}

func (s *Sinks) all() []*sink {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*sink, 0, len(s.byName))
	for _, one := range s.byName {
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b *sink) int { return strings.Compare(a.target.Name, b.target.Name) })
	return all
}

// former returns how a sink was before, nil if there was none.
func (s *Sinks) former(name string) *target {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.byName[name]; one != nil {
		return one.target
	}
	return nil
}

func (s *Sinks) add(t *target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := &sink{
		consumers: s.config.Consumers, target: t, client: t.client(), counts: new(sinkCounts),
		backoff: backoff{min: s.config.Backoff, max: maxBackoff}, ended: make(chan struct{}),
	}
	if former := s.byName[t.Name]; former != nil {
		one.counts = former.counts
	}
	s.byName[t.Name] = one
	if s.started {
		one.start(s.ctx)
	}
}

// start begins the sink's goroutine; end stops it. The caller holds mu.
func (s *sink) start(ctx context.Context) {
	ctx, s.stop = context.WithCancel(ctx)
	go s.run(ctx)
}

// end stops the sink and waits until it has. What is being posted is cut off, and posted again by who comes next.
func (s *sink) end() {
	if s.stop == nil { // not started
		return
	}
	s.stop()
	<-s.ended
}

// Start begins to deliver.
func (s *Sinks) Start() {
	s.applying.Lock()
	defer s.applying.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.ctx.Err() != nil {
		return
	}
	s.started = true
	for _, one := range s.byName {
		one.start(s.ctx)
	}
}

// Close stops every sink and waits for it. It is before the journal's Close.
func (s *Sinks) Close() {
	s.applying.Lock()
	defer s.applying.Unlock()
	s.cancel()
	for _, one := range s.all() {
		one.end()
	}
}

// Runs reports whether there is a sink of that name.
func (s *Sinks) Runs(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byName[name] != nil
}

// adopt makes the consumer of a sink, at the journal's end, or gives the one there is the sink's filter.
func (c *Consumers) adopt(ctx context.Context, name, filter string) error {
	one, err := c.Get(name)
	if errors.Is(err, ErrUnknown) {
		_, end := c.Range()
		_, err = c.create(ctx, Consumer{Name: name, Filter: filter, Next: end, Sink: true})
		return err
	}
	if err != nil || one.Filter == filter {
		return err
	}
	held, err := c.entry(name)
	if err != nil {
		return err
	}
	one = held.Consumer
	one.Filter, one.Until = filter, 0 // what was about to be posted is another batch now
	_, err = c.advance(ctx, held, one)
	return err
}

// SinkStatus is what there is to know of a sink.
type SinkStatus struct {
	Name   string `json:"name"`
	URL    string `json:"url"` // without its query
	Filter string `json:"filter"`

	Next        Position  `json:"next"`        // the first record that isn't delivered
	LagRecords  uint64    `json:"lag_records"` // from Next to the journal's end, of whatever kind
	LagMessages int       `json:"lag_messages"`
	LagMore     bool      `json:"lag_more,omitempty"` // there are more than LagMessages: no more were counted
	Oldest      time.Time `json:"oldest,omitzero"`    // when the first message that isn't delivered was accepted

	// Age is Oldest's, by the hub's clock.
	Age time.Duration `json:"-"`

	Delivered    uint64    `json:"delivered"`          // messages, since the hub started
	Failed       uint64    `json:"failed"`             // attempts, likewise
	Lost         uint64    `json:"lost_records"`       // likewise: they were removed from the journal before
	Attempts     int       `json:"attempts,omitempty"` // in vain, of what is being delivered
	LastDelivery time.Time `json:"last_delivery,omitzero"`
	LastError    string    `json:"last_error,omitempty"` // of the last attempt; "": it succeeded
	LastErrorAt  time.Time `json:"last_error_at,omitzero"`
}

// countFor bounds how long Status counts the messages of all sinks, and countMost how many of each.
const (
	countFor  = 2 * time.Second
	countMost = 100_000
)

// Status returns the state of every sink, in order of name, with the messages that wait counted.
func (s *Sinks) Status(ctx context.Context) []SinkStatus {
	list := s.Stats()
	ctx, cancel := context.WithTimeout(ctx, countFor)
	defer cancel()
	for i := range list {
		s.count(ctx, &list[i])
	}
	return list
}

// Stats is Status without LagMessages, and Oldest only while something is being delivered: it reads no disk.
func (s *Sinks) Stats() []SinkStatus {
	list := []SinkStatus{}
	_, end := s.config.Consumers.Range()
	for _, one := range s.all() {
		status := SinkStatus{Name: one.target.Name, URL: one.target.shown(), Filter: one.target.Filter}
		if place, err := s.config.Consumers.Get(status.Name); err == nil {
			status.Next = place.Next
			if end > place.Next {
				status.LagRecords = uint64(end - place.Next)
			}
		}
		one.counts.update(func(c *sinkCounts) {
			status.Delivered, status.Failed, status.Lost, status.Attempts = c.delivered, c.failed, c.lost, c.attempts
			status.Oldest, status.LastDelivery, status.LastError, status.LastErrorAt = c.oldest, c.lastAt, c.err, c.errAt
		})
		s.age(&status)
		list = append(list, status)
	}
	return list
}

func (s *Sinks) age(status *SinkStatus) {
	status.Age = 0
	if !status.Oldest.IsZero() {
		status.Age = max(0, s.config.Consumers.config.Now().Sub(status.Oldest))
	}
}

// count counts what a sink has to deliver.
func (s *Sinks) count(ctx context.Context, status *SinkStatus) {
	f := s.config.Consumers.Feed(status.Filter, max(status.Next, s.config.Consumers.config.Journal.First()))
	defer f.Close()
	for ; status.LagMessages < countMost; status.LagMessages++ {
		m, err := f.TryNext(ctx)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			break
		}
		if status.LagMessages == 0 {
			status.Oldest = m.Time
			s.age(status)
		}
	}
	status.LagMore = true
}
