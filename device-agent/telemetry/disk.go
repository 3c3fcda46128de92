package telemetry

import "syscall"

// diskSpace returns the size of the file system at path and what an
// unprivileged program may still write to it.
func diskSpace(path string) (size, free uint64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, 0, err
	}
	block := uint64(st.Bsize) // the field's type differs between architectures
	return st.Blocks * block, st.Bavail * block, nil
}
