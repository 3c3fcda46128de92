package journal

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// errInjected is what a broken disk answers.
var errInjected = errors.New("injected input/output error")

const pageSize = 4096

// memory is a file system in memory that knows what is durable. Its disk fails when told to, and its power can be cut.
type memory struct {
	mu      sync.Mutex
	names   map[string]*inode // path to file
	durable map[string]*inode // the same, as a power cut leaves it at the worst
	dirs    map[string]bool
	fault   fault
	calls   int  // that could have failed
	dead    bool // the process was killed: nothing has an effect any more
}

// inode is one file's content.
type inode struct {
	data    []byte
	durable []byte
	dirty   map[int]bool // pages that the kernel means to write
	locked  bool
}

// persist writes dirty pages to the disk, those that keep wants.
func (n *inode) persist(keep func(page int) bool) {
	n.durable = n.durable[:min(len(n.durable), len(n.data))]
	for _, page := range slices.Sorted(maps.Keys(n.dirty)) {
		from := page * pageSize
		if from >= len(n.data) || !keep(page) {
			continue
		}
		to := min(from+pageSize, len(n.data))
		n.durable = append(n.durable, make([]byte, max(0, to-len(n.durable)))...)
		copy(n.durable[from:to], n.data[from:to])
	}
}

// fault says which calls fail, and how.
type fault struct {
	at     int  // the number of the call, from 1; 0: none
	sticky bool // and all after it
	effect bool // a failing call has its effect all the same; a write has half of it otherwise
	err    error
}

func newMemory() *memory {
	return &memory{names: map[string]*inode{}, durable: map[string]*inode{}, dirs: map[string]bool{".": true}}
}

// arm makes the n-th call from now on fail.
func (m *memory) arm(f fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls, m.fault = 0, f
	if f.err == nil {
		m.fault.err = errInjected
	}
}

// kill makes every call from now on fail without effect, as for a process that is no more.
func (m *memory) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
}

// survivor returns the file system as the next process finds it.
func (m *memory) survivor() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := newMemory()
	maps.Copy(s.dirs, m.dirs)
	maps.Copy(s.names, m.names)
	maps.Copy(s.durable, m.durable)
	for _, all := range []map[string]*inode{s.names, s.durable} {
		for _, n := range all {
			n.locked = false
		}
	}
	return s
}

// powerCut returns the file system after a power cut: of what was not synced, keep decides what is on the disk, page by
// page and name by name.
func (m *memory) powerCut(keep func() bool) *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := newMemory()
	maps.Copy(s.dirs, m.dirs)
	paths := slices.Sorted(maps.Keys(m.names))
	for path := range m.durable {
		if m.names[path] == nil {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	for _, path := range paths {
		n := m.durable[path]
		if n != m.names[path] && keep() {
			n = m.names[path]
		}
		if n == nil {
			continue
		}
		left := &inode{data: n.data, durable: slices.Clone(n.durable), dirty: n.dirty}
		left.persist(func(int) bool { return keep() })
		s.names[path] = &inode{data: left.durable, durable: slices.Clone(left.durable), dirty: map[int]bool{}}
	}
	maps.Copy(s.durable, s.names)
	return s
}

// clone returns a copy of which everything is durable.
func (m *memory) clone() *memory { return m.powerCut(func() bool { return true }) }

// call counts a call and says whether it fails and whether it has an effect.
func (m *memory) call() (effect bool, err error) {
	if m.dead {
		return false, syscall.EIO
	}
	m.calls++
	if f := m.fault; f.at != 0 && (m.calls == f.at || f.sticky && m.calls > f.at) {
		return f.effect, f.err
	}
	return true, nil
}

func (m *memory) Open(name string, flag int) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = filepath.Clean(name)
	effect, err := m.call()
	if !effect {
		return nil, err
	}
	n := m.names[name]
	switch {
	case n == nil && flag&os.O_CREATE == 0, !m.dirs[filepath.Dir(name)]:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case n == nil:
		n = &inode{dirty: map[int]bool{}}
		m.names[name] = n
	case flag&os.O_TRUNC != 0:
		n.data = nil
		n.dirty[0] = true
	}
	if err != nil {
		return nil, err
	}
	return &memoryFile{memory: m, inode: n, writable: flag&os.O_RDWR != 0}, nil
}

