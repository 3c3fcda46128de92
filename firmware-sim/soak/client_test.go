package soak

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// Deadlines of a client. All are far above what a hub needs that is not stopped.
const (
	dialTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
)

// connection is one MQTT connection. What is written is queued and goes out in the order of send, many packets in one TLS
// record; sending never waits.
type connection struct {
	tls     *tls.Conn
	reader  *bufio.Reader
	version byte
	connack packet

	mu     sync.Mutex // guards queue, and the order of what is put into it
	queue  []byte
	more   chan struct{} // one slot: the queue is not empty
	closed chan struct{}
	once   sync.Once
	writer sync.WaitGroup
}

// dialTLS connects and shakes hands.
func dialTLS(ctx context.Context, addr string, who mtls.Credentials, tickets tls.ClientSessionCache) (*tls.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	raw, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, mtls.ClientConfig(mtls.ClientOptions{Certificate: who.Certificate, Roots: who.Roots, ServerName: "127.0.0.1", Sessions: tickets}))
	limited, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := conn.HandshakeContext(limited); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// refusal is a CONNACK that says no.
type refusal struct{ code byte }

func (r refusal) Error() string { return fmt.Sprintf("CONNACK 0x%02X", r.code) }

// connect makes a connection up to an accepting CONNACK. The caller hangs up.
func connect(ctx context.Context, addr string, who mtls.Credentials, tickets tls.ClientSessionCache, o connectOptions) (*connection, error) {
	raw, err := dialTLS(ctx, addr, who, tickets)
	if err != nil {
		return nil, err
	}
	c := &connection{tls: raw, reader: bufio.NewReaderSize(raw, 4096), version: o.version, more: make(chan struct{}, 1), closed: make(chan struct{})}
	if tcp, ok := raw.NetConn().(*net.TCPConn); ok && o.narrow {
		_ = tcp.SetReadBuffer(4096) // the kernel rounds it up
	}
	o.id = who.Identity.ID
	raw.SetDeadline(time.Now().Add(dialTimeout))
	if _, err = raw.Write(connectFrame(o)); err == nil {
		c.connack, err = readPacket(c.reader, o.version)
	}
	switch {
	case err != nil:
	case c.connack.kind != typeConnack:
		err = fmt.Errorf("packet type %d instead of a CONNACK", c.connack.kind)
	case c.connack.code != 0:
		err = refusal{c.connack.code}
	}
	if err != nil {
		raw.NetConn().Close()
		return nil, err
	}
	raw.SetDeadline(time.Time{})
	c.writer.Go(c.flush)
	return c, nil
}

// send queues what produce returns, which is called in the connection's order of writing.
func (c *connection) send(produce func() []byte) {
	c.mu.Lock()
	c.queue = append(c.queue, produce()...)
	empty := len(c.queue) == 0
	c.mu.Unlock()
	if empty {
		return
	}
	select {
	case c.more <- struct{}{}:
	default:
	}
}

// write queues one frame.
func (c *connection) write(frame []byte) { c.send(func() []byte { return frame }) }

// flush writes the queue until the connection ends.
func (c *connection) flush() {
	for {
		select {
		case <-c.closed:
			return
		case <-c.more:
		}
		c.mu.Lock()
		data := c.queue
		c.queue = nil
		c.mu.Unlock()
		c.tls.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := c.tls.Write(data); err != nil {
			c.tls.NetConn().Close() // the reader notices
			return
		}
	}
}

// parting is how a client leaves a connection.
type parting int

const (
	broken   parting = iota // as a radio link does
	goodbye                 // DISCONNECT
	deserted                // not at all: the hub finds out when the client comes back over another
)

// hangUp ends the connection. It may be called again. One that was deserted stays open until its socket is closed.
func (c *connection) hangUp(how parting) {
	c.once.Do(func() {
		close(c.closed)
		if how == broken {
			c.tls.NetConn().Close()
		}
		c.tls.SetWriteDeadline(time.Now().Add(time.Second)) // for a write that is stuck, too
		c.writer.Wait()
		switch how {
		case deserted:
			c.tls.SetReadDeadline(time.Now()) // the reader is to notice
			return
		case goodbye:
			_, _ = c.tls.Write(disconnectFrame())
			_ = c.tls.CloseWrite()
		}
		c.tls.NetConn().Close()
	})
}

// close closes the socket of a connection that was hung up; nil is fine.
func (c *connection) close() {
	if c != nil {
		c.tls.NetConn().Close()
	}
}

// next reads a packet within limit.
func (c *connection) next(limit time.Duration) (packet, error) {
	c.tls.SetReadDeadline(time.Now().Add(limit))
	return readPacket(c.reader, c.version)
}

