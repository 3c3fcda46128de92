package wire

import "github.com/mochi-mqtt/server/v2/packets"

// A form is the data type of a property with the range of its value.
type form byte

const (
	formNone form = iota // no such property
	formBool             // a byte, 0 or 1
	formUint16
	formUint16Positive
	formUint32
	formUint32Positive
	formVarintPositive
	formTopicAlias
	formString
	formTopic // a string that names a topic
	formBinary
	formPair
)

// where is a set of places in which a property may stand: packet types, and
// the will properties.
type where uint32

func in(kinds ...Type) where {
	var w where
	for _, k := range kinds {
		w |= 1 << k
	}
	return w
}

// will is the place of the will properties within a CONNECT.
const will Type = 16

// property says what MQTT 5.0 table 2-4 says of one.
type property struct {
	name   string
	form   form
	client where // where a client may send it
	server where // where a server may send it
}

// properties is MQTT 5.0 table 2-4, by identifier.
var properties = [43]property{
	packets.PropPayloadFormat:          {"payload format indicator", formBool, in(TypePublish, will), in(TypePublish)},
	packets.PropMessageExpiryInterval:  {"message expiry interval", formUint32, in(TypePublish, will), in(TypePublish)},
	packets.PropContentType:            {"content type", formString, in(TypePublish, will), in(TypePublish)},
	packets.PropResponseTopic:          {"response topic", formTopic, in(TypePublish, will), in(TypePublish)},
	packets.PropCorrelationData:        {"correlation data", formBinary, in(TypePublish, will), in(TypePublish)},
	packets.PropSubscriptionIdentifier: {"subscription identifier", formVarintPositive, in(TypeSubscribe), in(TypePublish)},
	packets.PropSessionExpiryInterval:  {"session expiry interval", formUint32, in(TypeConnect, TypeDisconnect), in(TypeConnack)},
	packets.PropAssignedClientID:       {"assigned client identifier", formString, 0, in(TypeConnack)},
	packets.PropServerKeepAlive:        {"server keep alive", formUint16, 0, in(TypeConnack)},
	packets.PropAuthenticationMethod:   {"authentication method", formString, in(TypeConnect, TypeAuth), in(TypeConnack, TypeAuth)},
	packets.PropAuthenticationData:     {"authentication data", formBinary, in(TypeConnect, TypeAuth), in(TypeConnack, TypeAuth)},
	packets.PropRequestProblemInfo:     {"request problem information", formBool, in(TypeConnect), 0},
	packets.PropWillDelayInterval:      {"will delay interval", formUint32, in(will), 0},
	packets.PropRequestResponseInfo:    {"request response information", formBool, in(TypeConnect), 0},
	packets.PropResponseInfo:           {"response information", formString, 0, in(TypeConnack)},
	packets.PropServerReference:        {"server reference", formString, in(TypeDisconnect), in(TypeConnack, TypeDisconnect)},
	packets.PropReasonString: {"reason string", formString,
		in(TypePuback, TypePubrec, TypePubrel, TypePubcomp, TypeDisconnect, TypeAuth),
		in(TypeConnack, TypePuback, TypePubrec, TypePubrel, TypePubcomp, TypeSuback, TypeUnsuback, TypeDisconnect, TypeAuth)},
	packets.PropReceiveMaximum:    {"receive maximum", formUint16Positive, in(TypeConnect), in(TypeConnack)},
	packets.PropTopicAliasMaximum: {"topic alias maximum", formUint16, in(TypeConnect), in(TypeConnack)},
	packets.PropTopicAlias:        {"topic alias", formTopicAlias, in(TypePublish), in(TypePublish)},
	packets.PropMaximumQos:        {"maximum QoS", formBool, 0, in(TypeConnack)},
	packets.PropRetainAvailable:   {"retain available", formBool, 0, in(TypeConnack)},
	packets.PropUser: {"user property", formPair,
		in(TypeConnect, will, TypePublish, TypePuback, TypePubrec, TypePubrel, TypePubcomp, TypeSubscribe, TypeUnsubscribe, TypeDisconnect, TypeAuth),
		in(TypeConnack, TypePublish, TypePuback, TypePubrec, TypePubrel, TypePubcomp, TypeSuback, TypeUnsuback, TypeDisconnect, TypeAuth)},
	packets.PropMaximumPacketSize:    {"maximum packet size", formUint32Positive, in(TypeConnect), in(TypeConnack)},
	packets.PropWildcardSubAvailable: {"wildcard subscription available", formBool, 0, in(TypeConnack)},
	packets.PropSubIDAvailable:       {"subscription identifiers available", formBool, 0, in(TypeConnack)},
	packets.PropSharedSubAvailable:   {"shared subscription available", formBool, 0, in(TypeConnack)},
}

