package journal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// ledger is what somebody outside the journal knows of it: what was appended, and what was said of it.
type ledger struct {
	mu         sync.Mutex
	entries    []*entry // in the order of the appends
	untold     int
	quiet      chan struct{} // closed when nobody is untold; nil if no test waits for that
	told       int
	disorder   string // how the waiters' order was broken
	checkpoint Position
}

type verdict int

const (
	pending verdict = iota
	durable         // must be replayed, for ever
	failed          // must never be replayed
	doubtful
)

// entry is one record and its waiter.
type entry struct {
	ledger   *ledger
	index    int
	position Position
	text     string
	verdict  verdict
}

func (e *entry) Committed(err error) {
	l := e.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case e.verdict != pending:
		l.disorder = fmt.Sprintf("%q was told twice", e.text)
	case l.told > e.index:
		l.disorder = fmt.Sprintf("%q was told after one appended later", e.text)
	}
	l.told = e.index
	switch {
	case err == nil:
		e.verdict = durable
	case errors.Is(err, ErrInDoubt):
		e.verdict = doubtful
	default:
		e.verdict = failed
	}
	if l.untold--; l.untold == 0 && l.quiet != nil { // last: who waits reads without the lock
		close(l.quiet)
		l.quiet = nil
	}
}

// append appends one record that no other one equals. It keeps what was appended.
func (l *ledger) append(j *Journal, size int) error {
	l.mu.Lock()
	e := &entry{ledger: l, index: len(l.entries)}
	l.entries = append(l.entries, e)
	l.untold++
	l.mu.Unlock()
	e.text = fmt.Sprintf("%d:", e.index) + strings.Repeat("x", size)
	p, err := j.Append([]byte(e.text), e)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.entries = l.entries[:e.index]
		l.untold--
		return err
	}
	e.position = p
	return nil
}

// last returns how the last record ended.
func (l *ledger) last() verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries[len(l.entries)-1].verdict
}

func (l *ledger) count(v verdict) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if e.verdict == v {
			n++
		}
	}
	return n
}

type record struct {
	position Position
	text     string
}

// settle compares what a new process found with what was said, and returns what is wrong. What was pending is then known.
// checkpoints are those that may be in force.
func (l *ledger) settle(found []record, checkpoints ...Position) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.disorder != "" {
		return errors.New(l.disorder)
	}
	l.told, l.untold = 0, 0
	at := make(map[Position]string, len(found))
	for i, r := range found {
		if i > 0 && r.position <= found[i-1].position {
			return fmt.Errorf("record %d was replayed after %d", r.position, found[i-1].position)
		}
		at[r.position] = r.text
	}
	from := l.checkpoint
	if len(found) > 0 {
		for _, p := range checkpoints {
			if p > from && found[0].position >= p {
				from = p
			}
		}
	} else if len(checkpoints) > 0 {
		from = max(from, checkpoints[len(checkpoints)-1])
	}
	var lost *entry
	left := l.entries[:0]
	for _, e := range l.entries {
		text, ok := at[e.position]
		ok = ok && text == e.text
		if ok {
			delete(at, e.position)
		}
		switch {
		case e.position < from && e.verdict == durable:
			left = append(left, e)
			continue
		case e.verdict == durable && !ok:
			return fmt.Errorf("record %d was durable and is lost", e.position)
		case e.verdict == failed && ok:
			return fmt.Errorf("record %d had failed and came back", e.position)
		case e.verdict == pending && ok && lost != nil:
			return fmt.Errorf("record %d was replayed, but %d before it wasn't", e.position, lost.position)
		case e.verdict == pending && !ok:
			lost = e
		case ok:
			e.verdict = durable
		}
		if ok {
			left = append(left, e)
		}
	}
	for p, text := range at {
		return fmt.Errorf("record %d (%.20q) was replayed and never appended there", p, text)
	}
	for i, e := range left {
		e.index = i
	}
	l.entries, l.checkpoint = left, from
	return nil
}

// opened opens a journal and returns all that it replayed.
func opened(c Config) (*Journal, []record, error) {
	var found []record
	j, err := Open(c, func(p Position, b []byte) error {
		found = append(found, record{p, string(b)})
		return nil
	})
	return j, found, err
}

// wait waits until every waiter has been told.
func (l *ledger) wait(t testing.TB) {
	t.Helper()
	l.mu.Lock()
	if l.untold == 0 {
		l.mu.Unlock()
		return
	}
	quiet := make(chan struct{})
	l.quiet = quiet
	l.mu.Unlock()
	select {
	case <-quiet:
	case <-time.After(patience):
		t.Fatal("the journal doesn't tell its waiters")
	}
}

// synced waits until what was appended is durable.
func synced(t testing.TB, j *Journal) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := j.Sync(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("the journal doesn't answer")
	}
	return err
}
