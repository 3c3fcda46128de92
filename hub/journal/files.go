package journal

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// FS is what the journal asks of a file system. The real one is used where a Config names none; tests put one there that
// fails or forgets.
type FS interface {
	// Open opens a file as os.OpenFile does; what it creates has mode 0600.
	Open(name string, flag int) (File, error)
	// Mkdir creates a folder of mode 0700 below an existing one.
	Mkdir(name string) error
	// Rename puts old in new's place, atomically.
	Rename(old, new string) error
	// Remove removes a file or an empty folder.
	Remove(name string) error
	// List returns the names in a folder, sorted.
	List(dir string) ([]string, error)
	// SyncDir makes durable which names are in a folder.
	SyncDir(dir string) error
}

// File is one open file of an FS. ReadAt may run beside WriteAt and Sync.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Allocate makes the file size bytes long and reserves the space, so that writing below size needs none.
	Allocate(size int64) error
	// Sync makes durable what was written, and as much metadata as it takes to read it again (fdatasync).
	Sync() error
	// Size returns the file's length in bytes.
	Size() (int64, error)
	// Lock takes the file for this process, or returns an error at once if another one has it. Close gives it back.
	Lock() error
}

// disk is the real file system.
type disk struct{}

func (disk) Open(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

func (disk) Mkdir(name string) error      { return os.Mkdir(name, 0o700) }
func (disk) Rename(old, new string) error { return os.Rename(old, new) }
func (disk) Remove(name string) error     { return os.Remove(name) }

func (disk) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (disk) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

type diskFile struct{ *os.File }

func (f diskFile) Sync() error {
	return f.control("fdatasync", unix.Fdatasync)
}

func (f diskFile) Allocate(size int64) error {
	err := f.control("fallocate", func(fd int) error { return unix.Fallocate(fd, 0, 0, size) })
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	// A file system without fallocate has its space reserved by writing to it.
	zeros := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return err
		}
	}
	return nil
}

func (f diskFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, &fs.PathError{Op: "stat", Path: f.Name(), Err: errors.New("is not a regular file")}
	}
	return info.Size(), nil
}

func (f diskFile) Lock() error {
	return f.control("flock", func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
}

// control makes a system call on the file's descriptor, again where a signal interrupted it.
func (f diskFile) control(name string, call func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := conn.Control(func(fd uintptr) {
		for {
			if failed = call(int(fd)); failed != unix.EINTR {
				return
			}
		}
	}); err != nil {
		return err
	}
	if failed != nil {
		return &fs.PathError{Op: name, Path: f.Name(), Err: failed}
	}
	return nil
}

// writeWhole creates a file of exactly these bytes, durable under its name but for its folder's sync.
func writeWhole(files FS, name string, content []byte) error {
	f, err := files.Open(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// removeAll removes a folder of plain files. It is no error if there is none.
func removeAll(files FS, dir string) error {
	names, err := files.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, name := range names {
		err = errors.Join(err, files.Remove(filepath.Join(dir, name)))
	}
	if err != nil {
		return err
	}
	return files.Remove(dir)
}