// allowed reports whether sender may put the property at place.
func (p *property) allowed(sender direction, place Type) bool {
	var w where
	if sender&fromClient != 0 {
		w |= p.client
	}
	if sender&fromServer != 0 {
		w |= p.server
	}
	return w>>place&1 != 0
}

// seen is the set of properties that were there. Where the codec can't tell an
// absent property from an empty one, this does.
type seen uint64

func (s seen) has(id byte) bool { return s>>id&1 != 0 }

// maxUser is how many user properties the hub takes in one set: a User takes
// many times the memory of the five bytes that an empty one has on the wire.
const maxUser = 1024

// properties judges a property length and the properties behind it.
func (c *cursor) properties(place Type) (seen, *Error) {
	length, wrong := c.varint()
	if wrong != nil {
		return 0, wrong
	}
	if length > len(c.b) {
		return 0, c.fail(rulePropertyLength)
	}
	if length == 0 {
		return 0, nil
	}
	p := cursor{b: c.b[:length], version: c.version, sender: c.sender}
	c.b = c.b[length:]
	var had seen
	for user := 0; len(p.b) > 0; {
		id, wrong := p.varint()
		if wrong != nil {
			return 0, wrong
		}
		if id >= len(properties) || !properties[id].allowed(c.sender, place) {
			return 0, p.foreign(id, place)
		}
		repeatable := id == int(packets.PropUser) || id == int(packets.PropSubscriptionIdentifier) && place == TypePublish
		if had.has(byte(id)) && !repeatable {
			return 0, p.about(rulePropertyTwice, properties[id].name)
		}
		had |= 1 << id
		if wrong := p.value(&properties[id]); wrong != nil {
			return 0, wrong
		}
		if id == int(packets.PropUser) {
			if user++; user > maxUser {
				return 0, p.fail(ruleTooMany)
			}
		}
	}
	return had, nil
}

// foreign words the breach of table 2-4, which for some has a number.
func (c *cursor) foreign(id int, place Type) *Error {
	switch {
	case id == int(packets.PropSubscriptionIdentifier) && place == TypePublish:
		return c.about(ruleSubIDFromClient, "a subscription identifier")
	case id == int(packets.PropSessionExpiryInterval) && place == TypeDisconnect:
		return c.about(ruleDisconnectExpiry, "the session expiry interval")
	case id < len(properties) && properties[id].form != formNone:
		return c.about(rulePropertyForeign, properties[id].name)
	default:
		return c.about(rulePropertyForeign, "an unknown identifier")
	}
}

// value judges one property's value.
func (c *cursor) value(p *property) *Error {
	switch p.form {
	case formBool:
		v, ok := c.byte()
		if !ok {
			return c.fail(ruleTruncated)
		}
		if v > 1 {
			return c.about(rulePropertyBool, p.name)
		}
	case formUint16, formUint16Positive, formTopicAlias:
		v, ok := c.uint16()
		switch {
		case !ok:
			return c.fail(ruleTruncated)
		case v == 0 && p.form == formUint16Positive:
			return c.about(rulePropertyZero, p.name)
		case v == 0 && p.form == formTopicAlias:
			return c.about(ruleTopicAliasZero, p.name)
		}
	case formUint32, formUint32Positive:
		v, ok := c.uint32()
		if !ok {
			return c.fail(ruleTruncated)
		}
		if v == 0 && p.form == formUint32Positive {
			return c.about(rulePropertyZero, p.name)
		}
	case formVarintPositive:
		v, wrong := c.varint()
		if wrong != nil {
			return wrong
		}
		if v == 0 {
			return c.about(rulePropertyZero, p.name)
		}
	case formString:
		_, wrong := c.string(p.name)
		return wrong
	case formTopic:
		return c.topic(p.name, ruleResponseTopicWildcard)
	case formBinary:
		if _, ok := c.binary(); !ok {
			return c.fail(ruleTruncated)
		}
	case formPair:
		if _, wrong := c.string(p.name); wrong != nil {
			return wrong
		}
		_, wrong := c.string(p.name)
		return wrong
	}
	return nil
}
