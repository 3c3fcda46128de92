package pemfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	stageName    = ".partial"
	completeName = ".complete"
)

// ErrExists is in the chain when a folder already holds what a Stage would write.
var ErrExists = errors.New("already exists")

// Stage creates the files of one folder all or nothing. Files are written below
// dir/.partial; Commit marks them complete and moves them into dir. A kill before
// the mark leaves nothing but .partial, which the next NewStage removes; a kill
// after it is finished by the next NewStage or Finish. It works on a mount point,
// where the folder itself can't be renamed. One process at a time may stage a folder.
type Stage struct {
	dir string
}

// NewStage begins, creating dir (0700) where it is missing. A run that was killed
// after its mark is finished first, and then counts as existing: ErrExists.
func NewStage(dir string) (*Stage, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	finished, err := Finish(dir)
	if err != nil {
		return nil, err
	}
	if finished {
		return nil, fmt.Errorf("%s %w: an interrupted run was completed just now", dir, ErrExists)
	}
	s := &Stage{dir: dir}
	if err := os.RemoveAll(s.Path("")); err != nil {
		return nil, err
	}
	if err := os.Mkdir(s.Path(""), 0o700); err != nil {
		return nil, err
	}
	return s, nil
}

// makeDir creates dir and the folders above it, as durably as the files in it will be.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(dir, 0o700) // says why, if it is no folder
	}
	if err := makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncDir(filepath.Dir(dir))
}

// Finish completes an interrupted Commit in dir and reports whether there was one. It
// refuses, with ErrExists, to replace a file that was put there since.
func Finish(dir string) (bool, error) {
	if _, err := os.Stat(filepath.Join(dir, stageName, completeName)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			// An empty folder is what a Commit killed at its very end leaves; one with
			// files in it, which Remove spares, is a run's that may be under way.
			os.Remove(filepath.Join(dir, stageName))
			return false, nil
		}
		return false, err
	}
	s := &Stage{dir: dir}
	return true, s.move()
}

// Path returns where to write the file or folder of that name, creating the folders
// above it (0700).
func (s *Stage) Path(name string) string {
	path := filepath.Join(s.dir, stageName, name)
	if strings.ContainsRune(name, filepath.Separator) {
		os.MkdirAll(filepath.Dir(path), 0o700) // a failure shows at the write
	}
	return path
}

// Commit moves everything staged into the folder. It refuses, with ErrExists and
// nothing changed, if any of it is there already.
func (s *Stage) Commit() error {
	entries, err := os.ReadDir(s.Path(""))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := s.vacant(e.Name()); err != nil {
			return err
		}
		if e.IsDir() {
			if err := SyncDir(s.Path(e.Name())); err != nil {
				return err
			}
		}
	}
	if err := Write(s.Path(completeName), nil, 0o600); err != nil { // from here on it will be there
		return err
	}
	if err := SyncDir(s.dir); err != nil {
		return err
	}
	return s.move()
}

// Abort removes what was staged. After Commit it does nothing.
func (s *Stage) Abort() {
	os.RemoveAll(s.Path(""))
}

func (s *Stage) move() error {
	entries, err := os.ReadDir(s.Path(""))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == completeName {
			continue
		}
		if err := s.vacant(e.Name()); err != nil {
			return err
		}
		if err := os.Rename(s.Path(e.Name()), filepath.Join(s.dir, e.Name())); err != nil {
			return err
		}
	}
	if err := SyncDir(s.dir); err != nil { // the files are in place before the mark goes
		return err
	}
	if err := os.RemoveAll(s.Path("")); err != nil {
		return err
	}
	return SyncDir(s.dir)
}

// vacant returns an error if the folder has something of that name.
func (s *Stage) vacant(name string) error {
	target := filepath.Join(s.dir, name)
	switch _, err := os.Lstat(target); {
	case err == nil:
		return fmt.Errorf("%s %w and is never overwritten", target, ErrExists)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	default:
		return err
	}
}
