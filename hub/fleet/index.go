package fleet

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/ticket"
)

// shardCount splits the index so that neither readers nor its growth get in each
// other's way. It fits the 8 bits that a ref has for it.
const shardCount = 256

// index is what admission reads: of every device its state, the fingerprints of the
// certificates it may present, and which attributes it has, in some 90 bytes (an ID of
// 16 included). The holder of the fleet's turn writes, each device in one goroutine at a
// time; any number read, each under the lock of one shard, for as long as a copy takes.
//
// Devices are never removed. IDs and certificates are found by hash tables of numbers
// into slices, not by maps of strings: a million strings are a million objects for the
// garbage collector to visit, and 40 bytes more a device.
type index struct {
	seed       maphash.Seed
	shards     [shardCount]shard
	names      [shardCount]nameTable
	attributes attributeTable
	counts     [len(stateCodes)]atomic.Int64 // devices by state
}

// shard has the devices whose ID's hash ends alike.
type shard struct {
	mu      sync.RWMutex // guards what follows
	slots   []uint32     // open addressing by ID: number of the entry and 1, or 0; a power of two
	entries []cell
	ids     []byte                            // of all entries, one after the other
	more    map[uint32][]registry.Fingerprint // further usable certificates of an entry, of the few that have any
}

// cell is one device.
type cell struct {
	fingerprint registry.Fingerprint // of its oldest usable certificate, if it has one
	id          uint32               // where its ID begins in ids
	packed      packed
}

// packed has what needs few bits of a cell: 15 for the number in the attribute table, 7
// for the length of the ID, 3 for the state's number in stateCodes, and 2 for the usable
// certificates: none, one, or 2 for some in more.
type packed uint32

func pack(attributes uint32, idLen int, state uint8, usable int) packed {
	return packed(attributes | uint32(idLen)<<15 | uint32(state)<<22 | uint32(usable)<<25)
}

func (p packed) attributes() uint32 { return uint32(p) & (1<<15 - 1) }
func (p packed) idLen() uint32      { return uint32(p) >> 15 & (1<<7 - 1) }
func (p packed) state() uint8       { return uint8(p >> 22 & (1<<3 - 1)) }
func (p packed) usable() int        { return int(p >> 25 & (1<<2 - 1)) }

// ref names an entry: 8 bits of shard, 24 of its number there.
type ref uint32

func newRef(shard, number uint32) ref       { return ref(shard<<24 | number) }
func (r ref) split() (shard, number uint32) { return uint32(r) >> 24, uint32(r) & (1<<24 - 1) }

// stateCodes gives each state its number in an entry.
var stateCodes = [...]registry.State{"", registry.StateRegistered, registry.StateActive, registry.StateSuspended,
	registry.StateRevoked, registry.StateRetired, registry.StateReplaced, registry.StateQuarantined}

func stateCode(s registry.State) uint8 { return uint8(max(0, slices.Index(stateCodes[:], s))) }

func (x *index) init() { x.seed = maphash.MakeSeed() }

// locate returns the shard of an ID and where its probing begins.
func (x *index) locate(id string) (shard uint32, start uint64) {
	h := maphash.String(x.seed, id)
	return uint32(h % shardCount), h / shardCount
}

// find returns the number of an ID's entry. The caller holds the lock.
func (s *shard) find(id string, start uint64) (number uint32, ok bool) {
	if len(s.slots) == 0 {
		return 0, false
	}
	mask := uint64(len(s.slots) - 1)
	for i := start & mask; s.slots[i] != 0; i = (i + 1) & mask {
		if number := s.slots[i] - 1; s.id(number) == id {
			return number, true
		}
	}
	return 0, false
}

// id returns an entry's ID, as a copy only where the compiler can't do without.
func (s *shard) id(number uint32) string {
	e := &s.entries[number]
	return string(s.ids[e.id : e.id+e.packed.idLen()])
}

// snapshot is a copy of an entry.
type snapshot struct {
	state      registry.State
	attributes *registry.Attributes // nil: they are on disk only
	usable     []registry.Fingerprint
}

// lookup returns what the index has of a device.
func (x *index) lookup(id string) (snapshot, bool) {
	n, start := x.locate(id)
	s := &x.shards[n]
	s.mu.RLock()
	defer s.mu.RUnlock()
	number, ok := s.find(id, start)
	if !ok {
		return snapshot{}, false
	}
	return s.snapshot(x, number), true
}

// snapshot copies an entry. Attributes are looked up under the shard's lock: their
// place in the table may be given to others once no entry names it.
func (s *shard) snapshot(x *index, number uint32) snapshot {
	e := &s.entries[number]
	c := snapshot{state: stateCodes[e.packed.state()], attributes: x.attributes.at(e.packed.attributes())}
	if e.packed.usable() > 0 {
		c.usable = append(make([]registry.Fingerprint, 0, 1), e.fingerprint)
	}
	if e.packed.usable() > 1 {
		c.usable = append(c.usable, s.more[number]...)
	}
	return c
}

// state returns a device's state, false if there is no such device.
func (x *index) state(id string) (registry.State, bool) {
	n, start := x.locate(id)
	s := &x.shards[n]
	s.mu.RLock()
	defer s.mu.RUnlock()
	number, ok := s.find(id, start)
	if !ok {
		return "", false
	}
	return stateCodes[s.entries[number].packed.state()], true
}

