// Package consumer hands what devices sent on to backends: in the order of the journal, from any place in it that is
// still kept, and without loss while a backend is away.
//
//   - consumer.go: Consumers, the named places in the journal and who moves them
//   - feed.go, message.go: the messages from a place on
//   - from.go: a place by words: start, now, -1h, a time, a position
//   - page.go: a part of the messages at a time, for who asks again and again
//   - sink.go, batch.go, post.go: webhooks, each a consumer that posts what comes
//   - sinks.go: the webhooks that hub.yaml names
//
// A place is stored after what was before it has been taken, so a crash between repeats messages and loses none: at
// least once, in order. How far back there is something to read is the journal's business (journal.Retain); whose place
// is no longer kept is told so with a *Gap, and nothing is passed over in silence.
package consumer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/topic"
)

// Position is a place in the journal; see journal.Position.
type Position = journal.Position

// Journal is what is read. *journal.Journal satisfies it.
type Journal interface {
	Read(from Position) *journal.Reader
	First() Position
	Last() Position
	Hold(consumer string, p Position)
	Forget(consumer string)
}

// Offsets keeps the consumers' places: a few bytes under each name, durable when a method returns. Its methods are
// called one at a time. *boltstore.Store satisfies it.
type Offsets interface {
	Consumers(ctx context.Context) (map[string][]byte, error)
	PutConsumer(ctx context.Context, name string, data []byte) error
	DeleteConsumer(ctx context.Context, name string) error
}

// What may be wrong with a request about a consumer.
var (
	ErrUnknown = errors.New("no such consumer")
	ErrExists  = errors.New("there is such a consumer already")
	ErrMoved   = errors.New("the consumer's place is another by now")
	ErrSink    = errors.New("the consumer belongs to a sink in hub.yaml")
	ErrInvalid = errors.New("invalid consumer") // its name, filter or place
	ErrTooMany = errors.New("there are too many consumers")
)

// maxConsumers bounds what is kept in memory and what a start has to read.
const maxConsumers = 1000

// Consumer is a named place in the journal.
type Consumer struct {
	Name    string    `json:"name"`
	Filter  string    `json:"filter"`        // of topics
	Next    Position  `json:"next"`          // the first record that it hasn't taken yet
	Sink    bool      `json:"sink"`          // it is a webhook's, which moves it by itself
	Updated time.Time `json:"updated"`       // when its place was stored last
	Gap     *Gap      `json:"gap,omitempty"` // what it lost and couldn't be told of yet
	// Until is the last record of the batch that a sink is about to post, 0 when there is none: with it a batch that was
	// posted just before a crash is posted again as it was, and its receiver knows it again.
	Until Position `json:"until,omitempty"`
}

// Config says what Consumers stand on. Now and Log may be nil.
type Config struct {
	Journal Journal
	Offsets Offsets
	Now     func() time.Time
	Log     *slog.Logger
}

// Consumers are the named places in a journal. Its methods may be called concurrently.
type Consumers struct {
	config  Config
	writing sync.Mutex // lets one change at a time reach the store

	mu     sync.Mutex // guards what follows; never held across I/O
	byName map[string]*entry
}

// entry is one consumer, replaced and never changed in place.
type entry struct {
	Consumer
	moved chan struct{} // closed when somebody else moved or removed it; kept while its own reader moves it
}

// Open reads the places that are stored and holds them in the journal. A place after the journal's end is of a journal
// that was replaced by an older backup: it is put back to the end, since the records to come get positions from there.
func Open(ctx context.Context, config Config) (*Consumers, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	c := &Consumers{config: config, byName: make(map[string]*entry)}
	stored, err := config.Offsets.Consumers(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the consumers' places: %w", err)
	}
	end := config.Journal.Last() + 1
	for name, data := range stored {
		var one Consumer
		if err := json.Unmarshal(data, &one); err != nil || one.Name != name || validate(name, one.Filter) != nil {
			return nil, fmt.Errorf("the stored place of consumer %.80q can't be read: restore the store from a backup", name)
		}
		if one.Next > end {
			config.Log.Warn("a consumer is ahead of the journal, as after a restore: it goes on from the journal's end", "consumer", name, "at", one.Next, "end", end)
			one.Next, one.Until = end, 0
			if err := c.put(ctx, one, nil); err != nil {
				return nil, err
			}
			continue
		}
		c.byName[name] = &entry{one, make(chan struct{})}
		config.Journal.Hold(name, one.Next)
	}
	return c, nil
}

