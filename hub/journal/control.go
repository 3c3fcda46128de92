package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

const (
	controlFile  = "control"
	lockFile     = "lock"
	nextFile     = "next.tmp" // a segment in the making
	slotSize     = 4096
	slotFields   = 8 + 4 + 16 + 8*9
	stateOpen    = 1
	stateCleanly = 2
)

var controlMagic = [8]byte{'F', 'L', 'T', 'C', 'T', 'L', '\r', '\n'}

// controlState is what must be known of the journal as a whole. It is kept twice in one file of two pages; both are written
// each time, one after the other is durable, so that a power cut spoils one at most and so does a rotten sector. The
// file never grows: a checkpoint needs no space on a full disk.
type controlState struct {
	journal    [16]byte
	generation uint64   // counts the writes; the greater one is in force
	first      uint64   // number of the oldest segment; what is older is left over from trimming
	last       uint64   // number of a segment that exists; at most one newer may
	checkpoint Position // replay starts here
	clean      bool     // the journal was closed and ends at:
	endSegment uint64
	endOffset  int64
	endNext    uint64   // sequence number that comes after the end mark's
	endLast    Position // of the last record
}

func (c *controlState) encode() []byte {
	state := uint64(stateOpen)
	if c.clean {
		state = stateCleanly
	}
	slot := make([]byte, 0, slotSize)
	slot = append(slot, controlMagic[:]...)
	slot = order.AppendUint32(slot, version)
	slot = append(slot, c.journal[:]...)
	for _, v := range []uint64{c.generation, c.first, c.last, uint64(c.checkpoint), state, c.endSegment, uint64(c.endOffset), c.endNext, uint64(c.endLast)} {
		slot = order.AppendUint64(slot, v)
	}
	slot = order.AppendUint32(slot, checksum(slot))
	return slot[:slotSize]
}

func decodeControl(slot []byte) (controlState, error) {
	var c controlState
	switch {
	case len(slot) < slotSize:
		return c, errors.New("is too short")
	case !bytes.Equal(slot[:8], controlMagic[:]):
		return c, errors.New("is not a journal's control file")
	case !crcFits(slot, slotFields):
		return c, errors.New("has a checksum that doesn't fit")
	case order.Uint32(slot[8:]) != version:
		return c, &versionError{order.Uint32(slot[8:])}
	}
	copy(c.journal[:], slot[12:28])
	field := func(i int) uint64 { return order.Uint64(slot[28+8*i:]) }
	c.generation, c.first, c.last, c.checkpoint = field(0), field(1), field(2), Position(field(3))
	c.clean = field(4) == stateCleanly
	c.endSegment, c.endOffset, c.endNext, c.endLast = field(5), int64(field(6)), field(7), Position(field(8))
	return c, nil
}

// versionError is a control file of another format version.
type versionError struct{ found uint32 }

func (e *versionError) Error() string {
	return fmt.Sprintf("has format version %d and this program reads version %d", e.found, version)
}

// control is the open control file.
type control struct {
	file File

	// mu lets one write at a time, and guards state. It is held across the writes: serialising them is what it is for, and
	// nothing else waits for it.
	mu    sync.Mutex
	state controlState
}

// readControl returns what is in force.
func readControl(f File, name string) (controlState, error) {
	size, err := f.Size()
	if err != nil {
		return controlState{}, err
	}
	if size != 2*slotSize {
		return controlState{}, corrupt(name, 0, "it is %d bytes long instead of %d", size, 2*slotSize)
	}
	both := make([]byte, 2*slotSize)
	if _, err := f.ReadAt(both, 0); err != nil {
		return controlState{}, fmt.Errorf("read %s: %w", name, err)
	}
	a, errA := decodeControl(both[:slotSize])
	b, errB := decodeControl(both[slotSize:])
	var other *versionError
	switch {
	case errors.As(errA, &other), errors.As(errB, &other):
		return controlState{}, fmt.Errorf("%s %w; start the hub of the version that is wanted", name, other)
	case errA != nil && errB != nil:
		return controlState{}, corrupt(name, 0, "it %v", errA)
	case errA != nil:
		return b, nil
	case errB != nil:
		return a, nil
	case a.journal != b.journal:
		return controlState{}, corrupt(name, slotSize, "its halves belong to two journals")
	case b.generation > a.generation:
		return b, nil
	}
	return a, nil
}

// update changes the state durably. After an error the state may be either; in memory it is the old one.
func (c *control) update(change func(*controlState)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := c.state
	change(&state)
	state.generation++
	// A failed update may have left its generation in one slot.
	c.state.generation = state.generation
	slot := state.encode()
	for i := range int64(2) {
		if _, err := c.file.WriteAt(slot, i*slotSize); err != nil {
			return fmt.Errorf("write the journal's control file: %w", err)
		}
		if err := c.file.Sync(); err != nil {
			return fmt.Errorf("sync the journal's control file: %w", err)
		}
	}
	c.state = state
	return nil
}

// createControl writes a control file into dir, durable but for the folder's sync.
func createControl(files FS, dir string, state controlState) error {
	slot := state.encode()
	return writeWhole(files, filepath.Join(dir, controlFile), append(slot, slot...))
}

// present says in words if dir holds no journal.
func present(files FS, dir string) error {
	f, err := files.Open(filepath.Join(dir, controlFile), os.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s holds no journal: there is no file %s; restore a backup, or create one if this hub is new", dir, controlFile)
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// openControl opens dir's control file, to write as well.
func openControl(files FS, dir string, flag int) (*control, error) {
	name := filepath.Join(dir, controlFile)
	f, err := files.Open(name, flag)
	if err != nil {
		return nil, err
	}
	state, err := readControl(f, name)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &control{file: f, state: state}, nil
}
