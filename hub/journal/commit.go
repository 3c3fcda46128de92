package journal

import (
	"errors"
	"fmt"
	"time"
)

// batch is what one write and one sync make durable. It belongs to who took it last: the appenders while it gathers,
// then the committer, then the teller.
type batch struct {
	buf     []byte // room for the header, then records
	first   Position
	count   uint32
	waiters []Waiter
}

// keepBatch is how much memory an emptied batch may keep.
const keepBatch = 4 << 20

func newBatch() *batch { return &batch{buf: make([]byte, batchHeader, 4<<10)} }

func (b *batch) empty() bool { return b.count == 0 && len(b.waiters) == 0 }

// linger is how long records for which nobody waits may gather. Each batch costs a sync, and a waiter who comes while one
// is under way waits for two.
const linger = 10 * time.Millisecond

// urgency is how soon a batch is to be written. Who raises it rouses the committer.
type urgency int

const (
	nothing urgency = iota // to write
	lazy                   // after linger at the latest
	urgent                 // at once
)

// urgency returns how soon the batch is to be written, in a journal of so large a buffer.
func (b *batch) urgency(buffer int) urgency {
	switch {
	case b.empty():
		return nothing
	case len(b.waiters) == 0 && len(b.buf) < min(1<<20, buffer/4):
		return lazy
	}
	return urgent
}

// bytes is what Journal.waiting counts of it.
func (b *batch) bytes() int { return len(b.buf) - batchHeader }

func (b *batch) add(record []byte, w Waiter) {
	b.buf = order.AppendUint32(b.buf, uint32(len(record)))
	b.buf = append(b.buf, record...)
	b.count++
	if w != nil {
		b.waiters = append(b.waiters, w)
	}
}

// outcome is what the committer has to say to waiters, or to OnState.
type outcome struct {
	batch *batch // nil: it is for OnState
	err   error
	told  chan<- struct{} // closed when everyone was told; may be nil
}

// commit is the committer: the one goroutine that writes to segments. Close ends it.
func (j *Journal) commit() {
	defer close(j.outcomes)
	lazily := time.NewTimer(linger)
	lazily.Stop()
	lingers := false // lazily runs
	for {
		b, wants := j.take(urgent)
		if b != nil {
			j.write(b)
			lingers = false
			continue
		}
		if wants == lazy && !lingers {
			lazily.Reset(linger)
			lingers = true
		}
		select {
		case <-j.wake:
		case <-lazily.C:
			lingers = false
			if b, _ := j.take(lazy); b != nil {
				j.write(b)
			}
		case <-j.closing:
			lazily.Stop()
			// Nothing more is appended now.
			if b, _ := j.take(lazy); b != nil {
				j.write(b)
			}
			j.endError = j.end()
			return
		}
	}
}

// take returns what has gathered if that is as urgent, else nil, and how urgent it is.
func (j *Journal) take(atLeast urgency) (*batch, urgency) {
	j.mu.Lock()
	defer j.mu.Unlock()
	wants := j.gathering.urgency(j.config.Buffer)
	if wants < atLeast {
		return nil, wants
	}
	return j.takeLocked(), wants
}

func (j *Journal) takeLocked() *batch {
	b := j.gathering
	if b.empty() {
		return nil
	}
	if n := len(j.spare); n > 0 {
		j.gathering, j.spare = j.spare[n-1], j.spare[:n-1]
	} else {
		j.gathering = newBatch()
	}
	return b
}

// write makes a batch durable and hands it to the teller.
func (j *Journal) write(b *batch) {
	if b.count > 0 {
		written, err := j.log.write(b, kindRecords)
		if err != nil {
			j.fail(b, err, written)
			return
		}
		j.publish(b)
	}
	j.outcomes <- outcome{batch: b}
}

