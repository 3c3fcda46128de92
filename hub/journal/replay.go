package journal

import (
	"errors"
	"io/fs"
	"os"
)

// Replay calls f for every record that Open would, in order, of a journal that no process has open. It changes nothing. A
// record is valid until f returns.
func Replay(dir string, f func(Position, []byte) error) error {
	files := disk{}
	if err := present(files, dir); err != nil {
		return err
	}
	// A backup has no lock file, and a reader makes none.
	lock, err := takeLock(files, dir, os.O_RDONLY)
	if err == nil {
		defer lock.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ctl, err := openControl(files, dir, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer ctl.file.Close()
	m, err := load(files, dir, ctl.state)
	if err != nil {
		return err
	}
	_, err = m.walk(0, func(p Position, record []byte) error {
		if p < ctl.state.checkpoint {
			return nil
		}
		return f(p, record)
	})
	return err
}
