package wire

import (
	"math/bits"
	"sync"

	"github.com/mochi-mqtt/server/v2/packets"
)

// A Reader borrows 4 KiB, enough for nearly every packet of a device and for
// many in one read. What grows past it doubles as bytes arrive; up to 1 MiB
// the larger buffers are used again too.
const (
	smallBuffer  = 4 << 10
	pooledLimit  = 1 << 20
	smallBits    = 12
	largeClasses = 8 // 8 KiB to 1 MiB
)

// scratch is what a Reader needs while a packet is in flight: a buffer, the
// codec's packet and the packets that are used again and again.
type scratch struct {
	buf      []byte // small or *large
	pos, end int    // what has been read and not yet returned is buf[pos:end]
	large    *[]byte
	small    [smallBuffer]byte

	pk      packets.Packet // zero but for what decoding a PUBLISH or an acknowledgement leaves
	publish Publish
	ack     Ack

	extended bool // publish has properties
}

// The pools hold nothing but spare memory; whatever they lose, the next
// borrower allocates.
var (
	scratches = sync.Pool{New: func() any { return new(scratch) }}
	larges    [largeClasses]sync.Pool // of *[]byte, each class twice the size of the one before
)

func borrow() *scratch {
	s := scratches.Get().(*scratch)
	s.buf = s.small[:]
	return s
}

// giveBack returns s and its large buffer to their pools.
func (s *scratch) giveBack() {
	s.dropLarge()
	if s.extended {
		s.publish, s.extended = Publish{}, false
	}
	s.publish.Topic, s.publish.Payload = "", nil
	s.ack.Reason, s.ack.User = "", nil
	s.pk.TopicName, s.pk.Payload = "", nil // they point into the buffer
	s.pos, s.end = 0, 0
	scratches.Put(s)
}

func (s *scratch) dropLarge() {
	if s.large != nil && len(*s.large) <= pooledLimit {
		larges[classOf(len(*s.large))].Put(s.large)
	}
	s.large = nil
	s.buf = s.small[:]
}

// room makes space behind end for at least one more byte of a packet of size
// bytes that starts at pos. It never holds more than twice what has arrived,
// or the small buffer.
func (s *scratch) room(size int) {
	pending := s.end - s.pos
	switch {
	case s.large != nil && pending <= len(s.buf)/4:
		s.move(max(2*pending, smallBuffer)) // a large packet has left: so does its buffer
	case s.pos > 0 && (s.end == len(s.buf) || s.pos+size > len(s.buf)):
		s.end = copy(s.buf, s.buf[s.pos:s.end])
		s.pos = 0
	}
	if s.end == len(s.buf) {
		s.move(2 * len(s.buf))
	}
}

// move goes on in a buffer of at least size bytes.
func (s *scratch) move(size int) {
	pending := s.buf[s.pos:s.end]
	var next *[]byte
	if size > smallBuffer {
		next = borrowLarge(size)
	}
	to := s.small[:]
	if next != nil {
		to = *next
	}
	n := copy(to, pending)
	s.dropLarge()
	s.large, s.buf = next, to
	s.pos, s.end = 0, n
}

func borrowLarge(size int) *[]byte {
	if size > pooledLimit {
		b := make([]byte, size)
		return &b
	}
	class := classOf(size)
	if b, ok := larges[class].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, smallBuffer<<(class+1))
	return &b
}

// classOf returns the smallest class whose buffers hold size bytes, for a size
// above the small buffer's.
func classOf(size int) int { return bits.Len(uint(size-1)) - smallBits - 1 }
