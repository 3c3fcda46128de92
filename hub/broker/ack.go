package broker

import (
	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/wire"
)

// Acknowledgements by a client, of messages that it got, and PUBREL, of one that it
// sent. Each direction has its own packet identifiers [MQTT-2.2.1-4].

// acknowledged takes a PUBACK: the message is done. That it is may be lost in a crash;
// the client then gets the message again, as QoS 1 allows.
func (c *client) acknowledged(pk *wire.Ack) error {
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != c {
		return nil
	}
	if e := s.box.sentEntry(pk.ID); e != nil && e.QoS == 1 {
		c.b.drop(s, e)
		c.b.pump(s)
	}
	return nil
}

// received takes a PUBREC. PUBREL may go only once it is on disk that PUBREC came:
// else a crash would have the message sent again to a client that has forgotten its
// identifier, and takes it for another.
func (c *client) received(pk *wire.Ack) error {
	s := c.session
	s.mu.Lock()
	e := s.box.sentEntry(pk.ID)
	switch {
	case s.client != c:
		s.mu.Unlock()
		return nil
	case e == nil || e.QoS != 2:
		s.mu.Unlock()
		return c.acknowledge(wire.TypePubrel, pk.ID, wire.PacketIdentifierNotFound)
	case pk.Code >= wire.UnspecifiedError: // [MQTT-4.3.3-4]
		c.b.drop(s, e)
		c.b.pump(s)
		s.mu.Unlock()
		return nil
	case s.stored && !e.received:
		err := c.b.ingest.Received(s.number, pk.ID, &release{c, e})
		e.entered = err == nil // a checkpoint that comes now must not say less
		s.mu.Unlock()
		return err // without PUBREL the client asks again after a reconnect
	}
	e.received = true
	s.mu.Unlock()
	return c.acknowledge(wire.TypePubrel, pk.ID, wire.Success)
}

// release waits until a PUBREC is on disk, then sends PUBREL.
type release struct {
	c *client
	e *entry
}

// Committed implements journal.Waiter.
func (r *release) Committed(err error) {
	s := r.c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		r.e.entered = false
		r.c.b.ingest.MarkStale()
		r.c.conn.Close()
		return
	}
	r.e.received = true
	if s.client == r.c {
		_ = r.c.acknowledge(wire.TypePubrel, r.e.ID, wire.Success)
	}
}

// completed takes a PUBCOMP. A PUBREL that was lost with it is answered again.
func (c *client) completed(pk *wire.Ack) error {
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != c {
		return nil
	}
	if e := s.box.sentEntry(pk.ID); e != nil && e.QoS == 2 && e.received {
		c.b.drop(s, e)
		c.b.pump(s)
	}
	return nil
}

// release takes a PUBREL: the identifier is free. PUBCOMP waits until that is on disk:
// else a crash would have the client's next message under it pass for a repetition.
func (c *client) release(pk *wire.Ack) error {
	s := c.session
	s.mu.Lock()
	onDisk, known := s.incoming[pk.ID]
	if s.client != c {
		s.mu.Unlock()
		return nil
	}
	code := wire.Success
	switch {
	case !known:
		code = wire.PacketIdentifierNotFound
	case !onDisk:
		s.mu.Unlock()
		return &wire.Error{Code: wire.ProtocolError, Clause: "MQTT-4.3.3-5", Detail: "a PUBREL before its PUBREC"}
	default:
		delete(s.incoming, pk.ID)
		if s.stored {
			err := c.b.ingest.Released(s.number, pk.ID, &complete{c, pk.ID})
			s.mu.Unlock()
			return err
		}
	}
	s.mu.Unlock()
	return c.acknowledge(wire.TypePubcomp, pk.ID, code)
}

// complete waits until a PUBREL is on disk, then sends PUBCOMP.
type complete struct {
	c  *client
	id uint16
}

// Committed implements journal.Waiter.
func (w *complete) Committed(err error) {
	if err != nil {
		w.c.b.ingest.MarkStale()
		w.c.conn.Close() // the client asks again
		return
	}
	_ = w.c.acknowledge(wire.TypePubcomp, w.id, wire.Success)
}

var (
	_ journal.Waiter = (*release)(nil)
	_ journal.Waiter = (*complete)(nil)
)
