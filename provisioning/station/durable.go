package station

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// manyFiles is from how many files on one flush of the whole file system is cheaper
// than an fsync of each file and folder.
const manyFiles = 16

// writes puts the files of a group of devices in place together: every file is first
// complete and durable under a temporary name, then all are renamed, then the renames
// are made durable. So no file is ever seen half-written, and after commit returned nil
// all of them survive a power cut. add may be called concurrently.
type writes struct {
	mu    sync.Mutex // guards the fields below
	files []string   // final paths; each has its data at temporary(path)
	dirs  map[string]bool
}

// temporary is the same for every try, so that a repeated command replaces what a
// killed one left.
func temporary(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".partial")
}

// add writes the data beside path, making the folder (0700) where it is missing.
func (w *writes) add(path string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	touched, err := makeDir(dir)
	if err != nil {
		return err
	}
	w.mu.Lock()
	if w.dirs == nil {
		w.dirs = make(map[string]bool)
	}
	for _, d := range touched {
		w.dirs[d] = true
	}
	w.files = append(w.files, path)
	w.mu.Unlock()

	const create = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := os.OpenFile(temporary(path), create, mode)
	if errors.Is(err, fs.ErrExist) { // a killed run's
		if err := os.Remove(temporary(path)); err != nil {
			return err
		}
		f, err = os.OpenFile(temporary(path), create, mode)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// makeDir makes the folder and those above it that are missing, and returns the folders
// whose entries are to be made durable: it and the parents of every one made.
func makeDir(dir string) ([]string, error) {
	touched := []string{dir}
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return touched, nil
	}
	for d := dir; ; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		if err == nil && !info.IsDir() {
			return nil, fmt.Errorf("%s is a file, a folder is needed there", d)
		}
		if err == nil || filepath.Dir(d) == d {
			break
		}
		touched = append(touched, filepath.Dir(d))
	}
	return touched, os.MkdirAll(dir, 0o700)
}

// commit puts what was added in place.
func (w *writes) commit() error {
	if len(w.files) == 0 {
		return nil
	}
	defer w.discard()
	temporaries := make([]string, len(w.files))
	for i, path := range w.files {
		temporaries[i] = temporary(path)
	}
	dirs := slices.Collect(maps.Keys(w.dirs))
	if err := flush(temporaries, dirs); err != nil {
		return err
	}
	if err := inPlace(temporaries, w.files); err != nil {
		return err
	}
	w.files = nil
	return flush(dirs, dirs)
}

// inPlace gives each file its final name, many at a time.
func inPlace(temporaries, files []string) error {
	var workers errgroup.Group
	workers.SetLimit(runtime.GOMAXPROCS(0))
	share := max(manyFiles, (len(files)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	for start := 0; start < len(files); start += share {
		workers.Go(func() error {
			for i := start; i < min(start+share, len(files)); i++ {
				if err := os.Rename(temporaries[i], files[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return workers.Wait()
}

// discard removes what was added and is not in place.
func (w *writes) discard() {
	for _, path := range w.files {
		os.Remove(temporary(path)) // what can't be removed, the next try replaces
	}
	w.files = nil
}

// flush makes files or folders durable. Those folders, and no others, have the files in
// them or are them.
func flush(paths, dirs []string) error {
	if len(paths) >= manyFiles {
		err := flushFilesystems(dirs)
		if !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}
