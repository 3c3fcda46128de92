package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Reader reads committed records in order and follows the end of the journal. It serves one goroutine at a time. Close it
// after use.
type Reader struct {
	journal *Journal
	next    Position // the first one to return
	segment *segment // nil: not found yet
	window  window   // over segment
	off     int64    // where the next batch of segment begins
	first   Position // of what is left in body
	body    []byte   // of the current batch, what wasn't returned yet
}

// Read returns a reader that begins with the record at from or, if there is none, with the next one. 0 means the oldest.
func (j *Journal) Read(from Position) *Reader {
	if from == 0 {
		from = j.First()
	}
	return &Reader{journal: j, next: from}
}

// Next returns the next committed record, and waits for it until ctx is done. The record is valid until the next call.
// Errors: *GoneError if it has been trimmed, *AheadError if its position was never given out, ErrCorrupt, ErrClosed, ctx's. After
// an error the reader is where it was.
func (r *Reader) Next(ctx context.Context) (Position, []byte, error) {
	for {
		for len(r.body) > 0 {
			record, rest, ok := cutRecord(r.body)
			if !ok {
				return 0, nil, corrupt(r.segment.path, r.off, "a record is longer than its batch")
			}
			p := r.first
			r.first, r.body = p+1, rest
			if p >= r.next {
				r.next = p + 1
				return p, record, nil
			}
		}
		if err := r.advance(ctx); err != nil {
			return 0, nil, err
		}
	}
}

// Close lets go of the file that is being read.
func (r *Reader) Close() error {
	r.body, r.segment = nil, nil
	if r.window.file == nil {
		return nil
	}
	f := r.window.file
	r.window = window{}
	return f.Close()
}

// advance reads the next batch, or waits for one.
func (r *Reader) advance(ctx context.Context) error {
	end, successor, tail, err := r.journal.ahead(r)
	switch {
	case err != nil:
		return err
	case r.segment != nil && r.off < end:
		return r.read(end)
	case successor != nil:
		return r.enter(successor)
	}
	select {
	case <-tail:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ahead tells a reader where its segment ends; when it has none or has read it, which one comes next; and what to wait for
// if there is none.
func (j *Journal) ahead(r *Reader) (end int64, successor *segment, tail <-chan struct{}, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.refusing == ErrClosed:
		return 0, nil, nil, ErrClosed
	case r.segment != nil && r.off < r.segment.end:
		return r.segment.end, nil, nil, nil
	case r.segment == nil && r.next > j.next:
		return 0, nil, nil, &AheadError{j.committed}
	case r.segment == nil && r.next >= j.segments[0].firstPosition:
		return 0, j.segments[covering(j.segments, r.next)], nil, nil
	case r.segment == nil, r.segment.number+1 < j.segments[0].number:
		return 0, nil, nil, &GoneError{j.segments[0].firstPosition}
	}
	// By number, for several may begin at one position.
	if i := r.segment.number + 1 - j.segments[0].number; i < uint64(len(j.segments)) {
		return 0, j.segments[i], nil, nil
	}
	if j.tail == nil {
		j.tail = make(chan struct{})
	}
	return 0, nil, j.tail, nil
}

// enter goes on to a segment.
func (r *Reader) enter(s *segment) error {
	f, err := r.journal.config.FS.Open(s.path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) && r.journal.First() > s.firstPosition {
		return nil // trimmed meanwhile: look again
	}
	if err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	if err := r.Close(); err != nil {
		f.Close()
		return err
	}
	r.segment, r.window, r.off = s, window{file: f}, segmentHeader
	return nil
}

// read takes in the batch at off.
func (r *Reader) read(end int64) error {
	r.window.limit = end
	b, body, err := r.window.batch(r.off, r.segment.nonce)
	var bad *badBatch
	if errors.As(err, &bad) {
		return corrupt(r.segment.path, r.off, "%v", bad)
	}
	if err != nil {
		return err
	}
	r.off += b.size()
	r.first, r.body = b.first, body
	return nil
}
