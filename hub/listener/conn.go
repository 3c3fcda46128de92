package listener

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// ErrSlowPeer is the error of a write to a peer that lags too far behind.
var ErrSlowPeer = errors.New("the peer reads too slowly: its write buffer is full")

// Conn is an accepted connection whose peer is known. It is a net.Conn with
// three differences. Write never blocks: it hands the bytes to a buffer that a
// short-lived goroutine empties, one TLS record for what has gathered; a peer
// that falls WriteBuffer bytes behind, or takes nothing for WriteTimeout, is
// cut. Close never blocks either: what was written before it still goes out,
// for at most CloseTimeout. And SetDeadline concerns reads only.
//
// So nothing that holds a lock over a write or a close can be held up by a peer
// that has stopped reading. All methods are safe for concurrent use.
type Conn struct {
	// Peer is who is on the other end, as Config.Verify said. Set before the
	// handler runs, never changed.
	Peer mtls.Peer

	closed   atomic.Int64 // Unix nanoseconds at which the socket was closed; 0: it isn't
	writing  atomic.Int64 // Unix nanoseconds at which a write began that isn't over; 0: none
	shaken   atomic.Bool  // the handshake is over, and its deadline for writes with it
	raw      *rawConn
	tls      *tls.Conn
	pool     *sync.Pool
	brief    *workers
	refusals *refusals
	address  netip.Addr // whose credit it took; see addresses
	judged   bool       // Config.Verify was asked; the handshake's goroutine only, as is claimed
	claimed  string     // common name of the certificate presented
	ticket   uint64     // see Handshake.Ticket; likewise

	writeTimeout, closeTimeout time.Duration
	flushers                   sync.WaitGroup // the flush goroutine, if any
	writeBy                    time.Time      // the socket's write deadline, at least; whoever sends
	shakenAt                   int64          // octets written when the handshake was over
	done                       chan struct{}  // closed by finish
	finished                   sync.Once

	mu       sync.Mutex  // guards what follows
	limit    int         // of len(pending)
	pending  *[]byte     // written, not yet taken by the flusher; nil: none
	flushing bool        // a flusher runs, or is about to
	closing  bool        // no more reads and writes
	failure  error       // of the write that failed
	gone     bool        // the peer has closed its side: nobody waits for a goodbye
	greeted  bool        // the first write was made
	readBy   time.Time   // the read deadline that is meant, where the socket's comes earlier
	drained  func()      // called once nothing is pending; nil: nobody asked
	patience *time.Timer // cuts a connection that is closing; nil before Close
}

// rawConn is the TCP connection below TLS. It leads crypto/tls's callbacks back
// to the Conn they are about.
type rawConn struct {
	net.Conn
	conn     *Conn
	turn     *turn        // nil unless a handshake is under way; its goroutine only
	up, down atomic.Int64 // octets read and written; see account.go

	writers  atomic.Int32 // writes under way
	hurried  atomic.Bool  // a write that begins waits for nobody; see hurry
	together atomic.Bool  // and leaves with the next
}

// Read reads for crypto/tls.
func (r *rawConn) Read(p []byte) (int, error) {
	if r.turn != nil {
		return r.turn.read(p)
	}
	return r.receive(p)
}

var _ net.Conn = (*Conn)(nil)

func newConn(raw net.Conn, l *Listener) *Conn {
	c := &Conn{
		pool:         &l.buffers,
		brief:        l.brief,
		refusals:     &l.refusals,
		writeTimeout: l.config.WriteTimeout,
		closeTimeout: l.config.CloseTimeout,
		done:         make(chan struct{}),
		limit:        l.config.WriteBuffer,
	}
	c.raw = &rawConn{Conn: raw, conn: c}
	c.tls = tls.Server(c.raw, l.tls)
	return c
}

// SetWriteBuffer sets how many bytes the peer may lag behind.
func (c *Conn) SetWriteBuffer(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = n
}

// Lags reports whether more than half of the write buffer is waiting for the
// peer: time to drop what may be dropped.
func (c *Conn) Lags() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending != nil && len(*c.pending) > c.limit/2
}

// OnDrain has f called once, on a goroutine of the connection's own, when nothing that
// was written waits any more. A later f replaces one that was not called yet; a
// connection that ends calls none.
func (c *Conn) OnDrain(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return
	}
	c.drained = f
	c.startFlush()
}

