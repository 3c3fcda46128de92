package wire

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"
)

// decode judges a packet and takes it apart.
func (r *Reader) decode(f *frame) (Packet, *Error) {
	x, wrong := f.check()
	if f.kind() == TypeConnect {
		r.said = x.level
	}
	if wrong != nil {
		return nil, wrong
	}
	switch f.kind() {
	case TypePingreq, TypePingresp:
		r.ping.Kind = f.kind()
		return &r.ping, nil
	case TypeDisconnect:
		if len(f.body) == 0 {
			return &Disconnect{}, nil
		}
	case TypeAuth:
		if len(f.body) == 0 {
			return &Auth{}, nil
		}
	case TypeConnect:
		if x.level != V311 && x.level != V5 {
			return unknownConnect(f.body), nil
		}
		f.version = x.level
	}
	return r.s.open(f, x) // a body that is not empty is in the buffer
}

// open takes a packet apart that has passed the rules. What the codec chokes
// on nevertheless is malformed.
func (s *scratch) open(f *frame, x facts) (Packet, *Error) {
	if err := unpack(&s.pk, f); err != nil {
		s.pk = packets.Packet{}
		return nil, &Error{Code: MalformedPacket, Detail: err.Error()}
	}
	return s.convert(f, x), nil
}

// unknownConnect is a CONNECT of another protocol version: its name and level.
func unknownConnect(body []byte) *Connect {
	c := cursor{b: body}
	name, _ := c.binary()
	level, _ := c.byte()
	return &Connect{ProtocolName: string(name), Version: level}
}

// unpack has the codec take a judged packet apart into pk. A panic of the
// codec is an error like any other: one packet ends one connection.
func unpack(pk *packets.Packet, f *frame) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = errors.New("the packet could not be decoded: the codec gave up") // v may quote the payload
		}
	}()
	pk.FixedHeader = packets.FixedHeader{
		Remaining: len(f.body),
		Type:      byte(f.kind()),
	}
	pk.ProtocolVersion = f.version
	switch f.kind() {
	case TypePublish:
		pk.FixedHeader.Qos = f.first >> 1 & 3
		err = pk.PublishDecode(f.body)
	case TypePuback:
		err = pk.PubackDecode(f.body)
	case TypePubrec:
		err = pk.PubrecDecode(f.body)
	case TypePubrel:
		err = pk.PubrelDecode(f.body)
	case TypePubcomp:
		err = pk.PubcompDecode(f.body)
	case TypeConnect:
		err = pk.ConnectDecode(f.body)
	case TypeConnack:
		err = pk.ConnackDecode(f.body)
	case TypeSubscribe:
		err = pk.SubscribeDecode(f.body)
	case TypeSuback:
		err = pk.SubackDecode(f.body)
	case TypeUnsubscribe:
		err = pk.UnsubscribeDecode(f.body)
	case TypeUnsuback:
		err = pk.UnsubackDecode(f.body)
	case TypeDisconnect:
		err = pk.DisconnectDecode(f.body)
		pk.ReasonCode = f.body[0] // the codec overlooks a code without a property length
	case TypeAuth:
		err = pk.AuthDecode(f.body)
	}
	if err != nil {
		return fmt.Errorf("the packet could not be decoded: %w", err)
	}
	return nil
}