// client keeps a session connected: it comes back whenever the connection ends, and goes away by itself if it flaps.
type client struct {
	session *session
	who     mtls.Credentials
	addr    string
	receive uint16 // Receive Maximum to announce; 0: none
	// online and offline say how long it stays and stays away; nil: it stays, and comes back at once.
	online, offline func() time.Duration
	random          *rand.Rand
	// deaf, while it is set, has the client take nothing from the hub any more: as if the line had gone dead. Nil: never.
	deaf *atomic.Bool

	steady   atomic.Bool // doesn't flap any more
	calm     chan struct{}
	connects atomic.Int64

	mu   sync.Mutex // guards live; not held over I/O
	live *connection
	came chan struct{} // closed while live is set, made anew when it is not
}

func newClient(s *session, who mtls.Credentials, addr string, seed uint64) *client {
	return &client{session: s, who: who, addr: addr, random: rand.New(rand.NewPCG(seed, 1)), calm: make(chan struct{}), came: make(chan struct{})}
}

// settle ends the flapping: the client comes back and stays.
func (c *client) settle() {
	if !c.steady.Swap(true) {
		close(c.calm)
	}
}

// run keeps the session connected until ctx ends.
func (c *client) run(ctx context.Context) {
	tickets := tls.NewLRUClientSessionCache(2)
	var last *connection
	defer func() { last.close() }()
	for ctx.Err() == nil {
		conn, err := connect(ctx, c.addr, c.who, tickets, connectOptions{version: c.session.version, keepAlive: 60, receive: c.receive})
		if err == nil && c.isDeaf() {
			conn.hangUp(broken)
			err = net.ErrClosed
		}
		if err != nil {
			c.wait(ctx, 20*time.Millisecond+time.Duration(c.random.IntN(80))*time.Millisecond, nil)
			continue
		}
		last.close() // if it was deserted, the hub has ended it by now
		last = conn
		c.serve(ctx, conn)
		if c.offline != nil && !c.steady.Load() {
			c.wait(ctx, c.offline(), c.calm)
		}
	}
}

// wait waits that long, or until ctx ends or early is closed.
func (c *client) wait(ctx context.Context, d time.Duration, early <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-early:
	case <-ctx.Done():
	}
}

// serve resumes the session on a connection and answers the hub until one of them ends it.
func (c *client) serve(ctx context.Context, conn *connection) {
	how := parting(c.random.IntN(3))
	ending, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	waiting.Go(func() { // hangs up when it is time to
		if c.online == nil || c.steady.Load() {
			<-ending.Done()
		} else {
			c.wait(ending, c.online(), c.calm)
			if c.steady.Load() {
				<-ending.Done()
			}
		}
		conn.hangUp(how)
	})
	defer waiting.Wait()
	defer cancel()

	c.begin(conn)
	defer c.end()
	c.connects.Add(1)
	for {
		p, err := readPacket(conn.reader, conn.version)
		if err != nil {
			if _, nonsense := errors.AsType[*malformed](err); nonsense {
				c.session.accuse(faultMalformed, "%s: %v", c.session.name, err)
			}
			return
		}
		if p.kind == typeDisconnect || c.isDeaf() {
			return
		}
		conn.send(func() []byte { return c.session.handle(p) })
	}
}

func (c *client) isDeaf() bool { return c.deaf != nil && c.deaf.Load() }

// begin resumes the session on a connection. No message may fall between what the session sends again and what it sends
// at once from now on.
func (c *client) begin(conn *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn.send(func() []byte { return c.session.connected(conn.connack.present) })
	c.live = conn
	close(c.came)
}

// end notes that there is no connection.
func (c *client) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live, c.came = nil, make(chan struct{})
}

// publish sends a message now or, offline, with the next connection.
func (c *client) publish(m *outgoing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live == nil {
		c.session.publish(m, false)
		return
	}
	c.live.send(func() []byte { return c.session.publish(m, true) })
}

// ask sends a SUBSCRIBE or UNSUBSCRIBE and returns the codes of its acknowledgement. It asks again on every further
// connection until there is one.
func (c *client) ask(ctx context.Context, encode func(id uint16) []byte) ([]byte, error) {
	answers := make(chan []byte, 1)
	for {
		c.mu.Lock()
		conn, came := c.live, c.came
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-came:
		}
		if conn == nil {
			continue
		}
		conn.send(func() []byte {
			return c.session.request(encode, func(codes []byte) {
				select {
				case answers <- codes:
				default:
				}
			})
		})
		select {
		case codes := <-answers:
			return codes, nil
		case <-conn.closed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
