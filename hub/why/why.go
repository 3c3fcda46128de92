// Package why remembers, for a while and in memory only, why connections of each
// identity were refused, ended or denied something, so that "why doesn't it connect?"
// has an answer in words. It decides nothing, and losing it costs only the answer.
package why

import (
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Kind is what happened.
type Kind string

// The kinds.
const (
	Refused      Kind = "refused"      // a connection was turned away
	Disconnected Kind = "disconnected" // one that was there ended
	Denied       Kind = "denied"       // it may not use a topic
	Connected    Kind = "connected"    // it is in
	NotRenewed   Kind = "not-renewed"  // it asked for another certificate over HTTPS and was refused
)

// Event is one thing that happened to an identity, or the same thing several times in a
// row.
type Event struct {
	At      time.Time `json:"at"`              // the last time
	First   time.Time `json:"first,omitzero"`  // the first, if it happened more than once
	Times   int       `json:"times,omitempty"` // how often, if more than once
	Kind    Kind      `json:"kind"`
	Reason  string    `json:"reason"`            // one word
	Detail  string    `json:"detail,omitempty"`  // one sentence
	Address string    `json:"address,omitempty"` // of the peer, without its port

	// Own is true if it happened to who has a certificate of this identity by an issuer
	// that is trusted. Otherwise somebody came under this name.
	Own bool `json:"own"`
}

// same reports whether two events are the same thing happening again.
func (e Event) same(f Event) bool {
	return e.Kind == f.Kind && e.Reason == f.Reason && e.Detail == f.Detail && e.Address == f.Address && e.Own == f.Own
}

// Name tells identities apart: roles share no IDs' histories.
type Name struct{ Role, ID string }

// Bounds. An identity takes some 2 KB at most; the one that was silent for longest is
// forgotten first.
const (
	DefaultIdentities = 1 << 14
	DefaultStrangers  = 1 << 10
	perIdentity       = 12
	maxDetail         = 240
	maxSharing        = 4 // identities remembered of one address
)

// Book holds what happened. It is safe for concurrent use.
type Book struct {
	now   func() time.Time
	since time.Time

	mu        sync.Mutex // guards what follows
	known     *simplelru.LRU[Name, *history]
	strangers *simplelru.LRU[Name, *history]
	addresses *simplelru.LRU[string, []Name] // who was last connected from there
}

// history is the newest events of one identity, oldest first.
type history struct {
	events []Event
}

// NewBook returns a book for so many registered identities and so many others, whose
// number anybody can drive up; 0 means the default. A nil now is time.Now.
func NewBook(identities, strangers int, now func() time.Time) *Book {
	if identities <= 0 {
		identities = DefaultIdentities
	}
	if strangers <= 0 {
		strangers = DefaultStrangers
	}
	if now == nil {
		now = time.Now
	}
	return &Book{now: now, since: now(), known: newLRU[Name, *history](identities), strangers: newLRU[Name, *history](strangers), addresses: newLRU[string, []Name](identities)}
}

func newLRU[K comparable, V any](size int) *simplelru.LRU[K, V] {
	l, err := simplelru.NewLRU[K, V](size, nil)
	if err != nil {
		panic(err) // a size that isn't positive
	}
	return l
}

// Since returns when the book began.
func (b *Book) Since() time.Time { return b.since }

// Note writes an event down, now, under a name. Registered says whether the name is
// known to the registry: strangers can't push out those that are. What is the same as
// the newest event is counted there.
func (b *Book) Note(name Name, registered bool, e Event) {
	if name.ID == "" || len(name.ID) > 64 {
		return
	}
	e.Detail = clip(e.Detail)
	e.At, e.First, e.Times = b.now(), time.Time{}, 0
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.Kind == Connected {
		b.at(e.Address, name)
	}
	book := b.strangers
	if registered {
		book = b.known
	}
	h, ok := book.Get(name)
	if !ok {
		h = &history{}
		book.Add(name, h)
	}
	if n := len(h.events); n > 0 && h.events[n-1].same(e) {
		last := &h.events[n-1]
		if last.Times == 0 {
			last.First, last.Times = last.At, 1
		}
		last.At = e.At
		last.Times++
		return
	}
	if len(h.events) == perIdentity {
		h.events = slices.Delete(h.events, 0, 1)
	}
	h.events = append(h.events, e)
}

// at remembers that a name was connected from an address. The caller holds mu.
func (b *Book) at(address string, name Name) {
	names, _ := b.addresses.Get(address)
	if slices.Contains(names, name) {
		return
	}
	if len(names) == maxSharing {
		names = names[1:]
	}
	b.addresses.Add(address, append(slices.Clip(names), name))
}

// At returns who was connected from that address, if it was only one: who fails there
// without a name is probably it. Behind a shared address nobody is guessed.
func (b *Book) At(address string) (Name, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	names, _ := b.addresses.Peek(address)
	if len(names) != 1 {
		return Name{}, false
	}
	return names[0], true
}

// Of returns what happened under a name, newest first.
func (b *Book) Of(name Name) []Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	var events []Event
	for _, book := range []*simplelru.LRU[Name, *history]{b.known, b.strangers} {
		if h, ok := book.Peek(name); ok {
			events = append(events, h.events...)
		}
	}
	slices.SortStableFunc(events, func(a, b Event) int { return b.At.Compare(a.At) })
	return events
}

// Host returns an address without its port.
func Host(a net.Addr) string {
	if a == nil {
		return ""
	}
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().String()
	}
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}

func clip(s string) string {
	if len(s) > maxDetail {
		return s[:maxDetail] + "…"
	}
	return s
}