func (m *memory) Mkdir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	effect, err := m.call()
	if effect {
		m.dirs[filepath.Clean(name)] = true
	}
	return err
}

// Rename of a folder is durable at once: the tests that cut the power begin after Create.
func (m *memory) Rename(old, new string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	effect, err := m.call()
	if !effect {
		return err
	}
	if !m.dirs[old] {
		m.names[new] = m.names[old]
		delete(m.names, old)
		return err
	}
	m.dirs[new] = true
	delete(m.dirs, old)
	for _, names := range []map[string]*inode{m.names, m.durable} {
		for path, n := range maps.Clone(names) {
			if rest, ok := strings.CutPrefix(path, old+"/"); ok {
				names[new+"/"+rest] = n
				delete(names, path)
			}
		}
	}
	return err
}

func (m *memory) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	effect, err := m.call()
	if effect {
		delete(m.names, name)
		delete(m.dirs, name)
	}
	return err
}

func (m *memory) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.call(); err != nil {
		return nil, err
	}
	if !m.dirs[filepath.Clean(dir)] {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: fs.ErrNotExist}
	}
	var names []string
	for path := range m.names {
		if filepath.Dir(path) == filepath.Clean(dir) {
			names = append(names, filepath.Base(path))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (m *memory) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	effect, err := m.call()
	if !effect {
		return err
	}
	for path := range m.durable {
		if filepath.Dir(path) == filepath.Clean(dir) && m.names[path] == nil {
			delete(m.durable, path)
		}
	}
	for path, n := range m.names {
		if filepath.Dir(path) == filepath.Clean(dir) {
			m.durable[path] = n
		}
	}
	return err
}

// memoryFile is an open file of a memory.
type memoryFile struct {
	memory   *memory
	inode    *inode
	writable bool
	holds    bool // the lock
}

func (f *memoryFile) ReadAt(b []byte, off int64) (int, error) {
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	if _, err := f.memory.call(); err != nil {
		return 0, err
	}
	if off > int64(len(f.inode.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.inode.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memoryFile) WriteAt(b []byte, off int64) (int, error) {
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	if !f.writable {
		return 0, fs.ErrPermission
	}
	effect, err := f.memory.call()
	if f.memory.dead {
		return 0, err
	}
	n := len(b)
	if err != nil && !effect {
		n /= 2
	}
	f.grow(off + int64(n))
	copy(f.inode.data[off:], b[:n])
	for page := int(off / pageSize); page*pageSize < int(off)+n; page++ {
		f.inode.dirty[page] = true
	}
	if err != nil {
		return n, err
	}
	return n, nil
}

func (f *memoryFile) grow(size int64) {
	from := len(f.inode.data)
	if int64(from) >= size {
		return
	}
	f.inode.data = append(f.inode.data, make([]byte, int(size)-from)...)
	for page := from / pageSize; page*pageSize < int(size); page++ {
		f.inode.dirty[page] = true
	}
}

func (f *memoryFile) Allocate(size int64) error {
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	effect, err := f.memory.call()
	if effect {
		f.grow(size)
	}
	return err
}

// Sync that fails leaves the pages as clean, as Linux does: a second one succeeds, and writes nothing.
func (f *memoryFile) Sync() error {
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	effect, err := f.memory.call()
	if f.memory.dead {
		return err
	}
	if effect {
		f.inode.persist(func(int) bool { return true })
	}
	clear(f.inode.dirty)
	return err
}

func (f *memoryFile) Size() (int64, error) {
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	_, err := f.memory.call()
	return int64(len(f.inode.data)), err
}

func (f *memoryFile) Lock() error {
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	if _, err := f.memory.call(); err != nil {
		return err
	}
	if f.inode.locked {
		return syscall.EWOULDBLOCK
	}
	f.inode.locked, f.holds = true, true
	return nil
}

func (f *memoryFile) Close() error {
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	if f.holds {
		f.inode.locked = false
	}
	return nil
}

// some returns a keep for powerCut that keeps about a share of things.
func some(r *rand.Rand, share float64) func() bool {
	return func() bool { return r.Float64() < share }
}
