package conformance

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/wire"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// client is one connection, of which a test says every byte. It reads frames by
// itself, so that what the hub's own codec would let through is seen.
type client struct {
	*exam
	credential certtest.Credential
	id         string // client identifier
	conn       *tls.Conn
	in         *bufio.Reader
	raw        []byte          // the frame read last
	stash      []*wire.Publish // messages that came while something else was awaited
	lastID     uint16
}

// dial completes TLS, resumed where the hub allows, and sends nothing.
func (x *exam) dial(credential certtest.Credential) *client {
	x.Helper()
	raw, err := net.DialTimeout("tcp", x.hub.MQTTAddr(), patience)
	x.must(err)
	conn := tls.Client(raw, credential.ClientConfig())
	x.Cleanup(func() { raw.Close() })
	x.must(conn.SetDeadline(time.Now().Add(patience)))
	x.must(conn.Handshake())
	x.must(conn.SetDeadline(time.Time{}))
	return &client{exam: x, credential: credential, id: credential.Identity.ID, conn: conn, in: bufio.NewReader(conn)}
}

// again returns a further connection of the same identity and client identifier.
func (c *client) again() *client {
	c.Helper()
	next := c.exam.dial(c.credential)
	next.id = c.id
	return next
}

// hangUp cuts the connection, as a dead battery does, once the hub has taken all that was sent.
func (c *client) hangUp() {
	c.Helper()
	c.send(&wire.Ping{Kind: wire.TypePingreq})
	for {
		if _, ok := c.next().(*wire.Ping); ok {
			break
		}
	}
	c.conn.NetConn().Close()
}

// option changes a CONNECT.
type option func(*wire.Connect)

func clean(c *wire.Connect) { c.CleanStart = true }

// persistent asks for a session that outlives the connection, and for the one that is there.
func persistent(c *wire.Connect) { c.CleanStart, c.SessionExpiry = false, 3600 }

// fresh asks for a new session that outlives the connection. In 3.1.1 there is no such thing.
func fresh(c *wire.Connect) { c.CleanStart, c.SessionExpiry = true, 3600 }

func keepAlive(seconds uint16) option { return func(c *wire.Connect) { c.KeepAlive = seconds } }

func expiring(seconds uint32) option { return func(c *wire.Connect) { c.SessionExpiry = seconds } }

func will(topic, payload string, qos byte) option {
	return func(c *wire.Connect) {
		c.Will = &wire.Will{Message: wire.Publish{Topic: topic, Payload: []byte(payload), QoS: qos}}
	}
}

// connectPacket returns the client's CONNECT: a clean session and a keep-alive of a minute, changed by options.
func (c *client) connectPacket(options ...option) *wire.Connect {
	p := &wire.Connect{ProtocolName: "MQTT", Version: c.version, CleanStart: true, KeepAlive: 60, ClientID: c.id}
	for _, o := range options {
		o(p)
	}
	return p
}

// connect sends a CONNECT that must be accepted.
func (c *client) connect(options ...option) *wire.Connack {
	c.Helper()
	c.send(c.connectPacket(options...))
	ack := want[*wire.Connack](c)
	if c.raw[3] != 0 {
		c.Fatalf("CONNECT was answered with %#x, want it accepted", c.raw[3])
	}
	return ack
}

// send encodes and writes a packet.
func (c *client) send(p wire.Packet) {
	c.Helper()
	data, err := wire.Append(nil, p, c.version)
	c.must(err)
	c.write(data)
}

// write sends bytes. An error is the reader's to see: the hub may have closed.
func (c *client) write(data []byte) {
	c.Helper()
	c.must(c.conn.SetWriteDeadline(time.Now().Add(patience)))
	_, _ = c.conn.Write(data)
}

// frame reads one packet's bytes.
func (c *client) frame() ([]byte, error) {
	c.must(c.conn.SetReadDeadline(time.Now().Add(patience)))
	first, err := c.in.ReadByte()
	if err != nil {
		return nil, err
	}
	frame := []byte{first}
	length, shift := 0, 0
	for {
		b, err := c.in.ReadByte()
		if err != nil {
			return nil, err
		}
		frame = append(frame, b)
		length |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			if b == 0 && shift > 0 {
				return nil, fmt.Errorf("remaining length % x is not of minimal length", frame[1:])
			}
			break
		}
		if shift += 7; shift > 21 {
			return nil, fmt.Errorf("remaining length % x has no end", frame[1:])
		}
	}
	head := len(frame)
	frame = append(frame, make([]byte, length)...)
	for at := head; at < len(frame); {
		n, err := c.in.Read(frame[at:])
		if err != nil {
			return nil, err
		}
		at += n
	}
	return frame, nil
}

