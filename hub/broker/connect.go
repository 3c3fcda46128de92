package broker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/protocol"
)

// readConnect sees the CONNECT before mochi keeps anything of it. It refuses
// what mochi would answer in the wrong version's words, and takes from the
// packet the features that mochi gets wrong.
func (h *hook) readConnect(c *client, cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c.version, c.clientID = pk.ProtocolVersion, pk.Connect.ClientIdentifier
	if pk.ProtocolVersion != 4 && pk.ProtocolVersion != 5 {
		c.version = 4
		if pk.ProtocolVersion > 5 {
			c.version = 5
		}
		return pk, h.refuse(c, cl, packets.ErrUnsupportedProtocolVersion, c.refusal(ReasonVersion, "protocol level %d is neither 3.1.1 nor 5.0", pk.ProtocolVersion)) // [MQTT-3.1.2-2]
	}
	if code := pk.ConnectValidate(); code != packets.CodeSuccess && c.version == 4 {
		h.b.refused(c, c.refusal(ReasonMalformedConnect, "%s", code.Reason))
		return pk, packets.ErrRejectPacket // no CONNACK [MQTT-3.1.4-1]
	}
	if pk.Properties.AuthenticationMethod != "" {
		return pk, h.refuse(c, cl, packets.ErrBadAuthenticationMethod, c.refusal(ReasonAuthMethod, "the client certificate is the only authentication")) // [MQTT-4.12.0-1]
	}
	c.window.limit = int(pk.Properties.ReceiveMaximum)
	if c.window.limit == 0 {
		c.window.limit = 65535 // [MQTT-3.1.2-11]
	}
	// mochi's flow control loses messages and takes a read lock twice, which can
	// stop everybody; ours is in deliver.go. Its outbound aliases outlive the
	// connection that they belong to.
	pk.Properties.ReceiveMaximum = 0
	pk.Properties.TopicAliasMaximum = 0
	pk.Connect.ClientIdentifier = sessionKey(c.peer.Identity.Role, c.clientID)
	return pk, nil
}

// OnConnect decides about a CONNECT that is well-formed. On an error mochi
// closes the connection and says nothing, so the CONNACK is sent here.
func (h *hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	c := clientOf(cl)
	if c == nil {
		return packets.ErrNotAuthorized
	}
	if err := h.b.admission.Check(c.peer); err != nil {
		return h.refuse(c, cl, codeOf(err), err)
	}
	connect := admission.Connect{ClientID: c.clientID, Will: pk.Connect.WillFlag, WillTopic: pk.Connect.WillTopic}
	if err := h.b.admission.CheckConnect(c.peer, c.subject, connect); err != nil {
		return h.refuse(c, cl, codeOf(err), err)
	}
	if err := h.sit(c, cl); err != nil {
		return h.refuse(c, cl, packets.ErrServerBusy, c.refusal(ReasonTakeover, "%v", err))
	}
	c.keepAlive = time.Duration(pk.Connect.Keepalive) * time.Second * 3 / 2
	h.setExpiry(c, cl)
	// From here on we authorise and acknowledge publishes ourselves: see publish.go.
	cl.Net.Inline = true
	if conn := c.conn.Load(); conn != nil {
		conn.Connected()
	}
	return nil
}

// sit takes the session's seat, once whoever has it is out of it.
func (h *hook) sit(c *client, cl *mqtt.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), takeoverTimeout)
	defer cancel()
	place, err := h.b.seats.claim(ctx, cl.ID, c)
	if err != nil {
		return err
	}
	c.seat, c.mochi = place, cl
	if !place.expires.IsZero() && h.b.config.Now().After(place.expires) {
		h.b.forget(cl.ID) // the sweeper hasn't come by yet
		place.received = nil
	}
	return nil
}

// setExpiry bounds how long the session outlives its connection, and hides the
// interval's flag from mochi, whose expiry leaves half of a session behind.
func (h *hook) setExpiry(c *client, cl *mqtt.Client) {
	c.expiry = h.b.config.SessionExpiry
	if c.version == 5 {
		props := &cl.Properties.Props
		asked := time.Duration(props.SessionExpiryInterval) * time.Second
		c.capped = asked > c.expiry
		c.expiry = min(asked, c.expiry)
		props.SessionExpiryInterval = uint32(c.expiry.Seconds())
		props.SessionExpiryIntervalFlag = false
		// The will is due when the session ends, at the latest [MQTT-3.1.3-9].
		cl.Properties.Will.WillDelayInterval = min(cl.Properties.Will.WillDelayInterval, props.SessionExpiryInterval)
	}
}

// OnConnectAuthenticate agrees: OnConnect has decided.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, _ packets.Packet) bool {
	c := clientOf(cl)
	return c != nil && c.seat != nil
}

// OnSessionEstablish runs before mochi hands the stored session over, which it
// does without asking whether the client may still have what is in it.
func (h *hook) OnSessionEstablish(cl *mqtt.Client, pk packets.Packet) {
	c := clientOf(cl)
	existing, ok := h.b.mqtt.Clients.Get(cl.ID)
	if !ok || pk.Connect.Clean {
		c.seat.received = nil
		return
	}
	h.b.inherit(c, existing)
}

// OnSessionEstablished runs when the CONNACK is sent: what was stored goes out
// first, then deliveries may follow, then the world is told.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	c := clientOf(cl)
	c.greeted.Store(true)
	c.resend(cl)
	c.open()
	c.online = true
	h.b.counters.connects.Add(1)
	h.b.log.Info("connected", "id", c.clientID, "role", c.peer.Identity.Role, "remote", c.remote, "version", c.version, "resumed", c.peer.Resumed)
	if c.whyEnded() != "" {
		return // cut meanwhile: there is nothing to announce
	}
	if c.peer.Identity.Role == identity.RoleDevice && h.b.config.Seen != nil {
		h.b.config.Seen(c.peer.Identity.ID, h.b.config.Now())
	}
	h.b.announce(c, true, protocol.ReasonConnected)
	h.b.tellChain(c)
}

