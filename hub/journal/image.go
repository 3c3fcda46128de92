package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// image is a journal's folder as it was found.
type image struct {
	files    FS
	dir      string
	control  controlState
	segments []*segment // oldest first, with consecutive numbers; at least one
	leftover []string   // files that an interrupted trim or a segment in the making left behind
}

// load reads the control file's state and every segment's header, and checks that they belong together.
func load(files FS, dir string, state controlState) (*image, error) {
	if state.first == 0 || state.first > state.last || state.last >= 1<<62 || state.checkpoint == 0 {
		return nil, corrupt(filepath.Join(dir, controlFile), 0, "segments %d to %d and a replay from record %d on can't be", state.first, state.last, state.checkpoint)
	}
	m := &image{files: files, dir: dir, control: state}
	names, err := files.List(dir)
	if err != nil {
		return nil, err
	}
	numbers := []uint64{}
	for _, name := range names {
		n, ok := segmentNumber(name)
		switch {
		case name == nextFile, ok && n < state.first:
			m.leftover = append(m.leftover, filepath.Join(dir, name))
		case ok:
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	for n := state.first; n <= state.last; n++ {
		if i := n - state.first; i >= uint64(len(numbers)) || numbers[i] != n {
			return nil, corrupt(filepath.Join(dir, segmentName(n)), 0, "the file is missing")
		}
	}
	// One more may have been begun when the power failed.
	if n := numbers[len(numbers)-1]; n > state.last+1 {
		return nil, corrupt(filepath.Join(dir, segmentName(n)), 0, "the journal's newest segment is number %d, so this one is not of it", state.last)
	}
	for _, n := range numbers {
		s, err := loadSegment(files, filepath.Join(dir, segmentName(n)))
		if err != nil {
			return nil, err
		}
		if err := m.join(s, n); err != nil {
			return nil, err
		}
	}
	if first := m.segments[0].firstPosition; state.checkpoint < first {
		return nil, corrupt(m.segments[0].path, 0, "the replay would start at record %d and the oldest one here is %d", state.checkpoint, first)
	}
	return m, nil
}

func loadSegment(files FS, path string) (*segment, error) {
	f, err := files.Open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	page := make([]byte, min(size, segmentHeader))
	if _, err := f.ReadAt(page, 0); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	h, err := decodeHeader(page)
	if err != nil {
		return nil, corrupt(path, 0, "%v", err)
	}
	if h.size != size {
		return nil, corrupt(path, min(size, h.size), "the file is %d bytes long instead of %d", size, h.size)
	}
	return &segment{header: h, path: path, end: segmentHeader}, nil
}

// join appends the segment with this number, if it continues the one before.
func (m *image) join(s *segment, number uint64) error {
	switch {
	case s.journal != m.control.journal:
		return corrupt(s.path, 0, "it belongs to another journal")
	case s.number != number:
		return corrupt(s.path, 0, "it is segment %d under another's name", s.number)
	case s.firstPosition == 0 || s.firstPosition >= 1<<62:
		return corrupt(s.path, 0, "its first record can't be %d", s.firstPosition)
	}
	if n := len(m.segments); n > 0 {
		p := m.segments[n-1]
		if s.previousEnd < segmentHeader || s.previousEnd > p.size || s.firstPosition < p.firstPosition || s.firstSequence < p.firstSequence {
			return corrupt(s.path, 0, "its header doesn't continue %s", filepath.Base(p.path))
		}
		p.end = s.previousEnd
	}
	m.segments = append(m.segments, s)
	return nil
}

// covering returns the index of the segment in which a record at p would be: the last one that begins no later, or 0.
func covering(segments []*segment, p Position) int {
	i, _ := slices.BinarySearchFunc(segments, p, func(s *segment, p Position) int {
		if s.firstPosition <= p {
			return -1
		}
		return 1
	})
	return max(i-1, 0)
}

// tail is where a log ends.
type tail struct {
	end      int64    // in the newest segment
	sequence uint64   // of the next batch
	next     Position // of the next record
	last     Position // of the last record, or one less than the first will have
	marked   bool     // the last batch is a clean end
	lastSize int64    // of the newest segment's last batch; 0 if it has none
	torn     int64    // bytes of a torn batch after the end
	batches  uint64   // that were walked over
}

// walk visits every record from segments[from] on, checking all of it, and returns where the log ends. The records are
// valid only during the visit. An error of visit ends the walk.
func (m *image) walk(from int, visit func(Position, []byte) error) (tail, error) {
	s := m.segments[from]
	t := tail{sequence: s.firstSequence, next: s.firstPosition, last: s.firstPosition - 1}
	for i := from; i < len(m.segments); i++ {
		s := m.segments[i]
		if s.firstSequence != t.sequence || s.firstPosition < t.next {
			return t, corrupt(m.segments[i-1].path, t.end, "the log doesn't go on where %s continues it", filepath.Base(s.path))
		}
		t.next, t.end, t.lastSize = s.firstPosition, segmentHeader, 0
		if err := m.walkSegment(s, i == len(m.segments)-1, &t, visit); err != nil {
			return t, err
		}
	}
	if m.control.checkpoint > t.next {
		return t, corrupt(filepath.Join(m.dir, controlFile), 0, "the replay would start at record %d and the newest one is %d", m.control.checkpoint, t.last)
	}
	return t, nil
}

func (m *image) walkSegment(s *segment, newest bool, t *tail, visit func(Position, []byte) error) error {
	f, err := m.files.Open(s.path, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	w := window{file: f, limit: s.end}
	if newest {
		w.limit = s.size
	}
	for newest || t.end < s.end {
		b, body, err := w.batch(t.end, s.nonce)
		var bad *badBatch
		switch {
		case errors.As(err, &bad) && newest:
			return m.settle(f, s, t, bad)
		case errors.As(err, &bad):
			return corrupt(s.path, t.end, "%v", bad)
		case err != nil:
			return err
		case b.sequence != t.sequence || b.first != t.next:
			return corrupt(s.path, t.end, "batch %d from record %d on is where %d from record %d on should be", b.sequence, b.first, t.sequence, t.next)
		}
		for len(body) > 0 {
			var record []byte
			record, body, _ = cutRecord(body) // check has seen that it fits
			if err := visit(t.next, record); err != nil {
				return err
			}
			t.last = t.next
			t.next++
		}
		t.end += b.size()
		t.lastSize, t.marked = b.size(), b.kind == kindEnd
		t.sequence++
		t.batches++
	}
	return nil
}

// settle decides what the end of valid batches in the newest segment means: the end of the log, perhaps with a torn
// batch after it, or damage.
func (m *image) settle(f File, s *segment, t *tail, bad *badBatch) error {
	s.end = t.end
	at, last, err := remains(f, s.nonce, t.end, s.size)
	switch {
	case err != nil:
		return err
	case at != 0:
		return corrupt(s.path, t.end, "%s, and there is one at %d after it", bad.reason, at)
	}
	t.torn = last - t.end
	c := m.control
	if c.clean && (s.number != c.endSegment || t.end != c.endOffset || t.sequence != c.endNext || t.last != c.endLast || !t.marked) {
		return corrupt(s.path, t.end, "the journal was closed with record %d at byte %d of segment %d, and here ends with record %d", c.endLast, c.endOffset, c.endSegment, t.last)
	}
	return nil
}