// ValidName reports whether a consumer, and so a sink, may have that name: 1 to 64 of a-z, 0-9 and -.
func ValidName(name string) bool {
	return name != "" && len(name) <= 64 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// ValidFilter reports whether messages can be picked by that topic filter. A shared one ($share/…) is none: consumers
// share by sharing a name.
func ValidFilter(filter string) bool {
	_, _, shared := topic.CutShare(filter)
	return topic.ValidFilter(filter) && !shared
}

func validate(name, filter string) error {
	if !ValidName(name) {
		return fmt.Errorf("%w: the name %.80q is not 1 to 64 of a-z, 0-9 and -", ErrInvalid, name)
	}
	if !ValidFilter(filter) {
		return fmt.Errorf("%w: %.80q is no topic filter such as d/+/tele/#", ErrInvalid, filter)
	}
	return nil
}

// List returns every consumer, in order of name.
func (c *Consumers) List() []Consumer {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]Consumer, 0, len(c.byName))
	for _, e := range c.byName {
		list = append(list, e.Consumer)
	}
	slices.SortFunc(list, func(a, b Consumer) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Get returns a consumer, or an error that matches ErrUnknown.
func (c *Consumers) Get(name string) (Consumer, error) {
	e, err := c.entry(name)
	if err != nil {
		return Consumer{}, err
	}
	return e.Consumer, nil
}

func (c *Consumers) entry(name string) (*entry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byName[name]
	if e == nil {
		return nil, fmt.Errorf("%w: %.80q; `hub consumer list` names those there are", ErrUnknown, name)
	}
	return e, nil
}

// Range returns the oldest position that can be read and the one that the next record gets.
func (c *Consumers) Range() (first, end Position) {
	return c.config.Journal.First(), c.config.Journal.Last() + 1
}

// Create makes a consumer at a place. Errors match ErrExists, ErrInvalid or ErrTooMany, or are a *Gap if the place is no
// longer kept.
func (c *Consumers) Create(ctx context.Context, name, filter string, next Position) (Consumer, error) {
	return c.create(ctx, Consumer{Name: name, Filter: filter, Next: next})
}

func (c *Consumers) create(ctx context.Context, one Consumer) (Consumer, error) {
	if err := validate(one.Name, one.Filter); err != nil {
		return Consumer{}, err
	}
	if err := c.readable(one.Next); err != nil {
		return Consumer{}, err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	_, exists := c.byName[one.Name]
	n := len(c.byName)
	c.mu.Unlock()
	switch {
	case exists:
		return Consumer{}, fmt.Errorf("%w: %s", ErrExists, one.Name)
	case n >= maxConsumers:
		return Consumer{}, fmt.Errorf("%w: %d; remove one with `hub consumer delete`", ErrTooMany, n)
	}
	if err := c.put(ctx, one, nil); err != nil {
		return Consumer{}, err
	}
	return c.Get(one.Name)
}

// readable refuses a place that there is nothing at.
func (c *Consumers) readable(next Position) error {
	first, end := c.Range()
	if next < first {
		return &Gap{From: next, First: first}
	}
	if next > end {
		return fmt.Errorf("%w: its place can't be %d: the journal ends before %d", ErrInvalid, next, end)
	}
	return nil
}

// Move puts a consumer from one place to another, forwards or back, and gives it another filter unless that is "".
// Whoever reads for it, a sink for one, goes on from there. Errors match ErrUnknown, ErrInvalid, or ErrMoved if it is not
// at from; or are a *Gap if the new place is no longer kept.
func (c *Consumers) Move(ctx context.Context, name string, from, next Position, filter string) (Consumer, error) {
	if err := c.readable(next); err != nil {
		return Consumer{}, err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	e, err := c.entry(name)
	if err != nil {
		return Consumer{}, err
	}
	if e.Next != from {
		return Consumer{}, fmt.Errorf("%w: %s is at %d, not at %d", ErrMoved, name, e.Next, from)
	}
	one := e.Consumer
	if filter != "" && filter != one.Filter {
		if one.Sink {
			return Consumer{}, fmt.Errorf("%w, which says its filter", ErrSink)
		}
		one.Filter = filter
	}
	if err := validate(name, one.Filter); err != nil {
		return Consumer{}, err
	}
	one.Next, one.Until, one.Gap = next, 0, nil
	if err := c.put(ctx, one, nil); err != nil {
		return Consumer{}, err
	}
	close(e.moved)
	return c.Get(name)
}

// Delete removes a consumer and its place. Errors match ErrUnknown, or ErrMoved if it is not at from.
func (c *Consumers) Delete(ctx context.Context, name string, from Position) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	e, err := c.entry(name)
	if err != nil {
		return err
	}
	if e.Next != from {
		return fmt.Errorf("%w: %s is at %d, not at %d", ErrMoved, name, e.Next, from)
	}
	if err := c.config.Offsets.DeleteConsumer(ctx, name); err != nil {
		return fmt.Errorf("remove consumer %s: %w", name, err)
	}
	c.mu.Lock()
	delete(c.byName, name)
	c.mu.Unlock()
	c.config.Journal.Forget(name)
	close(e.moved)
	return nil
}

// advance stores what a consumer's own reader has to say of it, unless somebody else has moved it since held was read:
// then the error matches ErrMoved.
func (c *Consumers) advance(ctx context.Context, held *entry, one Consumer) (*entry, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	e, err := c.entry(one.Name)
	if err != nil || e.moved != held.moved {
		return nil, ErrMoved
	}
	if err := c.put(ctx, one, e.moved); err != nil {
		return nil, err
	}
	return c.entry(one.Name)
}

// put stores a consumer. The caller holds writing, or is Open.
func (c *Consumers) put(ctx context.Context, one Consumer, moved chan struct{}) error {
	one.Updated = c.config.Now().UTC()
	data, err := json.Marshal(one)
	if err != nil {
		return err
	}
	if err := c.config.Offsets.PutConsumer(ctx, one.Name, data); err != nil {
		return fmt.Errorf("store the place of consumer %s: %w", one.Name, err)
	}
	if moved == nil {
		moved = make(chan struct{})
	}
	c.mu.Lock()
	c.byName[one.Name] = &entry{one, moved}
	c.mu.Unlock()
	c.config.Journal.Hold(one.Name, one.Next)
	return nil
}
