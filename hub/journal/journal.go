// Package journal is an append-only log of records with group commit: the store on which "PUBACK means on disk" rests.
//
// Records are bytes; the journal doesn't look into them. Many appenders share one write and one fdatasync. While a batch
// is on its way to the disk the next one gathers, and while its waiters are told, the next one is already being written.
// A batch is never written before the one ahead of it is durable. Hence at most the last batch of a journal can be torn
// by a power cut, and nobody was told that it is durable: Open cuts it off. A bad batch with a good one after it is
// damage, and Open refuses.
//
// When a write or a sync fails, every record that isn't committed yet fails with it, in order, and Append refuses until
// the log could be carried on in a new segment, whose header states durably where the old one ends: the kernel is never
// asked again to sync pages that it failed to sync.
package journal

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Position is the place of a record in a journal. Later records have greater positions; a record keeps its position for
// ever. 0 is before the first record. Positions are consecutive but for gaps where commits failed.
type Position uint64

// Config says where a journal is and how it behaves. Only Dir has no default.
type Config struct {
	// Dir is the journal's own folder.
	Dir string
	// SegmentSize is the length of a segment file in bytes, reserved on the disk when the file is begun; 0: 64 MiB. A batch
	// that is longer gets a longer segment.
	SegmentSize int64
	// Buffer is how many bytes of records may wait to be committed, and their waiters to be told, at most; 0: 32 MiB.
	Buffer int
	// Retain bounds the records before the checkpoint that are kept for readers. It works on whole segments, each time
	// Checkpoint is called.
	Retain Retain
	// Retry is how long a refusing journal waits before it tries the disk again; 0: 1 s.
	Retry time.Duration
	// OnState is told when the journal begins to refuse (err) and when it ceases to (nil). It runs on the goroutine that
	// tells the waiters and must not block; nil: nobody is told.
	OnState func(err error)
	// Now is the clock; nil: time.Now. Only the age of segments depends on it.
	Now func() time.Time
	// Log takes what an operator should know; nil: nothing.
	Log *slog.Logger
	// FS is the file system; nil: the real one.
	FS FS
}

// Retain is how much is kept of what is no longer needed for a replay.
type Retain struct {
	Bytes int64         // 0: 1 GiB; less than 0: nothing
	Age   time.Duration // since the newest record of a segment was followed by another segment; 0: 7 days; less than 0: nothing
}

const (
	defaultSegmentSize = 64 << 20
	defaultBuffer      = 32 << 20
	defaultRetainBytes = 1 << 30
	defaultRetainAge   = 7 * 24 * time.Hour
	defaultRetry       = time.Second
)

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, fmt.Errorf("the journal's configuration names no folder")
	}
	if c.SegmentSize == 0 {
		c.SegmentSize = defaultSegmentSize
	}
	if c.SegmentSize < 2*segmentHeader || c.SegmentSize > 1<<40 {
		return c, fmt.Errorf("a journal can't have segments of %d bytes; between %d and %d", c.SegmentSize, 2*segmentHeader, int64(1)<<40)
	}
	if c.Buffer == 0 {
		c.Buffer = defaultBuffer
	}
	if c.Buffer < 0 || c.Buffer > 1<<30 {
		return c, fmt.Errorf("a journal can't have a buffer of %d bytes; at most %d", c.Buffer, 1<<30)
	}
	if c.Retain.Bytes == 0 {
		c.Retain.Bytes = defaultRetainBytes
	}
	if c.Retain.Age == 0 {
		c.Retain.Age = defaultRetainAge
	}
	if c.Retry <= 0 {
		c.Retry = defaultRetry
	}
	if c.OnState == nil {
		c.OnState = func(error) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.FS == nil {
		c.FS = disk{}
	}
	return c, nil
}

// Waiter waits for a record to be committed.
type Waiter interface {
	// Committed is called exactly once, in the order of the appends, with nil once the record is durable, or with why it
	// will not be: ErrUnavailable, and ErrInDoubt where the record may yet come back. It runs on a goroutine of the
	// journal's that holds none of its locks; it must not block, and may run before Append has returned.
	Committed(err error)
}

// Journal is an open journal. Its methods may be called concurrently.
type Journal struct {
	config   Config
	lock     File // held while the journal is open
	control  *control
	log      appender      // belongs to the committer
	wake     chan struct{} // of capacity 1: something gathers
	closing  chan struct{} // closed by Close
	outcomes chan outcome  // from the committer, which closes it, to the teller
	done     chan struct{} // closed by the teller: both goroutines have ended
	closed   func() error  // closes once; every call gives the first one's result
	endError error         // of the committer, why the journal couldn't be ended cleanly; read it after done

	checkpointing sync.Mutex // lets one Checkpoint at a time

	mu         sync.Mutex    // guards what follows; never held across I/O or calls out
	gathering  *batch        // what the committer takes next
	spare      []*batch      // emptied, to be used again
	next       Position      // of the next record
	waiting    int           // bytes of records appended and not yet told of
	refusing   error         // what Append returns instead of appending; nil: it appends
	segments   []*segment    // oldest first; the last one is written to. Replaced, never changed in place
	committed  Position      // of the last committed record
	sequence   uint64        // of the next batch, once all that is committed was published
	checkpoint Position      // where a replay would start
	tail       chan struct{} // closed when something was committed; nil: nobody waits for it
	holds      map[string]Position
	counts     Stats // the counters in it
}

