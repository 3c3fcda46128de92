package wire

import (
	"fmt"

	"pgregory.net/rapid"
)

// text draws a string that may stand in a packet.
func text(t *rapid.T, label string) string {
	return rapid.OneOf(
		rapid.StringMatching(`[a-z/$]{0,12}`),
		rapid.Map(rapid.SliceOfN(rapid.SampledFrom([]rune{1, 'a', '/', 'é', 0xFEFF, 0xFFFF, 0x1F600}), 0, 6), func(r []rune) string { return string(r) }),
	).Draw(t, label)
}

// nonEmptyText draws one that is not empty.
func nonEmptyText(t *rapid.T, label string) string { return "x" + text(t, label) }

func blob(t *rapid.T, label string) []byte {
	return rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, label)
}

func someUsers(t *rapid.T) []User {
	var u []User
	for range rapid.IntRange(0, 3).Draw(t, "users") {
		u = append(u, User{text(t, "key"), text(t, "value")})
	}
	return u
}

func maybe[T any](t *rapid.T, g *rapid.Generator[T], label string) *T {
	if rapid.Bool().Draw(t, label+" given") {
		return pointer(g.Draw(t, label))
	}
	return nil
}

func identifier(t *rapid.T) uint16 { return rapid.Uint16Min(1).Draw(t, "identifier") }

// drawPublish draws a PUBLISH that sender may send.
func drawPublish(t *rapid.T, version byte, sender direction) *Publish {
	p := &Publish{
		Topic:   nonEmptyText(t, "topic"),
		Payload: blob(t, "payload"),
		QoS:     byte(rapid.IntRange(0, 2).Draw(t, "qos")),
		Retain:  rapid.Bool().Draw(t, "retain"),
	}
	if p.QoS > 0 {
		p.ID = identifier(t)
		p.Dup = rapid.Bool().Draw(t, "dup")
	}
	if version != V5 {
		return p
	}
	p.Alias = rapid.Uint16().Draw(t, "alias")
	if p.Alias != 0 && rapid.Bool().Draw(t, "alias only") {
		p.Topic = ""
	}
	if sender == fromServer {
		p.SubIDs = rapid.SliceOfN(rapid.IntRange(1, maxRemaining), 1, 3).Draw(t, "subscription identifiers")
	}
	p.Expiry = maybe(t, rapid.Uint32(), "expiry")
	p.Props = drawMessageProperties(t)
	return p
}

func drawMessageProperties(t *rapid.T) *MessageProperties {
	m := &MessageProperties{
		Format:        byte(rapid.IntRange(0, 1).Draw(t, "format")),
		ContentType:   text(t, "content type"),
		ResponseTopic: text(t, "response topic"),
		User:          someUsers(t),
	}
	if rapid.Bool().Draw(t, "correlated") {
		m.Correlation = blob(t, "correlation")
	}
	if m.empty() {
		return nil
	}
	return m
}

func drawConnect(t *rapid.T, version byte) *Connect {
	p := &Connect{
		ProtocolName: "MQTT",
		Version:      version,
		CleanStart:   rapid.Bool().Draw(t, "clean"),
		KeepAlive:    rapid.Uint16().Draw(t, "keep alive"),
		ClientID:     text(t, "client identifier"),
		HasUsername:  rapid.Bool().Draw(t, "has user name"),
	}
	if p.HasUsername {
		p.Username = text(t, "user name")
	}
	if p.HasPassword = (p.HasUsername || version == V5) && rapid.Bool().Draw(t, "has password"); p.HasPassword {
		p.Password = blob(t, "password")
	}
	if rapid.Bool().Draw(t, "has will") {
		m := drawPublish(t, V311, fromClient)
		m.ID, m.Dup = 0, false
		p.Will = &Will{Message: *m}
	}
	if version != V5 {
		return p
	}
	if p.Will != nil {
		p.Will.Delay = rapid.Uint32().Draw(t, "delay")
		p.Will.Message.Expiry = maybe(t, rapid.Uint32Min(1), "will expiry")
		p.Will.Message.Props = drawMessageProperties(t)
		if m := p.Will.Message.Props; m != nil && m.Correlation != nil {
			m.Correlation = append(m.Correlation, 'x') // the codec can't say that it is empty
		}
	}
	p.SessionExpiry = rapid.Uint32().Draw(t, "session expiry")
	p.ReceiveMaximum = rapid.Uint16().Draw(t, "receive maximum")
	p.MaximumPacketSize = rapid.Uint32().Draw(t, "maximum packet size")
	p.TopicAliasMaximum = rapid.Uint16().Draw(t, "topic alias maximum")
	p.RequestResponse = rapid.Bool().Draw(t, "request response")
	p.NoProblemInfo = rapid.Bool().Draw(t, "no problem info")
	if rapid.Bool().Draw(t, "authenticates") {
		p.AuthMethod, p.AuthData = nonEmptyText(t, "method"), append(blob(t, "data"), 'x')
	}
	p.User = someUsers(t)
	return p
}

