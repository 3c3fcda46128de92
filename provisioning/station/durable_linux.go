package station

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// flushFilesystems makes everything durable that was written to the file systems these
// paths are on, with one syncfs(2) each. Like fsync, it reports what could not be
// written (Linux 5.8 and later).
func flushFilesystems(paths []string) error {
	flushed := make(map[uint64]bool)
	for _, path := range paths {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		if flushed[uint64(st.Dev)] {
			continue
		}
		flushed[uint64(st.Dev)] = true
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Syncfs(int(f.Fd())), f.Close()); err != nil {
			return fmt.Errorf("write the file system of %s: %w", path, err)
		}
	}
	return nil
}
