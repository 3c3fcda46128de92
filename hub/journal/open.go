package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Create makes an empty journal. The folder must be absent or empty; the one above it must be there. The journal appears
// whole or, if Create fails or is interrupted, not at all.
func Create(c Config) error {
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	if err := create(c); err != nil {
		return fmt.Errorf("create a journal in %s: %w", c.Dir, err)
	}
	return nil
}

func create(c Config) error {
	dir := filepath.Clean(c.Dir)
	switch names, err := c.FS.List(dir); {
	case err == nil && len(names) > 0:
		return fmt.Errorf("the folder holds %s; a journal is created in an empty one", names[0])
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	// Made beside its place and then renamed into it.
	made := dir + ".new"
	if err := removeAll(c.FS, made); err != nil {
		return err
	}
	if err := c.FS.Mkdir(made); err != nil {
		return err
	}
	state := controlState{first: 1, last: 1, checkpoint: 1}
	rand.Read(state.journal[:]) // never fails
	h := header{journal: state.journal, number: 1, size: c.SegmentSize, firstPosition: 1, firstSequence: 1}
	_, f, err := createSegment(c.FS, made, h, c.Now())
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = createControl(c.FS, made, state)
	}
	if err == nil {
		err = writeWhole(c.FS, filepath.Join(made, lockFile), nil)
	}
	if err == nil {
		err = c.FS.SyncDir(made)
	}
	if err == nil {
		err = c.FS.Rename(made, dir)
	}
	if err != nil {
		return errors.Join(err, removeAll(c.FS, made))
	}
	return c.FS.SyncDir(filepath.Dir(dir))
}

// Open opens a journal and calls replay for every record from the checkpoint on, in order; the bytes are valid only during
// the call. It returns once the journal is ready to append. A journal that isn't whole is refused with an ErrCorrupt
// that says where, and is not changed; records may have been replayed by then. An error of replay is returned as it is.
//
// After a crash, what the last batch holds is replayed even if nobody was told that it is durable.
func Open(c Config, replay func(Position, []byte) error) (*Journal, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	j, err := open(c, replay)
	if err != nil {
		return nil, fmt.Errorf("open the journal in %s: %w", c.Dir, err)
	}
	return j, nil
}

func open(c Config, replay func(Position, []byte) error) (*Journal, error) {
	// Where there is no journal no lock file is left either.
	if err := present(c.FS, c.Dir); err != nil {
		return nil, err
	}
	lock, err := takeLock(c.FS, c.Dir, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	j, err := openLocked(c, replay)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	j.lock = lock
	go j.commit()
	go j.tell()
	return j, nil
}

func openLocked(c Config, replay func(Position, []byte) error) (*Journal, error) {
	if err := migrate(c.FS, c.Dir, migrations()); err != nil {
		return nil, err
	}
	ctl, err := openControl(c.FS, c.Dir, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	j, err := recoverFrom(c, ctl, replay)
	if err != nil {
		return nil, errors.Join(err, ctl.file.Close())
	}
	return j, nil
}

// takeLock keeps other processes out of the folder.
func takeLock(files FS, dir string, flag int) (File, error) {
	f, err := files.Open(filepath.Join(dir, lockFile), flag)
	if err != nil {
		return nil, err
	}
	if err := f.Lock(); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("another process has it open; stop that one first")
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// recoverFrom finds out where the log ends, makes sure that this is durable, and returns a journal that goes on there.
func recoverFrom(c Config, ctl *control, replay func(Position, []byte) error) (*Journal, error) {
	state := ctl.state
	m, err := load(c.FS, c.Dir, state)
	if err != nil {
		return nil, err
	}
	t, err := m.walk(covering(m.segments, state.checkpoint), func(p Position, record []byte) error {
		if p < state.checkpoint {
			return nil
		}
		return replay(p, record)
	})
	if err != nil {
		return nil, err
	}
	newest := m.segments[len(m.segments)-1]
	f, err := c.FS.Open(newest.path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	if err := m.confirm(f, t); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// From here on the end mark no longer counts. Trimming goes on where it was interrupted.
	if err := ctl.update(func(s *controlState) { s.clean, s.last = false, newest.number }); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	for _, name := range m.leftover {
		if err := c.FS.Remove(name); err != nil {
			c.Log.Warn("a file that the journal no longer needs can't be removed; the next start will try again", "file", name, "err", err)
		}
	}
	if t.torn > 0 {
		c.Log.Warn("cut off a torn batch at the end of the journal, which nobody was told is durable", "file", newest.path, "offset", t.end, "bytes", t.torn)
	}
	now := c.Now()
	for _, s := range m.segments {
		s.begun = now.Add(-max(0, time.Duration(now.UnixNano()-s.created)))
	}
	j := &Journal{
		config:     c,
		control:    ctl,
		wake:       make(chan struct{}, 1),
		closing:    make(chan struct{}),
		outcomes:   make(chan outcome, 1),
		done:       make(chan struct{}),
		gathering:  newBatch(),
		next:       t.next,
		segments:   m.segments,
		committed:  t.last,
		sequence:   t.sequence,
		checkpoint: state.checkpoint,
		holds:      make(map[string]Position),
	}
	j.closed = sync.OnceValue(j.close)
	j.log = appender{files: c.FS, dir: c.Dir, size: c.SegmentSize, now: c.Now, control: ctl, adopt: j.adopt, segment: newest, file: f, end: t.end, zeroed: t.end, sequence: t.sequence}
	return j, nil
}

// confirm makes durable what was found, and wipes what is left of a torn batch. After a sync that failed, the kernel may
// hold the last batch as clean without its being on the disk, and would never write it; so it is written once more. All
// before it was synced before it was written.
func (m *image) confirm(f File, t tail) error {
	if m.control.clean && t.torn == 0 {
		return nil
	}
	zeros := make([]byte, min(t.torn, 1<<20))
	for off := t.end; off < t.end+t.torn; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), t.end+t.torn-off)], off); err != nil {
			return fmt.Errorf("wipe the journal's torn end: %w", err)
		}
	}
	if t.lastSize > 0 {
		batch := make([]byte, t.lastSize)
		if _, err := f.ReadAt(batch, t.end-t.lastSize); err != nil {
			return fmt.Errorf("read the journal's last batch again: %w", err)
		}
		if _, err := f.WriteAt(batch, t.end-t.lastSize); err != nil {
			return fmt.Errorf("write the journal's last batch again: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync the journal: %w", err)
	}
	// A segment may have been named without its folder having been synced.
	if err := m.files.SyncDir(m.dir); err != nil {
		return fmt.Errorf("sync the journal's folder: %w", err)
	}
	return nil
}

// adopt makes a new segment known to readers.
func (j *Journal) adopt(s *segment) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.segments = append(j.segments[:len(j.segments):len(j.segments)], s)
}