// drawConnack draws a CONNACK whose code 3.1.1 can say too.
func drawConnack(t *rapid.T, version byte) *Connack {
	p := &Connack{Code: rapid.SampledFrom([]Code{
		Success, UnsupportedProtocolVersion, ClientIdentifierNotValid, ServerUnavailable, BadUserNameOrPassword, NotAuthorized,
	}).Draw(t, "code")}
	if p.Code == Success {
		p.SessionPresent = rapid.Bool().Draw(t, "session present")
	}
	if version != V5 {
		return p
	}
	p.SessionExpiry = maybe(t, rapid.Uint32(), "session expiry")
	p.ReceiveMaximum = rapid.Uint16().Draw(t, "receive maximum")
	p.MaximumQoS = maybe(t, rapid.ByteMax(1), "maximum qos")
	p.NoRetain = rapid.Bool().Draw(t, "no retain")
	p.MaximumPacketSize = rapid.Uint32().Draw(t, "maximum packet size")
	p.AssignedClientID = text(t, "assigned")
	p.TopicAliasMaximum = rapid.Uint16().Draw(t, "topic alias maximum")
	p.Reason = text(t, "reason")
	p.NoWildcard = rapid.Bool().Draw(t, "no wildcard")
	p.NoSubscriptionIDs = rapid.Bool().Draw(t, "no subscription identifiers")
	p.NoShared = rapid.Bool().Draw(t, "no shared")
	p.ServerKeepAlive = maybe(t, rapid.Uint16(), "server keep alive")
	p.ResponseInfo = text(t, "response information")
	p.ServerReference = text(t, "server reference")
	if rapid.Bool().Draw(t, "authenticates") {
		p.AuthMethod, p.AuthData = nonEmptyText(t, "method"), append(blob(t, "data"), 'x')
	}
	p.User = someUsers(t)
	return p
}

func drawAck(t *rapid.T, kind Type, version byte) *Ack {
	p := &Ack{Kind: kind, ID: identifier(t)}
	if version == V5 {
		codes := []Code{Success, UnspecifiedError, QuotaExceeded, PacketIdentifierInUse}
		if kind == TypePubrel || kind == TypePubcomp {
			codes = []Code{Success, PacketIdentifierNotFound}
		}
		p.Code = rapid.SampledFrom(codes).Draw(t, "code")
		p.Reason, p.User = text(t, "reason"), someUsers(t)
	}
	return p
}

// drawPacket draws any packet of a version, and says who sends it.
func drawPacket(t *rapid.T, version byte) (Packet, direction) {
	kinds := TypeDisconnect
	if version == V5 {
		kinds = TypeAuth
	}
	five := version == V5
	switch kind := Type(rapid.IntRange(int(TypeConnect), int(kinds)).Draw(t, "type")); kind {
	case TypeConnect:
		return drawConnect(t, version), fromClient
	case TypeConnack:
		return drawConnack(t, version), fromServer
	case TypePublish:
		sender := rapid.SampledFrom([]direction{fromClient, fromServer}).Draw(t, "sender")
		return drawPublish(t, version, sender), sender
	case TypePuback, TypePubrec, TypePubrel, TypePubcomp:
		return drawAck(t, kind, version), rapid.SampledFrom([]direction{fromClient, fromServer}).Draw(t, "sender")
	case TypeSubscribe:
		p := &Subscribe{ID: identifier(t)}
		for range rapid.IntRange(1, 4).Draw(t, "filters") {
			s := Subscription{Filter: nonEmptyText(t, "filter"), QoS: rapid.ByteMax(2).Draw(t, "qos")}
			if five {
				s.NoLocal = rapid.Bool().Draw(t, "no local")
				s.RetainAsPublished = rapid.Bool().Draw(t, "retain as published")
				s.RetainHandling = rapid.ByteMax(2).Draw(t, "retain handling")
			}
			p.Filters = append(p.Filters, s)
		}
		if five {
			p.SubID, p.User = rapid.IntRange(0, maxRemaining).Draw(t, "subscription identifier"), someUsers(t)
		}
		return p, fromClient
	case TypeUnsubscribe:
		p := &Unsubscribe{ID: identifier(t)}
		for range rapid.IntRange(1, 4).Draw(t, "filters") {
			p.Filters = append(p.Filters, nonEmptyText(t, "filter"))
		}
		if five {
			p.User = someUsers(t)
		}
		return p, fromClient
	case TypeSuback, TypeUnsuback:
		p := &Suback{Kind: kind, ID: identifier(t)}
		codes := []Code{0, 1, 2, UnspecifiedError}
		if kind == TypeUnsuback {
			codes = []Code{Success, NoSubscriptionExisted, NotAuthorized}
		}
		if kind == TypeSuback || five {
			p.Codes = rapid.SliceOfN(rapid.SampledFrom(codes), 1, 4).Draw(t, "codes")
		}
		if five {
			p.Reason, p.User = text(t, "reason"), someUsers(t)
		}
		return p, fromServer
	case TypePingreq:
		return &Ping{Kind: kind}, fromClient
	case TypePingresp:
		return &Ping{Kind: kind}, fromServer
	case TypeDisconnect:
		if !five {
			return &Disconnect{}, fromClient
		}
		p := &Disconnect{Code: rapid.SampledFrom([]Code{Success, UnspecifiedError, ProtocolError}).Draw(t, "code"), Reason: text(t, "reason"), User: someUsers(t)}
		if rapid.Bool().Draw(t, "by server") {
			p.ServerReference = text(t, "server reference")
			return p, fromServer
		}
		p.SessionExpiry = maybe(t, rapid.Uint32(), "session expiry")
		return p, fromClient
	case TypeAuth:
		p := &Auth{Code: continueAuthentication, Method: nonEmptyText(t, "method"), Reason: text(t, "reason"), User: someUsers(t)}
		if d := blob(t, "data"); len(d) > 0 {
			p.Data = d
		}
		return p, rapid.SampledFrom([]direction{fromClient, fromServer}).Draw(t, "sender")
	default:
		panic(fmt.Sprintf("packet type %d is not drawn", kind))
	}
}
