package broker

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/wire"
)

// begin reads the CONNECT and answers it. An error ends the connection, which has
// been told and counted.
func (c *client) begin() error {
	pk, err := c.reader.Next()
	if err != nil {
		c.b.refused(c, c.noConnect(err))
		return err
	}
	connect, ok := pk.(*wire.Connect)
	if !ok { // [MQTT-3.1.0-1]
		c.b.refused(c, c.refusal(ReasonFirstPacket, "the first packet is of type %d, not a CONNECT", pk.Type()))
		return errRefused
	}
	c.packet.Store(time.Now().UnixNano())
	c.b.counters.packetsReceived.add(c.number, 1)
	if err := c.judge(connect); err != nil {
		c.b.refused(c, err)
		c.sendRefusal(err)
		return errRefused
	}
	c.reader.SetVersion(c.version)
	return c.connect(connect)
}

// noConnect says in a word what came instead of a CONNECT.
func (c *client) noConnect(err error) error {
	fault, ok := errors.AsType[*wire.Error](err)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return c.refusal(ReasonConnectTimeout, "no CONNECT arrived in time")
	case ok && fault.Clause == "MQTT-3.1.0-1":
		return c.refusal(ReasonFirstPacket, "%v", fault)
	case ok:
		return c.refusal(ReasonMalformedConnect, "%v", fault)
	}
	return c.refusal(ReasonNoConnect, "the connection ended before its CONNECT: %v", err)
}

// judge decides whether the peer may connect as its CONNECT says.
func (c *client) judge(pk *wire.Connect) error {
	c.clientID, c.version, c.limit = pk.ClientID, pk.Version, pk.MaximumPacketSize
	if pk.Version != wire.V311 && pk.Version != wire.V5 {
		c.version = wire.V311
		if pk.Version > wire.V5 {
			c.version = wire.V5
		}
		return c.refusal(ReasonVersion, "protocol level %d is neither 3.1.1 nor 5.0", pk.Version) // [MQTT-3.1.2-2]
	}
	if pk.AuthMethod != "" {
		return c.refusal(ReasonAuthMethod, "the client certificate is the only authentication") // [MQTT-4.12.0-1]
	}
	if err := c.b.admission.Check(c.peer); err != nil {
		return err
	}
	asked := admission.Connect{ClientID: pk.ClientID}
	if pk.Will != nil {
		asked.Will, asked.WillTopic = true, pk.Will.Message.Topic
	}
	return c.b.admission.CheckConnect(c.peer, c.subject, asked)
}

// sendRefusal answers a CONNECT that is not accepted.
func (c *client) sendRefusal(err error) {
	pk := &wire.Connack{Code: codeOf(err)}
	if refusal, ok := errors.AsType[*admission.Refusal](err); ok {
		pk.Reason = refusal.Detail
	}
	_ = c.send(pk)
}

// codeOf is the version 5 reason code of a refusal.
func codeOf(err error) wire.Code {
	refusal, ok := errors.AsType[*admission.Refusal](err)
	if !ok {
		return wire.UnspecifiedError
	}
	switch refusal.Reason {
	case ReasonVersion:
		return wire.UnsupportedProtocolVersion
	case ReasonAuthMethod:
		return wire.BadAuthenticationMethod
	case ReasonSessions:
		return wire.QuotaExceeded
	case ReasonUnavailable:
		return wire.ServerUnavailable
	case admission.ReasonClientIdentifier:
		return wire.ClientIdentifierNotValid
	case admission.ReasonRevoked, admission.ReasonSuspended:
		return wire.Banned // by administrative action, as the specification words it
	}
	return wire.NotAuthorized
}

