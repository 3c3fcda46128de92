package journal

import (
	"errors"
	"io/fs"
	"os"
)

// Report is what Check found.
type Report struct {
	Segments   int
	Batches    uint64
	Records    uint64
	First      Position // of the oldest record kept
	Last       Position // of the newest
	Checkpoint Position // where a replay starts
	Replayed   uint64   // records from there on
	Clean      bool     // it was closed, not interrupted
	Torn       int64    // bytes of an interrupted batch at the end, which Open would cut off
}

// Check reads all of a journal that no process has open and changes nothing. Its error says what is damaged, as Open's
// would; the report then counts what came before. replay, unless it is nil, is called on the way for every record that Open
// would replay, which is valid until it returns.
func Check(dir string, replay func(Position, []byte) error) (Report, error) {
	return check(disk{}, dir, replay)
}

func check(files FS, dir string, replay func(Position, []byte) error) (r Report, err error) {
	if err := present(files, dir); err != nil {
		return r, err
	}
	// A backup has no lock file, and a reader makes none.
	lock, err := takeLock(files, dir, os.O_RDONLY)
	if err == nil {
		defer lock.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	ctl, err := openControl(files, dir, os.O_RDONLY)
	if err != nil {
		return r, err
	}
	defer ctl.file.Close()
	m, err := load(files, dir, ctl.state)
	if err != nil {
		return r, err
	}
	r.Segments, r.First, r.Checkpoint, r.Clean = len(m.segments), m.segments[0].firstPosition, ctl.state.checkpoint, ctl.state.clean
	t, err := m.walk(0, func(p Position, record []byte) error {
		r.Records++
		if p < r.Checkpoint {
			return nil
		}
		r.Replayed++
		if replay == nil {
			return nil
		}
		return replay(p, record)
	})
	r.Batches, r.Last, r.Torn = t.batches, t.last, t.torn
	return r, err
}
