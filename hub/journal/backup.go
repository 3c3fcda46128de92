package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Backup hands put, one after the other, the files of a journal that ends with the record that was the last committed one
// when Backup began. Meanwhile this journal goes on. The copy opens like one that was closed; its replay starts at from,
// which is for a store that was copied before and knows what it holds; 0: at the checkpoint. An error of put is returned
// as it is. What was copied is as good as the disk: Check the copy.
func (j *Journal) Backup(ctx context.Context, from Position, put func(name string, size int64, content io.Reader) error) error {
	b, err := j.snapshot(from)
	if err != nil {
		return fmt.Errorf("back up the journal in %s: %w", j.config.Dir, err)
	}
	defer b.close()
	for i, s := range b.segments {
		// The copy of a segment ends where its batches do.
		end, mark := s.end, []byte(nil)
		if i == len(b.segments)-1 {
			mark = b.mark
		}
		h := s.header
		h.size = end + int64(len(mark))
		content := io.MultiReader(
			bytes.NewReader(h.encode()),
			&patient{ctx, io.NewSectionReader(b.files[i], segmentHeader, end-segmentHeader)},
			bytes.NewReader(mark),
		)
		if err := put(segmentName(s.number), h.size, content); err != nil {
			return err
		}
	}
	slot := b.control.encode()
	return put(controlFile, 2*slotSize, bytes.NewReader(append(slot, slot...)))
}

// PutFile writes one file of a backup into dir, durably but for the folder's sync. dir must be there and not hold the
// file. It is what a restore gives each file of a backup to, before it calls Check.
func PutFile(dir, name string, size int64, content io.Reader) (err error) {
	if _, ok := segmentNumber(name); !ok && name != controlFile {
		return fmt.Errorf("%q is not a file of a journal's backup", name)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	switch n, err := io.Copy(f, io.LimitReader(content, size+1)); {
	case err != nil:
		return fmt.Errorf("write %s: %w", f.Name(), err)
	case n != size:
		return fmt.Errorf("write %s: the backup's copy is not %d bytes long", f.Name(), size)
	}
	return f.Sync()
}

// snapshot is a journal at one moment.
type snapshot struct {
	control  controlState
	segments []segment // copies, whose ends are those of that moment
	files    []File    // of the segments; trimming doesn't take from them what they hold
	mark     []byte    // a clean end, to follow the last segment's batches
}

func (b *snapshot) close() {
	for _, f := range b.files {
		f.Close()
	}
}

func (j *Journal) snapshot(from Position) (*snapshot, error) {
	// Nothing is trimmed until the files are open.
	j.checkpointing.Lock()
	defer j.checkpointing.Unlock()
	b := &snapshot{}
	j.mu.Lock()
	closed, committed, sequence := j.refusing == ErrClosed, j.committed, j.sequence
	checkpoint := j.checkpoint
	for _, s := range j.segments {
		b.segments = append(b.segments, *s)
	}
	j.mu.Unlock()
	first, newest := &b.segments[0], &b.segments[len(b.segments)-1]
	switch {
	case closed:
		return nil, ErrClosed
	case from == 0:
		from = checkpoint
	case from < first.firstPosition:
		return nil, &GoneError{first.firstPosition}
	case from > committed+1:
		return nil, &AheadError{committed}
	}
	for _, s := range b.segments {
		f, err := j.config.FS.Open(s.path, os.O_RDONLY)
		if err != nil {
			b.close()
			return nil, err
		}
		b.files = append(b.files, f)
	}
	end := frame{sequence: sequence, first: max(committed+1, newest.firstPosition), kind: kindEnd}
	b.mark = make([]byte, batchHeader)
	end.seal(newest.nonce, b.mark)
	b.control = controlState{
		journal: first.journal, generation: 1, first: first.number, last: newest.number, checkpoint: from,
		clean: true, endSegment: newest.number, endOffset: newest.end + batchHeader, endNext: sequence + 1, endLast: committed,
	}
	return b, nil
}

// patient is a reader that gives up when ctx is done.
type patient struct {
	ctx  context.Context
	from io.Reader
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	return p.from.Read(b)
}
