package broker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/session"
)

// client is one connection. To mochi it is a net.Conn, which the hook finds
// again in mqtt.Client.Net.Conn; to package session it is a live connection. It
// outlives its connection as part of an offline session, so it lets go of the
// connection when it ends.
type client struct {
	b       *Broker
	peer    mtls.Peer
	subject policy.Subject
	remote  net.Addr
	done    <-chan struct{} // of the connection
	conn    atomic.Pointer[listener.Conn]
	greeted atomic.Bool   // CONNACK is sent, so DISCONNECT may be
	ready   chan struct{} // closed once deliveries may reach the client; see deliver.go
	opened  sync.Once     // of ready
	window  window

	// Touched by the connection's reader goroutine only.
	head      []byte        // read before mochi, to be read again
	clientID  string        // as the client wrote it
	version   byte          // 4 or 5, once the CONNECT is decoded
	keepAlive time.Duration // one and a half times the client's; 0: none
	expiry    time.Duration // how long the session outlives the connection
	capped    bool          // expiry is shorter than the client asked
	seat      *seat         // from CONNECT to the end
	mochi     *mqtt.Client  // from CONNECT on
	backlog   []packets.Packet
	refused   bool // and logged
	online    bool // CONNACK sent and announced
	left      bool // mochi has reported the end
	expire    bool // the session ended with the connection
	verdict   verdict
	packetID  uint16                 // of the SUBSCRIBE or UNSUBSCRIBE being answered
	subCodes  []byte                 // why its filters were refused; 0: not refused
	wanted    []packets.Subscription // accepted, SUBACK not yet sent
	replays   []replay               // retained messages still to be sent
	denied    int                    // publishes and subscriptions refused by policy

	queue     sync.Mutex // guards successor, and entering messages into the session
	successor *client    // the connection that has inherited the session

	mu     sync.Mutex // guards reason
	reason string     // why the hub ended the connection; "" if it didn't
}

var (
	_ net.Conn     = (*client)(nil)
	_ session.Conn = (*client)(nil)
)

func newClient(b *Broker, conn *listener.Conn) *client {
	id := conn.Peer.Identity
	c := &client{
		b:       b,
		peer:    conn.Peer,
		subject: policy.Subject{Role: id.Role, ID: id.ID},
		remote:  conn.RemoteAddr(),
		done:    conn.Done(),
		ready:   make(chan struct{}),
	}
	if id.Role == identity.RoleDevice {
		c.subject.Labels = func() map[string]string {
			status, _ := b.config.Devices.Status(id.ID)
			return status.Labels
		}
		conn.SetWriteBuffer(deviceWriteBuffer)
	} else {
		conn.SetWriteBuffer(serviceWriteBuffer)
	}
	c.conn.Store(conn)
	return c
}

// clientOf returns the connection behind a client of mochi's, nil for its
// inline client.
func clientOf(cl *mqtt.Client) *client {
	c, _ := cl.Net.Conn.(*client)
	return c
}

// readFirstHeader reads the fixed header of the first packet before mochi
// spends anything on the connection: it must be a CONNECT of bounded size.
func (c *client) readFirstHeader(r io.Reader, limit int) error {
	refuse := func(reason mtls.Reason, format string, args ...any) error {
		return &admission.Refusal{Reason: reason, Identity: c.peer.Identity, Detail: fmt.Sprintf(format, args...)}
	}
	var one [1]byte
	for size, shift := 0, 0; ; {
		if _, err := io.ReadFull(r, one[:]); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return refuse(ReasonConnectTimeout, "no CONNECT arrived in time")
			}
			return refuse(ReasonNoConnect, "the connection ended before its CONNECT: %v", err)
		}
		c.head = append(c.head, one[0])
		if len(c.head) == 1 {
			if one[0] != packets.Connect<<4 {
				return refuse(ReasonFirstPacket, "the first byte is %#02x, not a CONNECT's", one[0])
			}
			continue
		}
		size |= int(one[0]&0x7f) << shift
		shift += 7
		if size > limit || len(c.head) > 5 {
			return refuse(ReasonMalformedConnect, "the CONNECT is larger than %d bytes", limit)
		}
		if one[0]&0x80 == 0 {
			return nil
		}
	}
}

// Read returns first what readFirstHeader has read.
func (c *client) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	conn := c.conn.Load()
	if conn == nil {
		return 0, net.ErrClosed
	}
	return conn.Read(p)
}

// Write never blocks; see listener.Conn.
func (c *client) Write(p []byte) (int, error) {
	conn := c.conn.Load()
	if conn == nil {
		return 0, net.ErrClosed
	}
	return conn.Write(p)
}

// Close closes the connection once what was written is sent.
func (c *client) Close() error {
	if conn := c.conn.Load(); conn != nil {
		return conn.Close()
	}
	return nil
}

// SetDeadline is mochi's call before each packet. It ignores mochi's idea of
// the time, whose 16-bit arithmetic overflows for a keep-alive above 12 hours,
// and allows one and a half times the keep-alive [MQTT-3.1.2-22].
func (c *client) SetDeadline(time.Time) error {
	conn := c.conn.Load()
	if conn == nil {
		return net.ErrClosed
	}
	var deadline time.Time
	if c.keepAlive > 0 {
		deadline = time.Now().Add(c.keepAlive)
	}
	return conn.SetReadDeadline(deadline)
}

// SetReadDeadline does nothing: SetDeadline is in charge.
func (c *client) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing: listener.Conn is in charge.
func (c *client) SetWriteDeadline(time.Time) error { return nil }

// LocalAddr returns the hub's address, nil once the connection has ended.
func (c *client) LocalAddr() net.Addr {
	if conn := c.conn.Load(); conn != nil {
		return conn.LocalAddr()
	}
	return nil
}

// RemoteAddr returns the peer's address.
func (c *client) RemoteAddr() net.Addr { return c.remote }

// Done is closed when the socket is closed.
func (c *client) Done() <-chan struct{} { return c.done }

// Disconnect ends the connection for a reason of package protocol: a DISCONNECT
// for a version 5 client, then the end of the socket, within CloseTimeout of
// the listener even if the peer no longer reads.
func (c *client) Disconnect(reason string) {
	c.mu.Lock()
	first := c.reason == ""
	if first {
		c.reason = reason
	}
	c.mu.Unlock()
	conn := c.conn.Load()
	if !first || conn == nil {
		return
	}
	if c.greeted.Load() && c.version == 5 {
		conn.Write(disconnectPacket(reason))
	}
	conn.Close()
}

// whyEnded returns the reason of Disconnect, "" if it wasn't called.
func (c *client) whyEnded() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// disconnectPacket encodes a version 5 DISCONNECT.
func disconnectPacket(reason string) []byte {
	code := packets.ErrUnspecifiedError
	switch reason {
	case protocol.ReasonTakenOver:
		code = packets.ErrSessionTakenOver
	case protocol.ReasonRevoked, protocol.ReasonSuspended, protocol.ReasonUntrusted:
		code = packets.ErrAdministrativeAction
	case protocol.ReasonShutdown:
		code = packets.ErrServerShuttingDown
	}
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ProtocolVersion: 5, ReasonCode: code.Code}
	var buf bytes.Buffer
	if err := pk.DisconnectEncode(&buf); err != nil {
		return nil
	}
	return buf.Bytes()
}

// isHangup reports whether err means that the peer went away.
func isHangup(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