// Read reads what the peer sent. After Close it returns net.ErrClosed.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.tls.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) && c.putOff() {
		n, err = c.tls.Read(p)
	}
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.gone = c.gone || errors.Is(err, io.EOF)
		if c.closing {
			err = net.ErrClosed
		}
	}
	return n, err
}

// greeting bounds a first write that is sent on the spot.
const greeting = 1 << 10

// Write takes p for sending and returns at once. An error means that the
// connection is closed or about to be.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure != nil {
		return 0, c.failure
	}
	if c.closing {
		return 0, net.ErrClosed
	}
	if c.pending == nil {
		c.pending = c.buffer()
	}
	// A message of any size goes to a peer that has nothing outstanding.
	if n := len(*c.pending); n > 0 && n+len(p) > c.limit {
		c.failure = ErrSlowPeer
		c.closing = true
		// Not finish: the socket's close may not be waited for under the lock.
		c.flushers.Go(c.Cut)
		return 0, ErrSlowPeer
	}
	*c.pending = append(*c.pending, p...)
	first := !c.greeted
	c.greeted = true
	if first && !c.flushing && len(p) <= greeting && c.raw.down.Load() == c.shakenAt {
		// The handler's answer to its peer's first packet. The socket's buffer holds
		// nothing but a handshake by now (no answers to key updates either), so so little
		// can't block, and a goroutine less is woken in each connect.
		c.flushing = true
		c.mu.Unlock()
		c.flush()
		c.mu.Lock()
		return len(p), c.failure
	}
	c.startFlush()
	return len(p), nil
}

// startFlush has a flusher running. The caller holds mu.
func (c *Conn) startFlush() {
	if !c.flushing {
		c.flushing = true
		c.flushers.Add(1)
		c.brief.run(func() {
			defer c.flushers.Done()
			// Whoever else has something to write, and can run, writes it first: a record
			// for many messages costs little more than one for one. In a quiet hub nobody
			// can, and this returns at once.
			runtime.Gosched()
			c.flush()
		})
	}
}

// flush sends what has gathered until nothing is left. After Close it also says
// goodbye and closes the socket.
func (c *Conn) flush() {
	for {
		c.mu.Lock()
		buf := c.pending
		c.pending = nil
		if drained := c.drained; buf == nil && drained != nil && !c.closing {
			c.drained = nil
			c.mu.Unlock()
			drained() // may write, so look again
			continue
		}
		if buf == nil {
			c.flushing = false
			closing, gone := c.closing, c.gone
			c.mu.Unlock()
			if closing && !gone {
				c.tls.Close() // close_notify, then the socket
			}
			if closing {
				c.finish()
			}
			return
		}
		c.mu.Unlock()
		err := c.send(*buf)
		c.release(buf)
		if err == nil {
			runtime.Gosched() // likewise
		}
		if err != nil {
			c.mu.Lock()
			c.failure, c.closing, c.flushing = err, true, false
			c.mu.Unlock()
			c.Cut()
			return
		}
	}
}

// sendChunk is how much may go out per WriteTimeout, or three quarters of it: a peer that reads slowly
// but steadily makes progress.
const sendChunk = 64 << 10

func (c *Conn) send(p []byte) error {
	for len(p) > 0 {
		chunk := p[:min(len(p), sendChunk)]
		p = p[len(chunk):]
		now := time.Now()
		// A busy connection doesn't set a timer for each record.
		if left := c.writeBy.Sub(now); left < c.writeTimeout*3/4 || left > c.writeTimeout {
			c.writeBy = now.Add(c.writeTimeout)
			if err := c.tls.SetWriteDeadline(c.writeBy); err != nil {
				return err
			}
		}
		c.writing.Store(now.UnixNano())
		_, err := c.tls.Write(chunk)
		c.writing.Store(0)
		if err != nil {
			return err
		}
	}
	return nil
}

// Close closes the connection in the background: what was written still goes
// out, then TLS's close_notify, and after CloseTimeout at the latest the socket
// is closed. Reads end at once.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return nil
	}
	c.closing = true
	if c.gone && !c.flushing && c.pending == nil && c.writing.Load() == 0 {
		// Nobody is there to be told, and nobody reads or writes: the socket's close waits
		// for nothing.
		c.mu.Unlock()
		c.finish()
		c.mu.Lock()
		return nil
	}
	c.tls.SetReadDeadline(longAgo)
	if at := c.writing.Load(); at != 0 && time.Since(time.Unix(0, at)) > stuck {
		// The peer reads nothing: what else is there to say won't reach it either. Not
		// here: the socket's close may not be waited for under the lock.
		c.flushers.Go(c.Cut)
		return nil
	}
	c.patience = time.AfterFunc(c.closeTimeout, c.Cut)
	c.startFlush()
	return nil
}

