package agent

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// folderLock is a flock(2) on the credential folder itself: it leaves no file
// behind, works where the folder is read-only, and the kernel drops it when
// the process dies, however it dies.
type folderLock struct{ dir *os.File }

// lockFolder takes the lock, or says who is in the way. Two agents with one
// identity would take each other's session over, for ever.
func lockFolder(dir string) (*folderLock, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock the credential folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another device-agent is running with %s; `device-agent status --dir %s` tells about it", dir, dir)
		}
		return nil, fmt.Errorf("lock the credential folder %s: %w", dir, err)
	}
	return &folderLock{dir: f}, nil
}

func (l *folderLock) release() { _ = l.dir.Close() }

// locked reports whether an agent runs with that folder. Its own lock lasts
// an instant and is shared, so two who ask don't see each other; an agent that
// starts in that instant is refused, and systemd starts it again.
func locked(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}
