package conformance

import (
	"fmt"
	"strings"

	"github.com/fleethub/fleethub/hub/wire"
)

// newID returns an identifier that the client has not used on this connection.
func (c *client) newID() uint16 {
	c.lastID++
	return c.lastID
}

// publish sends a message and completes its acknowledgement, which must be positive.
func (c *client) publish(topic, payload string, qos byte) {
	c.Helper()
	c.publishAll(&wire.Publish{Topic: topic, Payload: []byte(payload), QoS: qos})
}

// publishAll sends messages one after the other, like publish.
func (c *client) publishAll(messages ...*wire.Publish) {
	c.Helper()
	for _, m := range messages {
		if code := c.try(m); code >= 0x80 {
			c.Fatalf("%s was answered with %#x", describe(m), code)
		}
	}
}

// try sends a message, completes its acknowledgement and returns the reason code of
// the first answer. A message of QoS 0 has none.
func (c *client) try(m *wire.Publish) wire.Code {
	c.Helper()
	if m.QoS > 0 && m.ID == 0 {
		m.ID = c.newID()
	}
	c.send(m)
	switch m.QoS {
	case 1:
		return c.ack(wire.TypePuback, m.ID).Code
	case 2:
		if code := c.ack(wire.TypePubrec, m.ID).Code; code >= 0x80 {
			return code
		}
		c.send(&wire.Ack{Kind: wire.TypePubrel, ID: m.ID})
		return c.ack(wire.TypePubcomp, m.ID).Code
	}
	return wire.Success
}

// subscribe asks for one filter, which must be granted as asked.
func (c *client) subscribe(filter string, qos byte) {
	c.Helper()
	c.subscribeTo(wire.Subscription{Filter: filter, QoS: qos})
}

// subscribeTo is subscribe with options.
func (c *client) subscribeTo(s wire.Subscription) {
	c.Helper()
	codes := c.ask(&wire.Subscribe{Filters: []wire.Subscription{s}})
	if len(codes) != 1 || codes[0] != wire.Code(s.QoS) {
		c.Fatalf("SUBSCRIBE to %s with QoS %d was answered with %#x", s.Filter, s.QoS, codes)
	}
}

// ask sends a SUBSCRIBE and returns the codes of the answer.
func (c *client) ask(s *wire.Subscribe) []wire.Code {
	c.Helper()
	s.ID = c.newID()
	c.send(s)
	return c.suback(wire.TypeSuback, s.ID).Codes
}

// unsubscribe sends an UNSUBSCRIBE and returns the codes of the answer, none in 3.1.1.
func (c *client) unsubscribe(filters ...string) []wire.Code {
	c.Helper()
	id := c.newID()
	c.send(&wire.Unsubscribe{ID: id, Filters: filters})
	return c.suback(wire.TypeUnsuback, id).Codes
}

// suback returns the answer of that kind and identifier; messages before it are kept for receive.
func (c *client) suback(kind wire.Type, id uint16) *wire.Suback {
	c.Helper()
	a := answer[*wire.Suback](c)
	if a.Kind != kind || a.ID != id {
		c.Fatalf("got packet type %d for identifier %d, want %d for %d", a.Kind, a.ID, kind, id)
	}
	return a
}

// receive returns the next message and leaves it unacknowledged.
func (c *client) receive() *wire.Publish {
	c.Helper()
	if len(c.stash) > 0 {
		m := c.stash[0]
		c.stash = c.stash[1:]
		return m
	}
	return want[*wire.Publish](c)
}

// take returns the next message and completes its acknowledgement.
func (c *client) take() *wire.Publish {
	c.Helper()
	m := c.receive()
	c.accept(m)
	return m
}

// accept completes a message's acknowledgement.
func (c *client) accept(m *wire.Publish) {
	c.Helper()
	switch m.QoS {
	case 1:
		c.send(&wire.Ack{Kind: wire.TypePuback, ID: m.ID})
	case 2:
		c.send(&wire.Ack{Kind: wire.TypePubrec, ID: m.ID})
		c.ack(wire.TypePubrel, m.ID)
		c.send(&wire.Ack{Kind: wire.TypePubcomp, ID: m.ID})
	}
}

// takePayload takes the next message, whose payload must be that.
func (c *client) takePayload(payload string) *wire.Publish {
	c.Helper()
	m := c.take()
	if string(m.Payload) != payload {
		c.Fatalf("got %s, want payload %q", describe(m), payload)
	}
	return m
}

// leave ends the connection in order and waits until the hub has closed it.
func (c *client) leave() {
	c.Helper()
	c.send(&wire.Disconnect{})
	if got := c.closed(); len(got) > 0 {
		c.Fatalf("DISCONNECT was answered with %s", describe(got...))
	}
}

// describe says what packets are, for failures.
func describe(packets ...wire.Packet) string {
	if len(packets) == 0 {
		return "nothing"
	}
	var all []string
	for _, p := range packets {
		switch p := p.(type) {
		case *wire.Publish:
			all = append(all, fmt.Sprintf("PUBLISH to %q (QoS %d, identifier %d, retain %t, dup %t, alias %d, payload %.40q)", p.Topic, p.QoS, p.ID, p.Retain, p.Dup, p.Alias, p.Payload))
		default:
			all = append(all, fmt.Sprintf("%T%+v", p, p))
		}
	}
	return strings.Join(all, ", ")
}
