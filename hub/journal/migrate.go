package journal

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
)

// migration rewrites a journal from one format version to the next. It is run again if it was interrupted, so it must
// not depend on how far it had come; the control file is the last thing that it writes.
type migration func(files FS, dir string) error

// migrations returns how journals of older versions are brought up: the first one takes version 1 to 2. There is only
// version 1 yet.
func migrations() []migration { return nil }

// migrate brings the journal in dir, whose lock the caller holds, up to the version that comes after the last step.
func migrate(files FS, dir string, steps []migration) error {
	for {
		found, err := controlVersion(files, dir)
		if err != nil {
			return err
		}
		newest := uint32(len(steps)) + 1
		switch {
		case found == newest:
			return nil
		case found == 0 || found > newest:
			return fmt.Errorf("%s has format version %d and this program reads versions 1 to %d; run the program that wrote it, or a newer one", filepath.Join(dir, controlFile), found, newest)
		}
		if err := steps[found-1](files, dir); err != nil {
			return fmt.Errorf("bring the journal from format version %d to %d: %w", found, found+1, err)
		}
		if now, err := controlVersion(files, dir); err != nil || now != found+1 {
			return errors.Join(err, fmt.Errorf("the step from format version %d to %d left version %d", found, found+1, now))
		}
	}
}

// controlVersion returns the format version of the control file, which all versions store in one place; while a migration is
// under way, the older one.
func controlVersion(files FS, dir string) (uint32, error) {
	name := filepath.Join(dir, controlFile)
	f, err := files.Open(name, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	both := make([]byte, 2*slotSize)
	if _, err := f.ReadAt(both, 0); err != nil {
		return 0, corrupt(name, 0, "it can't be read: %v", err)
	}
	lowest := uint32(math.MaxUint32)
	for _, slot := range [][]byte{both[:slotSize], both[slotSize:]} {
		var other *versionError
		switch _, err := decodeControl(slot); {
		case err == nil:
			lowest = min(lowest, version)
		case errors.As(err, &other):
			lowest = min(lowest, other.found)
		}
	}
	if lowest == math.MaxUint32 {
		return 0, corrupt(name, 0, "neither half of it is whole")
	}
	return lowest, nil
}