// setState changes nothing but the state of a device that is there.
func (x *index) setState(id string, state registry.State) {
	n, start := x.locate(id)
	s := &x.shards[n]
	s.mu.Lock()
	defer s.mu.Unlock()
	if number, ok := s.find(id, start); ok {
		e := &s.entries[number]
		x.set(e, e.packed.attributes(), state, e.packed.usable())
	}
}

// set gives an entry what it has packed, and counts its state.
func (x *index) set(e *cell, attributes uint32, state registry.State, usable int) {
	code := stateCode(state)
	x.counts[e.packed.state()].Add(-1)
	x.counts[code].Add(1)
	e.packed = pack(attributes, int(e.packed.idLen()), code, usable)
}

// put enters a device or renews what is there.
func (x *index) put(f *registry.Facts) {
	n, start := x.locate(f.ID)
	s := &x.shards[n]
	set := x.attributes.acquire(f.Attributes)
	s.mu.Lock()
	number, known := s.find(f.ID, start)
	former := uint32(onDisk)
	var gone []registry.Fingerprint
	if known {
		former = s.entries[number].packed.attributes()
		gone = s.snapshot(x, number).usable
	} else {
		number = s.add(x, f.ID, start)
		x.counts[0].Add(1)
	}
	e := &s.entries[number]
	x.set(e, set, f.State, min(len(f.Usable), 2))
	delete(s.more, number)
	e.fingerprint = registry.Fingerprint{}
	if len(f.Usable) > 0 {
		e.fingerprint = f.Usable[0]
	}
	if len(f.Usable) > 1 {
		if s.more == nil {
			s.more = make(map[uint32][]registry.Fingerprint)
		}
		s.more[number] = slices.Clone(f.Usable[1:])
	}
	s.mu.Unlock()
	x.attributes.release(former)
	for _, sum := range gone {
		if !slices.Contains(f.Usable, sum) {
			x.names[sum[0]].remove(sum, newRef(n, number))
		}
	}
	for _, sum := range f.Usable {
		if !slices.Contains(gone, sum) {
			x.names[sum[0]].add(sum, newRef(n, number))
		}
	}
}

// add makes an entry for an ID that has none. The caller holds the lock.
func (s *shard) add(x *index, id string, start uint64) uint32 {
	if len(s.entries) >= len(s.slots)*7/8 {
		s.grow(x)
	}
	number := uint32(len(s.entries))
	s.entries = append(roomier(s.entries, 1), cell{id: uint32(len(s.ids)), packed: pack(onDisk, len(id), 0, 0)})
	s.ids = append(roomier(s.ids, len(id)), id...)
	s.place(number, start)
	return number
}

// roomier returns the slice with room for n more. It grows by an eighth, where append
// would grow by a quarter.
func roomier[T any](s []T, n int) []T {
	if len(s)+n <= cap(s) {
		return s
	}
	return append(make([]T, 0, len(s)+n+len(s)/8), s...)
}

func (s *shard) place(number uint32, start uint64) {
	mask := uint64(len(s.slots) - 1)
	i := start & mask
	for s.slots[i] != 0 {
		i = (i + 1) & mask
	}
	s.slots[i] = number + 1
}

func (s *shard) grow(x *index) {
	s.slots = make([]uint32, max(16, 2*len(s.slots)))
	for number := range s.entries {
		_, start := x.locate(s.id(uint32(number)))
		s.place(uint32(number), start)
	}
}

// nameTable finds entries by the first octets of a certificate's fingerprint, those whose
// first one is the same.
type nameTable struct {
	mu    sync.RWMutex // guards what follows
	one   map[uint32]ref
	other map[uint32][]ref // beyond the first with the same octets: at a million devices some hundred
}

func shortName(sum []byte) uint32 { return binary.BigEndian.Uint32(sum[:ticket.ShortName]) }

func (n *nameTable) add(sum registry.Fingerprint, r ref) {
	name := shortName(sum[:])
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.one == nil {
		n.one, n.other = make(map[uint32]ref), make(map[uint32][]ref)
	}
	if _, taken := n.one[name]; taken {
		n.other[name] = append(n.other[name], r)
		return
	}
	n.one[name] = r
}

func (n *nameTable) remove(sum registry.Fingerprint, r ref) {
	name := shortName(sum[:])
	n.mu.Lock()
	defer n.mu.Unlock()
	others := n.other[name]
	switch i := slices.Index(others, r); {
	case i >= 0:
		others = slices.Delete(slices.Clone(others), i, i+1)
	case n.one[name] != r:
		return
	case len(others) > 0:
		n.one[name], others = others[0], slices.Clone(others[1:])
	default:
		delete(n.one, name)
	}
	n.other[name] = others
	if len(others) == 0 {
		delete(n.other, name)
	}
}

// find returns the entries that may have a certificate with that name. Nobody changes
// the result.
func (n *nameTable) find(name []byte) []ref {
	n.mu.RLock()
	defer n.mu.RUnlock()
	first, ok := n.one[shortName(name)]
	if !ok {
		return nil
	}
	others := n.other[shortName(name)]
	return append([]ref{first}, others...)
}

// entry returns the ID and a copy of an entry.
func (x *index) entry(r ref) (string, snapshot) {
	n, number := r.split()
	s := &x.shards[n]
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.id(number), s.snapshot(x, number)
}

// len returns how many devices there are.
func (x *index) len() (n int) {
	for i := 1; i < len(x.counts); i++ {
		n += int(x.counts[i].Load())
	}
	return n
}
