package ledger

import (
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/bbolt"
)

// maxGroup bounds how many callers' changes go into one transaction.
const maxGroup = 256

// errAborted is what the callers of a transaction get that a panic of one ended.
var errAborted = errors.New("the ledger's transaction was aborted")

// errNothing ends a transaction in which nobody changed anything, without an fsync.
var errNothing = errors.New("nothing to commit")

// commits lets callers that write at a time share a transaction and so its fsync. Of
// the callers that wait, the first does the work for all; then the first of those that
// came meanwhile is next. No goroutine of its own.
type commits struct {
	mu      sync.Mutex // guards the fields below
	waiting []*operation
	leading bool // somebody is at work
}

// operation is one caller's change.
type operation struct {
	run   func(*bbolt.Tx) error
	err   error
	woken chan bool // true: lead now; false: done. Has room for one
}

// refusal is an error before which its operation wrote nothing, so that the others of
// its transaction need not be rolled back.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// refused marks an error as one before which nothing was written.
func refused(err error) error {
	if err == nil {
		return nil
	}
	return refusal{err}
}

// update runs fn in a transaction, perhaps with others'. When it returns nil, what fn
// wrote survives a power cut; when it returns an error, nothing of it is there. fn may
// run more than once, each time on the ledger as it was, and must set anew what it
// hands to its caller.
func (l *Ledger) update(fn func(tx *bbolt.Tx) error) error {
	op := &operation{run: fn, err: errAborted, woken: make(chan bool, 1)}
	c := &l.commits
	c.mu.Lock()
	c.waiting = append(c.waiting, op)
	lead := !c.leading
	c.leading = true
	c.mu.Unlock()
	if !lead {
		lead = <-op.woken
	}
	if lead {
		l.lead()
	}
	if r, ok := op.err.(refusal); ok {
		return r.error
	}
	return op.err
}

// lead commits what waits, the caller's own first, and hands the lead on.
func (l *Ledger) lead() {
	c := &l.commits
	c.mu.Lock()
	n := min(len(c.waiting), maxGroup)
	group := c.waiting[:n:n]
	c.waiting = c.waiting[n:]
	c.mu.Unlock()
	defer func() { // even if an operation panics
		c.mu.Lock()
		if len(c.waiting) > 0 {
			c.waiting[0].woken <- true
		} else {
			c.waiting, c.leading = nil, false
		}
		c.mu.Unlock()
		for _, op := range group {
			op.woken <- false
		}
	}()
	l.commit(group)
}

// commit runs the operations in one transaction. One that fails halfway is taken out
// and the others start again without it.
func (l *Ledger) commit(group []*operation) {
	pending := append([]*operation(nil), group...)
	for len(pending) > 0 {
		failed, changed := -1, false
		results := make([]error, len(pending)) // nobody's until the transaction is committed
		err := l.db.Update(func(tx *bbolt.Tx) error {
			for i, op := range pending {
				err := op.run(tx)
				if _, ok := err.(refusal); err != nil && !ok {
					failed = i
					return err
				}
				results[i] = err
				changed = changed || err == nil
			}
			if !changed {
				return errNothing
			}
			return nil
		})
		if failed >= 0 {
			pending[failed].err = err
			pending = append(pending[:failed], pending[failed+1:]...)
			continue
		}
		for i, op := range pending {
			if op.err = results[i]; op.err == nil && err != nil {
				op.err = fmt.Errorf("write ledger %s: %w", l.path, err)
			}
		}
		return
	}
}

// held is the IDs that requests are enrolling right now, each with its key. It lets the
// first of two that bring the same token, and different keys, have it. After a restart
// nothing is held, and a board may come back with another key if nothing was signed for
// the first.
type held struct {
	mu   sync.Mutex // guards keys
	keys map[string]string
}

// byOther reports whether a request with another key holds the ID.
func (h *held) byOther(id, keyHash string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	key, taken := h.keys[id]
	return taken && key != keyHash
}

func (h *held) add(id, keyHash string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keys == nil {
		h.keys = make(map[string]string)
	}
	h.keys[id] = keyHash
}

func (h *held) release(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.keys, id)
}