// convert turns the codec's packet into ours. The codec's strings lie in the
// read buffer, so each is copied.
func (s *scratch) convert(f *frame, x facts) Packet {
	pk := &s.pk
	switch f.kind() {
	case TypePublish:
		p := &s.publish
		if s.extended {
			*p = Publish{}
		}
		p.Topic = strings.Clone(pk.TopicName)
		p.Payload = pk.Payload
		p.QoS = f.first >> 1 & 3
		p.Retain = f.first&1 != 0
		p.Dup = f.first&8 != 0
		p.ID = 0
		if p.QoS > 0 {
			p.ID = pk.PacketID
		}
		if s.extended = x.props != 0; s.extended {
			p.setProperties(&pk.Properties, x.props)
			*pk = packets.Packet{}
		}
		return p
	case TypePuback, TypePubrec, TypePubrel, TypePubcomp:
		s.ack = Ack{Kind: f.kind(), ID: pk.PacketID}
		if f.version == V5 && len(f.body) > 2 {
			s.ack.Code = Code(f.body[2])
			s.ack.Reason = strings.Clone(pk.Properties.ReasonString)
			s.ack.User = users(pk.Properties.User)
			*pk = packets.Packet{}
		}
		return &s.ack
	}
	p := rare(pk, f, x)
	*pk = packets.Packet{}
	return p
}

// rare converts the packets of which a connection sees few.
func rare(pk *packets.Packet, f *frame, x facts) Packet {
	props := &pk.Properties
	switch f.kind() {
	case TypeConnect:
		return connectFrom(pk, x)
	case TypeConnack:
		return connackFrom(pk, x)
	case TypeSubscribe:
		p := &Subscribe{ID: pk.PacketID, Filters: make([]Subscription, len(pk.Filters)), User: users(props.User)}
		for i, s := range pk.Filters {
			p.Filters[i] = Subscription{
				Filter: strings.Clone(s.Filter), QoS: s.Qos,
				NoLocal: s.NoLocal, RetainAsPublished: s.RetainAsPublished, RetainHandling: s.RetainHandling,
			}
		}
		if len(props.SubscriptionIdentifier) > 0 {
			p.SubID = props.SubscriptionIdentifier[0]
		}
		return p
	case TypeUnsubscribe:
		p := &Unsubscribe{ID: pk.PacketID, Filters: make([]string, len(pk.Filters)), User: users(props.User)}
		for i, s := range pk.Filters {
			p.Filters[i] = strings.Clone(s.Filter)
		}
		return p
	case TypeSuback, TypeUnsuback:
		p := &Suback{Kind: f.kind(), ID: pk.PacketID, Reason: strings.Clone(props.ReasonString), User: users(props.User)}
		for _, c := range pk.ReasonCodes {
			p.Codes = append(p.Codes, Code(c))
		}
		return p
	case TypeDisconnect:
		p := &Disconnect{
			Code:   Code(pk.ReasonCode),
			Reason: strings.Clone(props.ReasonString), ServerReference: strings.Clone(props.ServerReference),
			User: users(props.User),
		}
		if x.props.has(propSessionExpiry) {
			p.SessionExpiry = pointer(props.SessionExpiryInterval)
		}
		return p
	default: // TypeAuth
		return &Auth{
			Code: Code(pk.ReasonCode), Method: strings.Clone(props.AuthenticationMethod), Data: nonEmpty(props.AuthenticationData),
			Reason: strings.Clone(props.ReasonString), User: users(props.User),
		}
	}
}

func connectFrom(pk *packets.Packet, x facts) *Connect {
	from, props := &pk.Connect, &pk.Properties
	c := &Connect{
		ProtocolName:      string(from.ProtocolName),
		Version:           pk.ProtocolVersion,
		CleanStart:        from.Clean,
		KeepAlive:         from.Keepalive,
		ClientID:          strings.Clone(from.ClientIdentifier),
		HasUsername:       from.UsernameFlag,
		HasPassword:       from.PasswordFlag,
		Username:          string(from.Username),
		Password:          from.Password,
		SessionExpiry:     props.SessionExpiryInterval,
		ReceiveMaximum:    props.ReceiveMaximum,
		MaximumPacketSize: props.MaximumPacketSize,
		TopicAliasMaximum: props.TopicAliasMaximum,
		RequestResponse:   props.RequestResponseInfo == 1,
		NoProblemInfo:     props.RequestProblemInfoFlag && props.RequestProblemInfo == 0,
		AuthMethod:        strings.Clone(props.AuthenticationMethod),
		AuthData:          nonEmpty(props.AuthenticationData),
		User:              users(props.User),
	}
	if from.WillFlag {
		c.Will = &Will{
			Message: Publish{
				Topic:   strings.Clone(from.WillTopic),
				Payload: from.WillPayload,
				QoS:     from.WillQos,
				Retain:  from.WillRetain,
			},
			Delay: from.WillProperties.WillDelayInterval,
		}
		if x.willProps != 0 {
			c.Will.Message.setProperties(&from.WillProperties, x.willProps)
		}
	}
	return c
}

