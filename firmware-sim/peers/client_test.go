package peers

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// Control packets, by the first byte of those without flags (MQTT 3.1.1 §2.2).
const (
	connackByte  = 0x20
	publishByte  = 0x30
	pubackByte   = 0x40
	subackByte   = 0x90
	pingrespByte = 0xd0
)

// patience is how long a stage of a measurement may take before its connections give up.
const patience = 2 * time.Minute

// client is a connection that costs its process little: MQTT 3.1.1 frames over crypto/tls, made once and sent again and
// again, so that the server is what a measurement waits for. One goroutine at a time uses it.
type client struct {
	conn    *tls.Conn
	in      *bufio.Reader
	present bool // the server had a session
}

// dial connects to a server as who, under a client identifier, with mutual TLS 1.3 and a full handshake.
func dial(p peer, who mtls.Credentials, id string, clean bool) (*client, error) {
	raw, err := net.Dial("tcp", p.addr)
	if err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Now().Add(patience))
	config := mtls.ClientConfig(mtls.ClientOptions{Certificate: who.Certificate, Roots: who.Roots, ServerName: "127.0.0.1"})
	config.MinVersion = tls.VersionTLS13
	config.CurvePreferences = []tls.CurveID{tls.CurveP256} // which every peer has
	c := &client{conn: tls.Client(raw, config)}
	c.in = bufio.NewReaderSize(c.conn, 512)
	flags := byte(0)
	if clean {
		flags = 2
	}
	body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, flags, 3, 232}, text(id)...) // keep-alive 1,000 s
	if err := c.send(0x10, body); err != nil {
		raw.Close()
		return nil, fmt.Errorf("connect %s: %w", id, err)
	}
	answer, err := c.expect(connackByte)
	if err == nil && (len(answer) != 2 || answer[1] != 0) {
		err = errAnswer
	}
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("connect %s: %w", id, err)
	}
	c.present = answer[0] == 1
	return c, nil
}

func (c *client) close() { c.conn.NetConn().Close() }

// renew gives the connection its patience again.
func (c *client) renew() { c.conn.SetDeadline(time.Now().Add(patience)) }

// roomy gives a connection on which much arrives a larger buffer.
func (c *client) roomy() { c.in = bufio.NewReaderSize(c.conn, 64<<10) }

// frame is a whole control packet.
func frame(first byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{first}, uint64(len(body))), body...) // MQTT's length is a varint of at most 4 bytes
}

func (c *client) send(first byte, body []byte) error {
	_, err := c.conn.Write(frame(first, body))
	return err
}

func text(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

// next returns the next packet's first byte and body, which is valid until the next call.
func (c *client) next() (first byte, body []byte, err error) {
	if first, err = c.in.ReadByte(); err != nil {
		return 0, nil, err
	}
	length, err := binary.ReadUvarint(c.in)
	if err != nil {
		return 0, nil, err
	}
	if int(length) > c.in.Size() {
		return 0, nil, fmt.Errorf("a packet of %d bytes, more than anybody sends here", length)
	}
	if body, err = c.in.Peek(int(length)); err != nil {
		return 0, nil, err
	}
	_, err = c.in.Discard(int(length))
	return first, body, err
}

// expect returns the next packet's body if it is of that kind.
func (c *client) expect(want byte) ([]byte, error) {
	first, body, err := c.next()
	if err == nil && first&0xf0 != want {
		err = fmt.Errorf("a packet of type %#x came instead of %#x", first&0xf0, want)
	}
	return body, err
}

func (c *client) subscribe(filter string, qos byte) error {
	body := append([]byte{0, 1}, text(filter)...)
	if err := c.send(0x82, append(body, qos)); err != nil {
		return err
	}
	answer, err := c.expect(subackByte)
	if err == nil && (len(answer) != 3 || answer[2] != qos) {
		err = fmt.Errorf("subscribe to %s: refused", filter)
	}
	return err
}

// barrier returns when the server has taken everything that was sent before: a server serves a connection's packets in order
// [MQTT-4.6.0], so it has read and routed the messages when it answers a PINGREQ behind them.
func (c *client) barrier() error {
	if err := c.send(0xc0, nil); err != nil {
		return err
	}
	_, err := c.expect(pingrespByte)
	return err
}

// message is a PUBLISH as it is sent; of QoS 1 it has its packet identifier at a place.
type message struct {
	packet []byte
	at     int
}

func newMessage(topic string, qos byte, payload string) message {
	body := text(topic)
	if qos > 0 {
		body = append(body, 0, 0)
	}
	packet := frame(publishByte|qos<<1, append(body, payload...))
	return message{packet, len(packet) - len(payload) - 2}
}

// publish sends a message n times, each in a TLS record and a write of its own, as devices do, and returns when the server
// has taken all of them. It goes on only as credit allows; nil allows all.
func (c *client) publish(m message, n int, credit *meter) error {
	c.renew()
	for i := range n {
		if credit != nil && i%creditBatch == 0 {
			if err := credit.wait(); err != nil {
				return err
			}
		}
		if _, err := c.conn.Write(m.packet); err != nil {
			return err
		}
	}
	return c.barrier()
}

// publishAcknowledged sends n messages of QoS 1, each in a TLS record and a write of its own, with at most window of them
// unacknowledged, and returns when the last is acknowledged.
func (c *client) publishAcknowledged(next func(i int) message, n, window int) error {
	c.renew()
	for sent, acknowledged := 0, 0; acknowledged < n; {
		for sent < n && sent-acknowledged < window {
			m := next(sent)
			binary.BigEndian.PutUint16(m.packet[m.at:], uint16(sent%65535+1))
			if _, err := c.conn.Write(m.packet); err != nil {
				return err
			}
			sent++
		}
		for first := true; first || c.in.Buffered() > 0; first = false {
			if _, err := c.expect(pubackByte); err != nil {
				return err
			}
			acknowledged++
		}
	}
	return nil
}

// count receives n messages and tells all of each.
func (c *client) count(n int, all *meter) error {
	c.renew()
	for received := 0; received < n; {
		together := 0
		for first := true; first || received+together < n && c.in.Buffered() > 0; first = false { // what came along, in one go
			if _, err := c.expect(publishByte); err != nil {
				return fmt.Errorf("after %d of %d messages: %w", received+together, n, err)
			}
			together++
		}
		received += together
		all.add(together)
	}
	return nil
}

// takeAll receives n messages that wait for the client and returns their payloads, acknowledging none.
func (c *client) takeAll(n int) ([]string, error) {
	c.conn.SetDeadline(time.Now().Add(3 * time.Second))
	var payloads []string
	for range n {
		body, err := c.expect(publishByte)
		if err != nil {
			return payloads, err
		}
		behindTopic := 2 + int(binary.BigEndian.Uint16(body))
		payloads = append(payloads, string(body[behindTopic+2:])) // QoS 1: an identifier is in between
	}
	return payloads, nil
}