// OnDisconnect runs when mochi is done with a connection, after the will.
func (h *hook) OnDisconnect(cl *mqtt.Client, err error, expire bool) {
	c := clientOf(cl)
	if c == nil || c.seat == nil {
		return
	}
	c.left, c.expire = true, expire
	h.b.ended(c, err)
}

// ended tells the world that a connection is over.
func (b *Broker) ended(c *client, err error) {
	reason := c.endReason(err)
	b.log.Info("disconnected", "id", c.clientID, "role", c.peer.Identity.Role, "remote", c.remote, "reason", reason, "denied", c.denied)
	if c.online {
		if c.peer.Identity.Role == identity.RoleDevice && b.config.Seen != nil {
			b.config.Seen(c.peer.Identity.ID, b.config.Now())
		}
		b.announce(c, false, reason)
	}
}

// endReason says why the connection ended, in the words of package protocol.
func (c *client) endReason(err error) string {
	if reason := c.whyEnded(); reason != "" {
		return reason
	}
	switch {
	case err == nil, errors.Is(err, packets.CodeDisconnect), errors.Is(err, packets.CodeDisconnectWillMessage):
		return protocol.ReasonDisconnected
	case errors.Is(err, os.ErrDeadlineExceeded):
		return protocol.ReasonKeepAlive
	}
	if code, ok := errors.AsType[packets.Code](err); ok && code.Code >= packets.ErrUnspecifiedError.Code {
		return protocol.ReasonProtocol
	}
	return protocol.ReasonLost
}

// readDisconnect takes over a changed session expiry [MQTT-3.14.2-2].
func (h *hook) readDisconnect(c *client, cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if c.version != 5 || !pk.Properties.SessionExpiryIntervalFlag {
		return pk, nil
	}
	asked := time.Duration(pk.Properties.SessionExpiryInterval) * time.Second
	if asked > 0 && c.expiry == 0 {
		return pk, c.violation(cl, packets.ErrProtocolViolationZeroNonZeroExpiry)
	}
	c.expiry = min(asked, h.b.config.SessionExpiry)
	cl.Properties.Props.SessionExpiryInterval = uint32(c.expiry.Seconds())
	pk.Properties.SessionExpiryIntervalFlag = false
	return pk, nil
}

// OnWill runs when a connection ends without DISCONNECT. The will passes policy
// once more, because rules and labels may have changed since CONNECT. A device
// that an operator cut off has no last word, nor has anybody when the hub
// stops. mochi can't be told to drop a will; one without topic reaches nobody.
func (h *hook) OnWill(cl *mqtt.Client, will mqtt.Will) (mqtt.Will, error) {
	c := clientOf(cl)
	if c == nil || !c.mayPublishWill(will.TopicName) {
		return mqtt.Will{}, nil
	}
	return will, nil
}

func (c *client) mayPublishWill(topic string) bool {
	switch c.whyEnded() {
	case protocol.ReasonRevoked, protocol.ReasonSuspended, protocol.ReasonUntrusted, protocol.ReasonShutdown:
		return false
	}
	if d := policy.Allow(c.subject, policy.Publish, topic); !d.Allowed {
		c.deny(policy.Publish, topic, d)
		return false
	}
	return true
}

// refuse logs, counts and answers a CONNECT that is not accepted.
func (h *hook) refuse(c *client, cl *mqtt.Client, code packets.Code, err error) error {
	h.b.refused(c, err)
	cl.Properties.ProtocolVersion = c.version
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, ReasonCode: code.Code}
	if refusal, ok := errors.AsType[*admission.Refusal](err); ok {
		pk.Properties.ReasonString = refusal.Detail
	}
	if c.version == 4 {
		pk.ReasonCode = returnCode(code)
	}
	_ = cl.WritePacket(pk)
	return packets.ErrRejectPacket
}

// codeOf is the version 5 reason code of a refusal.
func codeOf(err error) packets.Code {
	refusal, ok := errors.AsType[*admission.Refusal](err)
	if !ok {
		return packets.ErrUnspecifiedError
	}
	switch refusal.Reason {
	case admission.ReasonClientIdentifier:
		return packets.ErrClientIdentifierNotValid
	case admission.ReasonRevoked, admission.ReasonSuspended:
		return packets.ErrBanned // by administrative action, as the specification words it
	}
	return packets.ErrNotAuthorized
}

// returnCode is the version 3.1.1 return code for a version 5 reason code
// (MQTT 3.1.1 §3.2.2.3). mochi's own table lacks most of them.
func returnCode(code packets.Code) byte {
	switch code {
	case packets.ErrUnsupportedProtocolVersion:
		return packets.Err3UnsupportedProtocolVersion.Code
	case packets.ErrClientIdentifierNotValid:
		return packets.Err3ClientIdentifierNotValid.Code
	case packets.ErrServerBusy, packets.ErrServerUnavailable:
		return packets.Err3ServerUnavailable.Code
	}
	return packets.Err3NotAuthorized.Code
}

func (c *client) refusal(reason mtls.Reason, format string, args ...any) *admission.Refusal {
	return &admission.Refusal{Reason: reason, Identity: c.peer.Identity, Detail: fmt.Sprintf(format, args...)}
}
