package broker

import (
	"context"
	"errors"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/protocol"
)

// sessionKey is mochi's client identifier for ours. The role is part of it, so
// that a service can't inherit the session of a device of the same ID; the '/',
// which no ID contains, keeps it apart from mochi's own "inline".
func sessionKey(role identity.Role, clientID string) string {
	return string(role) + "/" + clientID
}

// seat is the place of one session key. It has at most one owner: whoever wants
// it cuts the owner and waits until mochi is done with it. So there is one
// live connection per client identifier whatever races, its will and its
// presence come before those of its successor, and mochi, whose own takeover
// can leave three connections of one identifier alive, never sees two.
//
// A seat without owner stands for a stored session.
type seat struct {
	owner    *client             // guarded by seats.mu
	left     chan struct{}       // closed when owner leaves; guarded by seats.mu
	expires  time.Time           // of a session without owner; guarded by seats.mu
	received map[uint16]struct{} // QoS 2 messages accepted, not yet released; the owner's
}

type seats struct {
	mu sync.Mutex // guards m and what seat says
	m  map[string]*seat
}

var errSeatTaken = errors.New("the connection before it didn't end in time")

// claim makes c the owner of key's seat. It cuts the owner that it finds, and
// waits for it until ctx ends.
func (s *seats) claim(ctx context.Context, key string, c *client) (*seat, error) {
	for {
		s.mu.Lock()
		if s.m == nil {
			s.m = make(map[string]*seat)
		}
		place := s.m[key]
		if place == nil {
			place = new(seat)
			s.m[key] = place
		}
		if place.owner == nil {
			place.owner, place.left = c, make(chan struct{})
			s.mu.Unlock()
			return place, nil
		}
		owner, left := place.owner, place.left
		s.mu.Unlock()
		owner.Disconnect(protocol.ReasonTakenOver)
		select {
		case <-left:
		case <-ctx.Done():
			return nil, errSeatTaken
		}
	}
}

// release frees the seat. A session that is stored keeps it until expires; a
// zero expires ends the session.
func (s *seats) release(key string, place *seat, expires time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	place.owner, place.expires = nil, expires
	close(place.left)
	if expires.IsZero() {
		delete(s.m, key)
	}
}

// expired returns the keys of stored sessions whose time is over.
func (s *seats) expired(now time.Time) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for key, place := range s.m {
		if place.owner == nil && now.After(place.expires) {
			keys = append(keys, key)
		}
	}
	return keys
}

// claimExpired makes c the owner if the stored session is still there, free and
// over.
func (s *seats) claimExpired(key string, c *client, now time.Time) (*seat, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	place := s.m[key]
	if place == nil || place.owner != nil || !now.After(place.expires) {
		return nil, false
	}
	place.owner, place.left = c, make(chan struct{})
	return place, true
}

func (s *seats) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.m)
}

// caretaker owns a seat while a session is being removed. It has no connection.
func (b *Broker) caretaker() *client { return &client{b: b} }

// sweep removes sessions whose time is over. mochi would forget the client and
// keep its subscriptions, for the next client of that name to inherit.
func (b *Broker) sweep() {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-tick.C:
		}
		now := b.config.Now()
		for _, key := range b.seats.expired(now) {
			if place, ok := b.seats.claimExpired(key, b.caretaker(), now); ok {
				b.forget(key)
				b.seats.release(key, place, time.Time{})
			}
		}
	}
}

// purge removes a session, whoever has it.
func (b *Broker) purge(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(ctx, takeoverTimeout)
	defer cancel()
	place, err := b.seats.claim(ctx, key, b.caretaker())
	if err != nil {
		b.log.Error("a session could not be removed, it is left to expire", "session", key, "error", err)
		return
	}
	b.forget(key)
	b.seats.release(key, place, time.Time{})
}

// withSeat does something to the stored session of key, if there is one.
func (b *Broker) withSeat(ctx context.Context, key string, do func(*mqtt.Client)) {
	ctx, cancel := context.WithTimeout(ctx, takeoverTimeout)
	defer cancel()
	place, err := b.seats.claim(ctx, key, b.caretaker())
	if err != nil {
		b.log.Error("a session could not be changed", "session", key, "error", err)
		return
	}
	cl, ok := b.mqtt.Clients.Get(key)
	if !ok {
		b.seats.release(key, place, time.Time{})
		return
	}
	do(cl)
	b.seats.release(key, place, place.expires)
}

// forget removes everything that mochi keeps of a session. The caller owns the
// seat.
func (b *Broker) forget(key string) {
	cl, ok := b.mqtt.Clients.Get(key)
	if !ok {
		return
	}
	b.cancelWill(cl)
	b.mqtt.UnsubscribeClient(cl)
	cl.ClearInflights()
	b.mqtt.Clients.Delete(key)
}

// cancelWill drops a will that waits for its delay. mochi does so when it
// processes a DISCONNECT, and has no other way to it.
func (b *Broker) cancelWill(cl *mqtt.Client) {
	_ = b.mqtt.InjectPacket(cl, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
}

// leave ends a client's time in its seat, after mochi has returned or panicked.
func (b *Broker) leave(c *client) {
	c.open() // whoever waits to deliver must not wait for ever
	if c.seat != nil {
		if !c.left {
			b.abandon(c)
		}
		var expires time.Time
		if !c.expire {
			expires = b.config.Now().Add(c.expiry)
		}
		b.seats.release(c.mochi.ID, c.seat, expires)
	}
	c.Close()
	c.conn.Store(nil)
}

// abandon does what mochi does at the end of a connection but did not: it
// panicked, or it could not send the CONNACK.
func (b *Broker) abandon(c *client) {
	cl := c.mochi
	cl.Stop(packets.ErrUnspecifiedError)
	for _, pk := range c.backlog {
		cl.State.Inflight.Set(pk) // taken from the session before, not yet given to this one
	}
	c.backlog = nil
	c.expire = endsSession(cl)
	if c.online {
		b.publishWill(c)
	}
	b.ended(c, errAbandoned)
	if !c.expire {
		return
	}
	if current, ok := b.mqtt.Clients.Get(cl.ID); ok && current == cl {
		b.forget(cl.ID)
	}
}

var errAbandoned = errors.New("the connection could not be served")

// endsSession reports whether the session ends with its connection.
func endsSession(cl *mqtt.Client) bool {
	if cl.Properties.ProtocolVersion == 5 {
		return cl.Properties.Props.SessionExpiryInterval == 0
	}
	return cl.Properties.Clean
}
