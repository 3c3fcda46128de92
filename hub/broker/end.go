package broker

import (
	"errors"
	"log/slog"
	"os"

	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/wire"
)

// goodbye takes a DISCONNECT: the will is dropped, unless it says otherwise, and a
// changed session expiry taken over [MQTT-3.14.4-3, MQTT-3.14.2-2].
func (c *client) goodbye(pk *wire.Disconnect) error {
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != c {
		return errEnd
	}
	if pk.SessionExpiry != nil {
		asked := seconds(*pk.SessionExpiry)
		if asked > 0 && s.expiry == 0 {
			return &wire.Error{Code: wire.ProtocolError, Clause: "MQTT-3.14.2-2", Detail: "a DISCONNECT that gives a session an expiry which had none"}
		}
		s.expiry = min(asked, c.b.config.SessionExpiry)
	}
	if pk.Code != wire.DisconnectWithWill {
		s.will = nil
	}
	return errEnd
}

// leave ends a connection's part in its session.
func (b *Broker) leave(c *client, err error) {
	s := c.session
	s.mu.Lock()
	var last *wire.Will
	if s.client == c {
		lives := s.stored && s.expiry > 0 && !s.gone && !endsDevice(c.whyEnded())
		last = b.detach(s, c, lives)
		if lives {
			_ = b.ingest.Presence(s.record(), nil) // an error marks the journal as stale
		} else {
			b.end(s)
		}
	}
	s.mu.Unlock()
	b.publishWill(s, last)
	b.parted(c, err)
}

// detach takes a connection off its session and returns the will that is due now, nil
// if none is. lives is whether the session goes on. The caller holds s.mu.
func (b *Broker) detach(s *Session, c *client, lives bool) (last *wire.Will) {
	s.reader.Store(nil)
	s.client = nil
	c.ready.Store(false)
	s.left = b.config.Now()
	s.replays = nil
	will := s.will
	if will != nil && !c.mayLeaveWill() {
		will, s.will = nil, nil
	}
	switch {
	case will == nil:
	case will.Delay > 0 && lives:
		s.willOf = c.peer
		s.willDue = s.left.Add(min(seconds(will.Delay), s.expiry))
		b.deadlines.add(s.willDue, s)
		return nil
	default:
		s.will, last = nil, will
	}
	if lives {
		b.deadlines.add(s.left.Add(s.expiry), s)
	}
	return last
}

// mayLeaveWill reports whether the connection's end lets its will be published. A
// device that an operator cut off has no last word, nor has anybody when the hub stops.
func (c *client) mayLeaveWill() bool {
	switch c.whyEnded() {
	case protocol.ReasonRevoked, protocol.ReasonRetired, protocol.ReasonReplaced, protocol.ReasonSuspended, protocol.ReasonUntrusted, protocol.ReasonKeyProtection, protocol.ReasonShutdown:
		return false
	}
	return true
}

// joined tells the world that a connection is there, after the end of the one before.
func (b *Broker) joined(c *client) {
	b.counters.connects.Add(1)
	c.say(slog.LevelInfo, "connected", "version", c.version, "resumed", c.peer.Resumed)
	if c.before != nil {
		b.parted(c.before, nil)
		c.before = nil
	}
	if c.isDevice() && b.config.Seen != nil {
		b.config.Seen(c.peer.Identity.ID, b.config.Now())
	}
	if b.config.Observer != nil {
		b.config.Observer.OnConnected(c.peer.Identity, c.remote, c.peer.Resumed)
	}
	s := c.session
	s.presence.Lock()
	defer s.presence.Unlock()
	if s.reader.Load() != c || c.whyEnded() != "" {
		return // cut meanwhile: there is nothing to announce
	}
	c.online = true
	b.announce(c, true, protocol.ReasonConnected)
	b.tellChain(c)
}

// parted tells the world that a connection is over, once. Its reader calls it, and who
// took its place: whoever comes first.
func (b *Broker) parted(c *client, err error) {
	s := c.session
	s.presence.Lock()
	defer s.presence.Unlock()
	if c.over {
		return
	}
	c.over = true
	reason := c.endReason(err)
	c.say(slog.LevelInfo, "disconnected", "reason", reason, "denied", c.denied.Load())
	if b.config.Observer != nil {
		b.config.Observer.OnEnded(c.peer.Identity, c.remote, reason, detailOf(c, err))
	}
	if !c.online {
		return
	}
	if c.isDevice() && b.config.Seen != nil {
		b.config.Seen(c.peer.Identity.ID, b.config.Now())
	}
	if next := s.reader.Load(); next == nil || !next.online {
		b.announce(c, false, reason)
	}
}

// endReason says why the connection ended, in the words of package protocol.
func (c *client) endReason(err error) string {
	if reason := c.whyEnded(); reason != "" {
		return reason
	}
	_, fault := errors.AsType[*wire.Error](err)
	switch {
	case err == nil, errors.Is(err, errEnd):
		return protocol.ReasonDisconnected
	case errors.Is(err, os.ErrDeadlineExceeded):
		return protocol.ReasonKeepAlive
	case fault:
		return protocol.ReasonProtocol
	}
	return protocol.ReasonLost
}