// CloseHere is Close, with last as the last that is written, on the caller's goroutine
// where nothing is waited for: to a peer that keeps up, in one segment with TLS's
// close_notify and the end of the stream. Unlike Close it makes system calls, so hold no
// lock over it. It is for who closes many connections one after the other: they don't
// compete with the others' messages for the processors.
func (c *Conn) CloseHere(last []byte) error {
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		return nil
	}
	if c.flushing || c.pending != nil || !c.raw.hurry() {
		c.mu.Unlock()
		if len(last) > 0 {
			_, _ = c.Write(last) // an error means that it is closing
		}
		return c.Close()
	}
	c.closing, c.flushing = true, true // nobody else writes
	gone := c.gone
	c.mu.Unlock()
	if !gone {
		if len(last) > 0 {
			_, _ = c.tls.Write(last) // who doesn't take it isn't waited for
		}
		c.tls.Close()
	}
	c.finish()
	return nil
}

// stuck is how long a write takes to a peer that has stopped reading.
const stuck = 20 * time.Millisecond

// longAgo as a deadline ends a read that is under way.
var longAgo = time.Unix(1, 0)

// Cut closes the socket now, whatever is under way, and drops what the kernel
// still holds for the peer.
func (c *Conn) Cut() {
	c.mu.Lock()
	c.closing = true
	c.pending = nil
	c.mu.Unlock()
	if tcp, ok := c.raw.Conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.finish()
}

func (c *Conn) finish() {
	c.finished.Do(func() {
		c.raw.Close()
		c.closed.Store(time.Now().UnixNano())
		close(c.done)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.patience != nil {
			c.patience.Stop()
		}
	})
}

// linger lets a refused client read the alert that says so. It has perhaps sent
// more than was read, and closing on unread data resets the connection, which
// can overtake the alert. It waits until the client hangs up, for at most
// CloseTimeout.
func (c *Conn) linger() {
	tcp, ok := c.raw.Conn.(*net.TCPConn)
	if !ok || tcp.CloseWrite() != nil {
		return
	}
	if tcp.SetReadDeadline(time.Now().Add(c.closeTimeout)) == nil {
		io.CopyN(io.Discard, tcp, 64<<10)
	}
}

// Apart calls f on a goroutine whose stack has grown already, and returns at once: what
// serves the connection waits on a small one, and growing it for its last moment costs
// more than most of what is done in it. The handler that calls Apart returns behind it;
// the connection is finished when f has returned, too. A panic in f is logged.
func (c *Conn) Apart(f func()) {
	c.flushers.Add(1)
	c.brief.run(func() {
		defer c.flushers.Done()
		defer func() {
			if r := recover(); r != nil {
				c.refusals.log.Error("panic at the end of a connection", "remote", c.RemoteAddr(), "id", c.Peer.Identity.ID, "panic", r, "stack", string(debug.Stack()))
			}
		}()
		f()
	})
}

// ClosedAt returns when the socket was closed; zero while it isn't.
func (c *Conn) ClosedAt() time.Time {
	if at := c.closed.Load(); at != 0 {
		return time.Unix(0, at).UTC()
	}
	return time.Time{}
}

// Done is closed when the socket is closed.
func (c *Conn) Done() <-chan struct{} { return c.done }

// LogRefusal logs that the handler turned the peer away, within the bounds that the
// listener has for such lines: a peer must not be able to fill the disk with them.
func (c *Conn) LogRefusal(reason, id, detail string) {
	c.refusals.add(c.RemoteAddr(), reason, id, detail)
}

// LocalAddr returns the hub's address.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// ConnectionState returns what TLS has negotiated.
func (c *Conn) ConnectionState() tls.ConnectionState { return c.tls.ConnectionState() }

// keptBuffer bounds the buffers that go back to the pool.
const keptBuffer = 64 << 10

func (c *Conn) buffer() *[]byte {
	if b, ok := c.pool.Get().(*[]byte); ok {
		*b = (*b)[:0]
		return b
	}
	b := make([]byte, 0, 1024)
	return &b
}

func (c *Conn) release(b *[]byte) {
	if cap(*b) <= keptBuffer {
		c.pool.Put(b)
	}
}