// Append appends a copy of record and returns its position; it never waits for the disk. w is told when the record is
// committed; if it is nil, that may take up to 10 ms longer, unless something comes behind it for which somebody waits.
// On an error (ErrFull, ErrTooLarge, ErrUnavailable, ErrClosed) nothing was appended and w will not be told.
func (j *Journal) Append(record []byte, w Waiter) (Position, error) {
	if recordHeader+len(record) > j.config.Buffer {
		return 0, ErrTooLarge
	}
	j.mu.Lock()
	if j.refusing != nil {
		defer j.mu.Unlock()
		return 0, j.refusing
	}
	if j.waiting+recordHeader+len(record) > j.config.Buffer {
		j.mu.Unlock()
		return 0, ErrFull
	}
	b := j.gathering
	before := b.urgency(j.config.Buffer)
	p := j.next
	if b.count == 0 {
		b.first = p
	}
	b.add(record, w)
	j.next++
	j.waiting += recordHeader + len(record)
	j.counts.Appended++
	now := b.urgency(j.config.Buffer)
	j.mu.Unlock()
	if now > before {
		j.rouse()
	}
	return p, nil
}

// rouse makes the committer look whether something gathers.
func (j *Journal) rouse() {
	select {
	case j.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// signal is a Waiter that passes on what it is told.
type signal chan error

func (s signal) Committed(err error) { s <- err }

// Sync returns once everything is durable that was appended before; or why it is not, ctx's error included.
func (j *Journal) Sync(ctx context.Context) error {
	told := make(signal, 1)
	j.mu.Lock()
	if j.refusing != nil {
		defer j.mu.Unlock()
		return j.refusing
	}
	before := j.gathering.urgency(j.config.Buffer)
	j.gathering.waiters = append(j.gathering.waiters, told)
	now := j.gathering.urgency(j.config.Buffer)
	j.mu.Unlock()
	if now > before {
		j.rouse()
	}
	select {
	case err := <-told:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// First returns the position from which on records can be read; nothing older is left.
func (j *Journal) First() Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.segments[0].firstPosition
}

// Last returns the position of the last committed record, or one less than what the first one will have.
func (j *Journal) Last() Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.committed
}

// Close commits what was appended, marks a clean end and lets go of the folder. Waiters have been told when it returns,
// and readers get ErrClosed. An error says that the end isn't marked: the next Open finds the journal as after a crash.
func (j *Journal) Close() error { return j.closed() }

func (j *Journal) close() error {
	j.mu.Lock()
	wasRefusing := j.refusing
	j.refusing = ErrClosed
	j.mu.Unlock()
	close(j.closing)
	<-j.done
	j.mu.Lock()
	if j.tail != nil {
		close(j.tail)
		j.tail = nil
	}
	j.mu.Unlock()
	err := j.endError
	if err != nil && wasRefusing != nil {
		err = wasRefusing
	}
	for _, f := range []File{j.log.file, j.control.file, j.lock} {
		if e := f.Close(); err == nil {
			err = e
		}
	}
	if err != nil {
		return fmt.Errorf("close the journal in %s: %w", j.config.Dir, err)
	}
	return nil
}

// Stats are counters since Open, and gauges.
type Stats struct {
	Appended  uint64 // records that Append took
	Committed uint64 // records that became durable
	Bytes     uint64 // written in batches, headers included
	Batches   uint64 // committed; each cost one write and one sync
	Failed    uint64 // commits that failed

	Waiting    int                 // bytes of records that aren't committed or whose waiters aren't told yet
	Segments   int                 // files
	DiskBytes  int64               // reserved by the files
	First      Position            // as First
	Last       Position            // as Last
	Checkpoint Position            // where a replay would start
	Holds      map[string]Position // the consumers' places
	Refusing   error               // why Append refuses, or nil
}

// Stats returns a copy of the journal's counters.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.counts
	s.Waiting, s.Refusing, s.Checkpoint = j.waiting, j.refusing, j.checkpoint
	s.First, s.Last = j.segments[0].firstPosition, j.committed
	s.Segments = len(j.segments)
	for _, seg := range j.segments {
		s.DiskBytes += seg.size
	}
	s.Holds = make(map[string]Position, len(j.holds))
	for name, p := range j.holds {
		s.Holds[name] = p
	}
	return s
}
