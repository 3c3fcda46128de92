package journal

import (
	"errors"
	"fmt"
)

var (
	// ErrFull is returned by Append while as many bytes wait for the disk as Config.Buffer allows. Nothing was appended.
	ErrFull = errors.New("the journal's buffer is full: the disk is slower than what comes in")
	// ErrTooLarge is returned by Append for a record that Config.Buffer could never hold.
	ErrTooLarge = errors.New("the record is larger than the journal's buffer")
	// ErrUnavailable is why Append and commits fail while the disk refuses; the journal tries again by itself. A record
	// whose commit failed with it never comes back, unless the error is ErrInDoubt as well.
	ErrUnavailable = errors.New("the journal can't write")
	// ErrInDoubt is ErrUnavailable for a record that was being written when the disk failed, on a disk that then refused to
	// take note of the failure too: should the process end before the disk works again, the record may come back at the next
	// replay. Whoever sent it is best told nothing, so that it asks again.
	ErrInDoubt = errors.New("it is not known whether the record was written")
	// ErrClosed is returned once Close was called.
	ErrClosed = errors.New("the journal is closed")
	// ErrCorrupt is matched by what Open, Check and readers return for a damaged journal.
	ErrCorrupt = errors.New("the journal is damaged")
)

// GoneError is what a reader gets whose place has been trimmed.
type GoneError struct {
	First Position // the oldest one that is left to be read
}

// Error says from where on there is something to read.
func (e *GoneError) Error() string {
	return fmt.Sprintf("the record is no longer kept; the oldest one is at %d", e.First)
}

// AheadError is what a reader gets whose place no record has been given yet: it belongs to another journal, or to this
// one before an older backup was restored.
type AheadError struct {
	Last Position // the newest one that is committed
}

// Error says where the journal ends.
func (e *AheadError) Error() string {
	return fmt.Sprintf("the record doesn't exist yet; the newest one is at %d", e.Last)
}

// CorruptError says where a journal is damaged. It is an ErrCorrupt.
type CorruptError struct {
	File   string // its path
	Offset int64  // in bytes
	Reason string
}

// Error is one sentence for the operator.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is damaged at byte %d: %s; nothing was changed: restore a backup, or see what is left with `hub store check`", e.File, e.Offset, e.Reason)
}

// Is reports that it is an ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

func corrupt(file string, offset int64, format string, args ...any) error {
	return &CorruptError{File: file, Offset: offset, Reason: fmt.Sprintf(format, args...)}
}