// connect takes the session over and answers. The order matters: whoever had the
// session is cut first, what must be on disk is before the CONNACK, and only after
// that may messages follow.
func (c *client) connect(pk *wire.Connect) error {
	c.settle(pk)
	expiry, capped := c.expiry(pk)
	s, present, err := c.attach(pk, expiry)
	if err != nil {
		refusal := c.refusal(ReasonUnavailable, "its session can't be stored now: %v", err)
		if errors.Is(err, errTooManySessions) {
			refusal = c.refusal(ReasonSessions, "%v", err)
		}
		c.b.refused(c, refusal)
		c.sendRefusal(refusal)
		return errRefused
	}
	s.mu.Lock()
	if s.client != c { // taken over, or purged, meanwhile
		s.mu.Unlock()
		return errRefused
	}
	err = c.send(c.connack(present, expiry, capped))
	if err == nil {
		c.ready.Store(true)
		c.b.pump(s)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	c.b.joined(c)
	return nil
}

// settle takes what the CONNECT says about the connection.
func (c *client) settle(pk *wire.Connect) {
	quotas := &c.b.config.Quotas
	c.keepAlive = time.Duration(pk.KeepAlive) * time.Second * 3 / 2
	c.noReasons = pk.NoProblemInfo
	c.window = quotas.Inflight
	if pk.ReceiveMaximum > 0 {
		c.window = min(c.window, int(pk.ReceiveMaximum)) // [MQTT-3.3.4-9]
	}
	c.aliasLimit = min(pk.TopicAliasMaximum, topicAliases) // [MQTT-3.1.2-26, -27]
	c.rate = c.b.rates.of(sessionKey(c.peer.Identity.Role, c.peer.Identity.ID), quotas.PublishRate)
	if c.isDevice() {
		c.conn.SetWriteBuffer(deviceWriteBuffer)
	} else {
		c.conn.SetWriteBuffer(serviceWriteBuffer)
	}
}

// expiry is how long the session outlives the connection. 3.1.1 has no such number: a
// session that isn't clean is kept as long as the hub keeps any.
func (c *client) expiry(pk *wire.Connect) (expiry time.Duration, capped bool) {
	most := c.b.config.SessionExpiry
	if c.version < wire.V5 {
		if pk.CleanStart {
			return 0, false
		}
		return most, false
	}
	asked := seconds(pk.SessionExpiry)
	return min(asked, most), asked > most
}

func (c *client) connack(present bool, expiry time.Duration, capped bool) *wire.Connack {
	pk := &wire.Connack{SessionPresent: present}
	if c.version < wire.V5 {
		return pk
	}
	pk.MaximumPacketSize = uint32(c.b.config.MaxPacketSize) // [MQTT-3.2.2-15]
	pk.ReceiveMaximum = uint16(c.b.config.Quotas.ReceiveMaximum)
	pk.TopicAliasMaximum = topicAliases
	if capped {
		seconds := uint32(expiry / time.Second)
		pk.SessionExpiry = &seconds
	}
	return pk
}

var errTooManySessions = errors.New("it has as many sessions as a service may have: end some with a clean start, or use their client identifiers")

// attach makes c the session's connection. A session that outlives it, and a will, are
// on disk when it returns.
func (c *client) attach(pk *wire.Connect, expiry time.Duration) (s *Session, present bool, err error) {
	b := c.b
	key := sessionKey(c.peer.Identity.Role, c.clientID)
	if b.sessions.find(key) == nil && b.sessions.count(key) >= b.config.Quotas.Sessions {
		return nil, false, errTooManySessions
	}
	for {
		s = b.sessions.findOrAdd(key, func() *Session { return b.newSession(key, c.subject) })
		s.mu.Lock()
		if !s.gone {
			break
		}
		s.mu.Unlock()
	}
	old := s.client
	if old != nil {
		old.Disconnect(protocol.ReasonTakenOver)
	}
	var last *wire.Will
	if old != nil || s.stored {
		lives := !pk.CleanStart && s.stored && s.expiry > 0 && !(old == nil && b.config.Now().After(s.left.Add(s.expiry)))
		switch {
		case old != nil:
			last = b.detach(s, old, lives)
			c.before = old
		case !lives && !s.willDue.IsZero():
			last = s.will // the session ends before its delay does [MQTT-3.1.3-9]
		}
		if !lives { // [MQTT-3.1.2-4]
			err := b.endOnDisk(s)
			s.mu.Unlock()
			b.publishWill(s, last)
			if err != nil {
				return nil, false, err
			}
			return c.attach(withClean(pk), expiry)
		}
		present = true
	}
	c.session = s
	s.subject = c.subject // its certificate may be another one
	s.client, s.version, s.expiry, s.left = c, c.version, expiry, time.Time{}
	s.reader.Store(c)
	s.will, s.willDue = cloneWill(pk.Will), time.Time{} // one that waited is cancelled [MQTT-3.1.3-9]
	b.revise(s)
	s.box.rewind()
	fresh := !s.stored && (expiry > 0 || s.will != nil)
	if fresh {
		s.stored, s.number = true, b.sessions.lastID.Add(1)
	}
	if !s.stored {
		s.mu.Unlock()
		b.publishWill(s, last)
		return s, present, nil
	}
	// The record is made under the lock, so that it lies where it belongs among the
	// session's; the wait for it is without.
	done := make(written, 1)
	waits := fresh || s.will != nil
	switch {
	case fresh:
		_, err = b.ingest.Session(s.full(), done)
	case waits:
		err = b.ingest.Presence(s.record(), done)
	default:
		_ = b.ingest.Presence(s.record(), nil) // an error marks the journal as stale
	}
	s.mu.Unlock()
	b.publishWill(s, last)
	if err == nil && waits {
		err = <-done
	}
	if err != nil {
		err = fmt.Errorf("store session %s: %w", c.clientID, err)
	}
	return s, present, err
}

// withClean is the same CONNECT once its old session is gone.
func withClean(pk *wire.Connect) *wire.Connect {
	clean := *pk
	clean.CleanStart = true
	return &clean
}