// publish lets readers see a batch that is durable.
func (j *Journal) publish(b *batch) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.segments[len(j.segments)-1].end = j.log.end
	j.committed = b.first + Position(b.count) - 1
	j.sequence = j.log.sequence
	j.counts.Committed += uint64(b.count)
	j.counts.Bytes += uint64(len(b.buf))
	j.counts.Batches++
	if j.tail != nil {
		close(j.tail)
		j.tail = nil
	}
}

// fail is what happens when a batch can't be committed. written says that some of it may be on the disk.
//
//  1. Append refuses, so that what has gathered is all there is, and that fails too: no record is committed whose
//     predecessor was not.
//  2. The log is carried on in a new segment. Its header says where the old one ends, before the batch.
//  3. Only then the waiters are told. If the disk took no new segment they learn that the batch is in doubt.
//  4. Append accepts again when everyone was told and there is a new segment; it is tried again until then.
func (j *Journal) fail(b *batch, cause error, written bool) {
	refusing := fmt.Errorf("%w: %w", ErrUnavailable, cause)
	j.mu.Lock()
	if j.refusing == nil {
		j.refusing = refusing
	}
	rest := j.takeLocked()
	j.counts.Failed++
	first := j.next
	j.mu.Unlock()

	unfinished := j.log.advance(first, 0)
	err := refusing
	if written && unfinished != nil {
		err = fmt.Errorf("%w (%w)", refusing, ErrInDoubt)
	}
	j.outcomes <- outcome{err: refusing}
	told := make(chan struct{})
	if rest != nil {
		j.outcomes <- outcome{batch: b, err: err}
		j.outcomes <- outcome{batch: rest, err: refusing, told: told}
	} else {
		j.outcomes <- outcome{batch: b, err: err, told: told}
	}
	<-told

	retry := time.NewTicker(j.config.Retry)
	defer retry.Stop()
	for unfinished != nil {
		select {
		case <-retry.C:
			unfinished = j.log.advance(first, 0)
		case <-j.closing:
			return // end tries once more
		}
	}
	j.mu.Lock()
	if j.refusing == refusing {
		j.refusing = nil
	}
	j.mu.Unlock()
	j.outcomes <- outcome{}
}

// tell is the teller: the one goroutine that calls out. It ends after the committer.
func (j *Journal) tell() {
	defer close(j.done)
	for o := range j.outcomes {
		switch {
		case o.batch != nil:
			for _, w := range o.batch.waiters {
				w.Committed(o.err)
			}
			j.recycle(o.batch)
		case o.err != nil:
			j.config.Log.Error("the journal refuses records until the disk works again", "dir", j.config.Dir, "err", o.err)
			j.config.OnState(o.err)
		default:
			j.config.Log.Info("the journal accepts records again", "dir", j.config.Dir)
			j.config.OnState(nil)
		}
		if o.told != nil {
			close(o.told)
		}
	}
}

// recycle empties a batch whose waiters have been told, to gather in it again.
func (j *Journal) recycle(b *batch) {
	clear(b.waiters)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.waiting -= b.bytes()
	if cap(b.buf) > keepBatch {
		return
	}
	b.buf, b.waiters, b.count = b.buf[:batchHeader], b.waiters[:0], 0
	j.spare = append(j.spare, b)
}

// end marks a clean end: in the log, then in the control file.
func (j *Journal) end() error {
	j.mu.Lock()
	first, last := j.next, j.committed
	j.mu.Unlock()
	if j.log.spoilt {
		if err := j.log.advance(first, 0); err != nil {
			return err
		}
	}
	mark := newBatch()
	mark.first = first
	if _, err := j.log.write(mark, kindEnd); err != nil {
		return err
	}
	return j.control.update(func(c *controlState) {
		c.clean = true
		c.endSegment, c.endOffset = j.log.segment.number, j.log.end
		c.endNext, c.endLast = j.log.sequence, last
	})
}

// errSpoilt is for a programming error: a batch must not go where one may have been written before.
var errSpoilt = errors.New("the segment must not be written to any more")