func connackFrom(pk *packets.Packet, x facts) *Connack {
	props := &pk.Properties
	c := &Connack{
		SessionPresent:    pk.SessionPresent,
		Code:              Code(pk.ReasonCode),
		ReceiveMaximum:    props.ReceiveMaximum,
		NoRetain:          props.RetainAvailableFlag && props.RetainAvailable == 0,
		MaximumPacketSize: props.MaximumPacketSize,
		AssignedClientID:  strings.Clone(props.AssignedClientID),
		TopicAliasMaximum: props.TopicAliasMaximum,
		Reason:            strings.Clone(props.ReasonString),
		NoWildcard:        props.WildcardSubAvailableFlag && props.WildcardSubAvailable == 0,
		NoSubscriptionIDs: props.SubIDAvailableFlag && props.SubIDAvailable == 0,
		NoShared:          props.SharedSubAvailableFlag && props.SharedSubAvailable == 0,
		ResponseInfo:      strings.Clone(props.ResponseInfo),
		ServerReference:   strings.Clone(props.ServerReference),
		AuthMethod:        strings.Clone(props.AuthenticationMethod),
		AuthData:          nonEmpty(props.AuthenticationData),
		User:              users(props.User),
	}
	if pk.ProtocolVersion != V5 {
		c.Code = reasonCode(pk.ReasonCode)
	}
	if props.SessionExpiryIntervalFlag {
		c.SessionExpiry = pointer(props.SessionExpiryInterval)
	}
	if props.MaximumQosFlag {
		c.MaximumQoS = pointer(props.MaximumQos)
	}
	if props.ServerKeepAliveFlag {
		c.ServerKeepAlive = pointer(props.ServerKeepAlive)
	}
	return c
}

// setProperties takes over a message's properties.
func (p *Publish) setProperties(from *packets.Properties, had seen) {
	p.Alias = from.TopicAlias
	p.SubIDs = from.SubscriptionIdentifier
	if had.has(propMessageExpiry) {
		p.Expiry = pointer(from.MessageExpiryInterval)
	}
	if had&travelling == 0 {
		return
	}
	p.Props = &MessageProperties{
		Format:        from.PayloadFormat,
		ContentType:   strings.Clone(from.ContentType),
		ResponseTopic: strings.Clone(from.ResponseTopic),
		Correlation:   slices.Clip(from.CorrelationData),
		User:          users(from.User),
	}
	if p.Props.empty() {
		p.Props = nil // what was given said nothing, such as a payload format of 0
	}
}

// travelling are the properties that make up MessageProperties.
const travelling = seen(1<<packets.PropPayloadFormat | 1<<packets.PropContentType | 1<<packets.PropResponseTopic |
	1<<packets.PropCorrelationData | 1<<packets.PropUser)

func (p *MessageProperties) empty() bool {
	return p.Format == 0 && p.ContentType == "" && p.ResponseTopic == "" && p.Correlation == nil && len(p.User) == 0
}

// nonEmpty returns b, nil if there is no byte in it.
func nonEmpty(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return slices.Clip(b)
}

func users(from []packets.UserProperty) []User {
	if len(from) == 0 {
		return nil
	}
	to := make([]User, len(from))
	for i, u := range from {
		to[i] = User{strings.Clone(u.Key), strings.Clone(u.Val)}
	}
	return to
}

func pointer[T any](v T) *T { return &v }