// read returns the next packet, decoded as strictly as hub/wire does.
func (c *client) read() (wire.Packet, error) {
	frame, err := c.frame()
	if err != nil {
		return nil, err
	}
	c.raw = frame
	r := wire.NewReader(bytes.NewReader(frame), len(frame))
	r.Client()
	r.SetVersion(c.version)
	p, err := r.Next()
	if err != nil {
		return nil, fmt.Errorf("the hub sent % x: %w", frame[:min(len(frame), 64)], err)
	}
	return p, nil // it stays valid: the reader is neither used again nor released
}

// next returns the next packet.
func (c *client) next() wire.Packet {
	c.Helper()
	p, err := c.read()
	if err != nil {
		c.Fatalf("waiting for a packet: %v", err)
	}
	return p
}

// want returns the next packet, which must be of that type.
func want[P wire.Packet](c *client) P {
	c.Helper()
	p := c.next()
	got, ok := p.(P)
	if !ok {
		var none P
		c.Fatalf("got %s, want %T", describe(p), none)
	}
	return got
}

// answer returns the next packet of that type; messages before it are kept for receive.
func answer[P wire.Packet](c *client) P {
	c.Helper()
	for {
		switch p := c.next().(type) {
		case P:
			return p
		case *wire.Publish:
			c.stash = append(c.stash, p)
		default:
			var none P
			c.Fatalf("got %s, want %T", describe(p), none)
		}
	}
}

// ack returns the next packet, which must be that acknowledgement; messages before it are kept for receive.
func (c *client) ack(kind wire.Type, id uint16) *wire.Ack {
	c.Helper()
	a := answer[*wire.Ack](c)
	if a.Kind != kind || a.ID != id {
		c.Fatalf("got %s, want packet type %d for identifier %d", describe(a), kind, id)
	}
	return a
}

// closed reads until the hub ends the connection, and returns what came before.
func (c *client) closed() []wire.Packet {
	c.Helper()
	var got []wire.Packet
	for {
		p, err := c.read()
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			c.Fatalf("the hub did not close the connection; it sent %s", describe(got...))
		}
		if we, ok := errors.AsType[*wire.Error](err); ok {
			c.Fatalf("before it closed the connection, %v", we)
		}
		if err != nil {
			c.hub.undisturbed(c.T)
			return got
		}
		got = append(got, p)
	}
}

// cut expects the hub to end the connection for something that the client did:
// without a word in 3.1.1, with a DISCONNECT with one of the codes in 5.0.
func (c *client) cut(codes ...wire.Code) {
	c.Helper()
	got := c.closed()
	if c.version != wire.V5 {
		if len(got) > 0 {
			c.Fatalf("before it closed the connection, the hub sent %s; 3.1.1 has no such packet", describe(got...))
		}
		return
	}
	if len(got) != 1 {
		c.Fatalf("before it closed the connection, the hub sent %s, want a DISCONNECT with one of %#x", describe(got...), codes)
	}
	d, ok := got[0].(*wire.Disconnect)
	if !ok || !slices.Contains(codes, d.Code) {
		c.Fatalf("before it closed the connection, the hub sent %s, want a DISCONNECT with one of %#x", describe(got...), codes)
	}
}

// turnedAway expects a malformed CONNECT's end: 3.1.1 forbids a CONNACK [MQTT-3.1.4-1],
// 5.0 leaves it to the server, but not which code.
func (c *client) turnedAway(codes ...wire.Code) {
	c.Helper()
	got := c.closed()
	switch {
	case len(got) == 0:
	case c.version == wire.V5 && len(got) == 1:
		if a, ok := got[0].(*wire.Connack); !ok || a.SessionPresent || !slices.Contains(codes, a.Code) {
			c.Fatalf("the hub answered with %s, want nothing or a CONNACK with one of %#x", describe(got...), codes)
		}
	default:
		c.Fatalf("the hub answered with %s, want the end of the connection", describe(got...))
	}
}

// refused expects a CONNECT's refusal: a CONNACK with that return code, or in 5.0 with one of the codes, then the end.
func (c *client) refused(returnCode byte, codes ...wire.Code) {
	c.Helper()
	want[*wire.Connack](c)
	if c.raw[2] != 0 {
		c.Fatalf("the refusal has connect acknowledge flags %#x, want 0", c.raw[2])
	}
	got := c.raw[3]
	if c.version == wire.V5 && !slices.Contains(codes, wire.Code(got)) || c.version != wire.V5 && got != returnCode {
		c.Fatalf("CONNECT was answered with %#x, want return code %#x or, in 5.0, one of %#x", got, returnCode, codes)
	}
	if more := c.closed(); len(more) > 0 {
		c.Fatalf("after the refusal came %s", describe(more...))
	}
}

// alive proves that the connection works and that nothing is waiting on it.
func (c *client) alive() {
	c.Helper()
	c.send(&wire.Ping{Kind: wire.TypePingreq})
	if p := want[*wire.Ping](c); p.Kind != wire.TypePingresp {
		c.Fatalf("PINGREQ was answered with packet type %d", p.Kind)
	}
}

func (c *client) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (x *exam) must(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}
