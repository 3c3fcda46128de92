// Package wire reads and writes MQTT 3.1.1 and 5.0 control packets by the
// letter of the two specifications. Every byte that a peer sends is judged by
// our own rules first (rules.go lists them with their clauses); only what
// passed them is handed to mochi's packet codec, whose panics end in an Error
// and not in the process. Nothing else in the house imports mochi.
//
// The package knows frames, not sessions: whether a packet identifier is in
// use, a topic alias known or a filter allowed is for the broker to say. It
// works in both directions, so that tests and tools speak through it too.
package wire

import (
	"errors"
	"io"
)

// A direction says who may have sent a packet; a set of bits.
type direction byte

const (
	fromClient direction = 1 << iota
	fromServer
	either = fromClient | fromServer
)

// Reader reads control packets from a connection. It is used by one goroutine
// at a time. An idle Reader holds no buffer: it waits for a packet's first two
// bytes in itself and borrows a buffer only when there is more to read.
type Reader struct {
	src     io.Reader
	s       *scratch // nil while nothing but head is buffered
	bad     *Error   // what the peer did wrong; the stream means nothing behind it
	failed  error    // what src said together with its last bytes
	limit   int
	head    [2]byte // the first bytes of a packet for which no buffer was borrowed yet
	headLen byte
	version byte
	said    byte // the protocol level in the last CONNECT
	sender  direction
	ping    Ping
}

// NewReader returns a Reader for what a client sends over src. limit is the
// size in bytes of the largest packet accepted, fixed header included.
func NewReader(src io.Reader, limit int) *Reader {
	return &Reader{src: src, limit: limit, sender: fromClient}
}

// SetVersion says which protocol version was agreed: V311 or V5. Before it, a
// server's Reader accepts nothing but a CONNECT, after it everything else.
func (r *Reader) SetVersion(v byte) { r.version = v }

// Version is what SetVersion said or, before it, the protocol level that the
// last CONNECT announced, even if that CONNECT was refused: it says how to
// word the refusal. It is 0 if no CONNECT got that far.
func (r *Reader) Version() byte {
	if r.version == 0 {
		return r.said
	}
	return r.version
}

// SetLimit changes the size of the largest packet accepted from now on.
func (r *Reader) SetLimit(limit int) { r.limit = limit }

// Client switches to the other direction: the Reader accepts what a server
// sends. A client sets the version before its first Next, which is an error otherwise.
func (r *Reader) Client() { r.sender = fromServer }

// Buffered reports whether bytes behind the last packet, perhaps a whole
// packet, have been read from the connection already.
func (r *Reader) Buffered() bool { return r.s != nil && r.s.pos < r.s.end || r.headLen > 0 }

// Release gives back what the Reader has borrowed. The last packet is not
// valid behind it, and bytes that are buffered are lost.
func (r *Reader) Release() {
	if r.s != nil {
		r.s.giveBack()
		r.s = nil
	}
	r.headLen = 0
}

// Next blocks until a whole packet has come and returns it. The packet and the
// byte slices in it are valid until the next call; strings are copies. What
// the peer did wrong is an *Error, the same at every further call. Errors of
// the connection are returned as they are, except that its end inside a packet
// is io.ErrUnexpectedEOF; after one that is temporary, such as a deadline,
// Next goes on where it was.
func (r *Reader) Next() (Packet, error) {
	if r.bad != nil {
		return nil, r.bad
	}
	if r.version == 0 && r.sender == fromServer {
		return nil, errNoVersion
	}
	if r.s != nil && r.s.pos == r.s.end {
		r.s.giveBack()
		r.s = nil
	}
	f, err := r.frame()
	if err != nil {
		return nil, err
	}
	p, wrong := r.decode(&f)
	if wrong != nil {
		return nil, r.refuse(wrong)
	}
	return p, nil
}

// errNoVersion is a mistake of the program and not of the peer.
var errNoVersion = errors.New("read from an MQTT server: set the version that the CONNECT announced first")

// refuse keeps what the peer did wrong.
func (r *Reader) refuse(e *Error) error {
	r.bad = e
	return e
}

// frame returns the next packet's bytes, and counts them as read.
func (r *Reader) frame() (frame, error) {
	if r.s == nil {
		f, whole, err := r.small()
		if whole || err != nil {
			return f, err
		}
	}
	s := r.s
	for judged := false; ; {
		pending := s.buf[s.pos:s.end]
		if !judged && len(pending) > 0 {
			if broken := checkFirst(pending[0], r.version, r.sender); broken != ruleNone {
				return frame{}, r.refuse(failed(broken, r.version, ""))
			}
			judged = true
		}
		n, size, padded, wrong := r.header(pending)
		if wrong != nil {
			return frame{}, r.refuse(wrong)
		}
		if size > 0 && len(pending) >= size {
			s.pos += size
			return frame{pending[n:size:size], pending[0], padded, r.version, r.sender}, nil
		}
		if err := r.more(s, size); err != nil {
			return frame{}, err
		}
	}
}

// small waits for a packet's first two bytes without a buffer. If they are a
// whole packet, as a PINGREQ is, it stays at that; otherwise they are moved to
// a borrowed buffer.
func (r *Reader) small() (f frame, whole bool, err error) {
	for r.headLen < 2 {
		n, err := r.read(r.head[r.headLen:])
		if err != nil {
			return frame{}, false, r.ended(err, r.headLen > 0)
		}
		r.headLen += byte(n)
		if broken := checkFirst(r.head[0], r.version, r.sender); broken != ruleNone {
			return frame{}, false, r.refuse(failed(broken, r.version, ""))
		}
	}
	if r.head[1] == 0 {
		r.headLen = 0
		return frame{first: r.head[0], version: r.version, sender: r.sender}, true, nil
	}
	r.s = borrow()
	r.s.end = copy(r.s.buf, r.head[:])
	r.headLen = 0
	return frame{}, false, nil
}

// more reads once, and makes room for a packet of size bytes as they come: what
// is announced allocates nothing.
func (r *Reader) more(s *scratch, size int) error {
	s.room(size)
	n, err := r.read(s.buf[s.end:])
	s.end += n
	if err != nil {
		return r.ended(err, true)
	}
	return nil
}

// maxEmptyReads is how often in a row a connection may return nothing and no
// error, as bufio has it.
const maxEmptyReads = 100

// read reads at least one byte or returns an error, not both.
func (r *Reader) read(p []byte) (int, error) {
	if err := r.failed; err != nil {
		r.failed = nil
		return 0, err
	}
	for range maxEmptyReads {
		n, err := r.src.Read(p)
		if n > 0 {
			r.failed = err
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, io.ErrNoProgress
}

// ended tells the end of a connection inside a packet from one between two.
func (r *Reader) ended(err error, inside bool) error {
	if err == io.EOF && inside {
		return io.ErrUnexpectedEOF
	}
	return err
}
