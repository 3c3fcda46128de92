package fleet

import (
	"sync"
	"sync/atomic"

	"github.com/fleethub/fleethub/hub/registry"
)

// maxSets bounds how many different sets of attributes are kept in memory: 4 MB or so.
// A fleet has some hundred (model, batch, station, labels); one that gives every board
// a label of its own has a million, and those beyond the bound stay on disk.
const maxSets = 1 << 14

// onDisk stands in an entry for attributes that are not in memory.
const onDisk = maxSets

// attributeTable keeps each different set of attributes once.
type attributeTable struct {
	sets [maxSets]atomic.Pointer[registry.Attributes]

	mu      sync.Mutex        // guards what follows; readers of sets don't take it
	numbers map[string]uint32 // by their canonical octets
	keys    []string          // those octets, by number
	users   []uint32          // how many entries name the set
	free    []uint32          // numbers that nobody names any more
}

// at returns a set by its number, nil for one on disk. The caller holds the lock of a
// shard with an entry that names it.
func (t *attributeTable) at(number uint32) *registry.Attributes {
	if number >= maxSets {
		return nil
	}
	return t.sets[number].Load()
}

// acquire returns the number of a set for one more entry.
func (t *attributeTable) acquire(a *registry.Attributes) uint32 {
	key := a.Append(nil)
	t.mu.Lock()
	defer t.mu.Unlock()
	if number, ok := t.numbers[string(key)]; ok {
		t.users[number]++
		return number
	}
	var number uint32
	switch n := len(t.free); {
	case n > 0:
		number, t.free = t.free[n-1], t.free[:n-1]
	case len(t.keys) < maxSets:
		number = uint32(len(t.keys))
		t.keys, t.users = append(t.keys, ""), append(t.users, 0)
	default:
		return onDisk
	}
	if t.numbers == nil {
		t.numbers = make(map[string]uint32)
	}
	t.numbers[string(key)], t.keys[number], t.users[number] = number, string(key), 1
	t.sets[number].Store(a)
	return number
}

// release takes back what acquire gave. The entry names another set by now.
func (t *attributeTable) release(number uint32) {
	if number >= maxSets {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.users[number]--; t.users[number] > 0 {
		return
	}
	delete(t.numbers, t.keys[number])
	t.keys[number] = ""
	t.free = append(t.free, number)
	t.sets[number].Store(nil)
}
