package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// segment is one file of the log.
type segment struct {
	header
	path  string
	begun time.Time // with the process's own clock reading, so that a jump of the wall clock doesn't age it
	end   int64     // where its last valid batch ends; guarded by Journal.mu, and final once it has a successor
}

// appender writes batches to the newest segment. One goroutine owns it.
type appender struct {
	files    FS
	dir      string
	size     int64 // of new segments
	now      func() time.Time
	control  *control
	adopt    func(*segment) // makes a new segment known
	segment  *segment
	file     File
	end      int64  // where the next batch goes
	sequence uint64 // which it gets
	zeroed   int64  // up to here the file was written to
	zeros    []byte // to do so
	spoilt   bool   // a batch failed in this segment, or a successor was attempted: it isn't written to any more
}

// write makes b durable. On an error, written tells whether some of b may have reached the disk.
func (a *appender) write(b *batch, kind batchKind) (written bool, err error) {
	if a.spoilt {
		return false, errSpoilt
	}
	if int64(len(b.buf)) > a.segment.size-a.end {
		if err := a.advance(b.first, int64(len(b.buf))); err != nil {
			return false, err
		}
	}
	if err := a.zero(a.end + int64(len(b.buf))); err != nil {
		a.spoilt = true
		return false, fmt.Errorf("write to the journal: %w", err)
	}
	f := frame{sequence: a.sequence, first: b.first, kind: kind, count: b.count}
	f.seal(a.segment.nonce, b.buf)
	if _, err := a.file.WriteAt(b.buf, a.end); err != nil {
		a.spoilt = true
		return true, fmt.Errorf("write to the journal: %w", err)
	}
	if err := a.file.Sync(); err != nil {
		a.spoilt = true
		return true, fmt.Errorf("sync the journal: %w", err)
	}
	a.end += int64(len(b.buf))
	a.sequence++
	return true, nil
}

const (
	zeroAhead = 1 << 20
	// A batch from here on costs more to write twice than its sync can gain.
	largeBatch = 128 << 10
)

// zero prepares for a batch that ends at end. Space that is merely reserved costs each sync a commit of the file system's
// own journal, to note that it is in use now, which is more than a third of its time; in space that was written to before
// there is nothing to note. So zeros go ahead of small batches, a megabyte at a time. They become durable with the batch.
func (a *appender) zero(end int64) error {
	if end <= a.zeroed {
		return nil
	}
	upTo := end
	if end-a.end < largeBatch {
		if a.zeros == nil {
			a.zeros = make([]byte, largeBatch)
		}
		for upTo = min(end+zeroAhead, a.segment.size); end < upTo; end += largeBatch {
			if _, err := a.file.WriteAt(a.zeros[:min(upTo-end, largeBatch)], end); err != nil {
				return err
			}
		}
	}
	a.zeroed = upTo
	return nil
}

// advance begins the next segment, whose first record will be at first or later and which has room for a batch of need
// bytes. Its header states where the current one ends, which is not written to any more even if advance fails.
func (a *appender) advance(first Position, need int64) error {
	a.spoilt = true
	h := header{
		journal:       a.segment.journal,
		number:        a.segment.number + 1,
		size:          max(a.size, segmentHeader+need),
		firstPosition: first,
		firstSequence: a.sequence,
		previousEnd:   a.end,
	}
	s, f, err := createSegment(a.files, a.dir, h, a.now())
	if err != nil {
		return fmt.Errorf("begin a new segment of the journal: %w", err)
	}
	if err := a.control.update(func(c *controlState) { c.last = h.number }); err != nil {
		return errors.Join(err, f.Close())
	}
	a.file.Close() // all that counts in it was synced
	a.segment, a.file, a.end, a.zeroed, a.spoilt = s, f, segmentHeader, segmentHeader, false
	a.adopt(s)
	return nil
}

// createSegment creates a durable segment file, with a nonce of its own. A file that is there under its name is an earlier
// attempt, in which nothing was written, and is replaced.
func createSegment(files FS, dir string, h header, now time.Time) (*segment, File, error) {
	var nonce [8]byte
	rand.Read(nonce[:]) // never fails
	h.nonce = order.Uint64(nonce[:])
	h.created = now.UnixNano()
	made := filepath.Join(dir, nextFile)
	path := filepath.Join(dir, segmentName(h.number))
	f, err := files.Open(made, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, nil, err
	}
	err = f.Allocate(h.size)
	if err == nil {
		_, err = f.WriteAt(h.encode(), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = files.Rename(made, path)
	}
	if err != nil {
		// The space is given back; what can't be removed is overwritten by the next attempt.
		return nil, nil, errors.Join(err, f.Close(), files.Remove(made))
	}
	if err := files.SyncDir(dir); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return &segment{header: h, path: path, begun: now, end: segmentHeader}, f, nil
}
