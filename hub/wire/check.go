package wire

import "bytes"

// facts is what judging a packet found out that decoding it needs.
type facts struct {
	props, willProps seen
	level            byte // the protocol level of a CONNECT, whether or not the rest passed; 0 if it was not reached
}

// check judges a whole packet's body by every rule that concerns its form,
// after the fixed header was judged. What passes is decoded without surprise.
func (f *frame) check() (facts, *Error) {
	c := cursor{b: f.body, version: f.version, sender: f.sender}
	var x facts
	var wrong *Error
	switch f.kind() {
	case TypeConnect:
		return c.connect(f.padded)
	case TypeConnack:
		x.props, wrong = c.connack()
	case TypePublish:
		x.props, wrong = c.publish(f.first>>1&3 > 0)
		return x, wrong // the payload is all that is left
	case TypePuback, TypePubrec, TypePubrel, TypePubcomp:
		x.props, wrong = c.ack(f.kind())
	case TypeSubscribe:
		x.props, wrong = c.subscribe()
	case TypeUnsubscribe:
		x.props, wrong = c.unsubscribe()
	case TypeSuback, TypeUnsuback:
		x.props, wrong = c.suback(f.kind())
	case TypeDisconnect:
		x.props, wrong = c.disconnect()
	case TypeAuth:
		x.props, wrong = c.auth()
	case TypePingreq, TypePingresp: // nothing in them
	}
	if wrong == nil && len(c.b) > 0 {
		wrong = c.fail(ruleTrailing)
	}
	return x, wrong
}

// publish judges a PUBLISH up to its payload.
func (c *cursor) publish(identified bool) (seen, *Error) {
	topic, wrong := c.string("the topic name")
	if wrong != nil {
		return 0, wrong
	}
	if hasWildcard(topic) {
		return 0, c.about(ruleTopicWildcard, "the topic name")
	}
	if identified {
		if wrong := c.identifier(); wrong != nil {
			return 0, wrong
		}
	}
	if c.version != V5 {
		if len(topic) == 0 {
			return 0, c.about(ruleTopicEmpty, "the topic name")
		}
		return 0, nil
	}
	props, wrong := c.properties(TypePublish)
	if wrong == nil && len(topic) == 0 && !props.has(propTopicAlias) {
		wrong = c.fail(ruleTopicMissing)
	}
	return props, wrong
}

// ack judges a PUBACK, PUBREC, PUBREL or PUBCOMP.
func (c *cursor) ack(kind Type) (seen, *Error) {
	if wrong := c.identifier(); wrong != nil {
		return 0, wrong
	}
	if c.version != V5 || len(c.b) == 0 {
		return 0, nil
	}
	code, _ := c.byte()
	if !ackCode(kind, c.sender, Code(code)) {
		return 0, c.fail(ackCodeRule(kind))
	}
	if len(c.b) == 0 {
		return 0, nil // "if the remaining length is less than 4 there is no property length"
	}
	return c.properties(kind)
}

func ackCodeRule(kind Type) rule {
	switch kind {
	case TypePuback:
		return rulePubackCode
	case TypePubrec:
		return rulePubrecCode
	case TypePubrel:
		return rulePubrelCode
	default:
		return rulePubcompCode
	}
}

// maxFilters is how many filters the hub takes in one SUBSCRIBE or
// UNSUBSCRIBE: decoded, each takes many times its four bytes on the wire.
const maxFilters = 4096

func (c *cursor) subscribe() (seen, *Error) {
	props, wrong := c.identified(TypeSubscribe)
	if wrong != nil {
		return 0, wrong
	}
	if len(c.b) == 0 {
		return 0, c.fail(ruleNoFilters)
	}
	for n := 0; len(c.b) > 0; n++ {
		if n == maxFilters {
			return 0, c.fail(ruleTooMany)
		}
		filter, wrong := c.filter()
		if wrong != nil {
			return 0, wrong
		}
		options, ok := c.byte()
		if !ok {
			return 0, c.fail(ruleTruncated)
		}
		if wrong := c.options(filter, options); wrong != nil {
			return 0, wrong
		}
	}
	return props, nil
}

// options judges the byte behind a filter: in 3.1.1 a QoS and six reserved bits.
func (c *cursor) options(filter []byte, options byte) *Error {
	reserved := byte(0xC0)
	if c.version != V5 {
		reserved = 0xFC
	}
	switch {
	case options&reserved != 0:
		return c.fail(ruleSubscribeReserved)
	case options&3 == 3:
		return c.fail(ruleSubscribeQoS)
	case options>>4&3 == 3:
		return c.fail(ruleRetainHandling)
	case options&4 != 0 && bytes.HasPrefix(filter, []byte("$share/")):
		return c.fail(ruleNoLocalShared)
	}
	return nil
}

func (c *cursor) unsubscribe() (seen, *Error) {
	props, wrong := c.identified(TypeUnsubscribe)
	if wrong != nil {
		return 0, wrong
	}
	if len(c.b) == 0 {
		return 0, c.fail(ruleNoUnsubscribeFilters)
	}
	for n := 0; len(c.b) > 0; n++ {
		if n == maxFilters {
			return 0, c.fail(ruleTooMany)
		}
		if _, wrong := c.filter(); wrong != nil {
			return 0, wrong
		}
	}
	return props, nil
}

// filter takes a topic filter; whether its wildcards stand where they may is
// for hub/topic to say, so that a SUBACK can refuse one filter of many.
func (c *cursor) filter() ([]byte, *Error) {
	v, wrong := c.string("a topic filter")
	if wrong == nil && len(v) == 0 {
		wrong = c.fail(ruleFilterEmpty)
	}
	return v, wrong
}

// suback judges a SUBACK or UNSUBACK.
func (c *cursor) suback(kind Type) (seen, *Error) {
	props, wrong := c.identified(kind)
	if wrong != nil || kind == TypeUnsuback && c.version != V5 {
		return 0, wrong
	}
	if len(c.b) == 0 {
		return 0, c.fail(ruleNoCodes)
	}
	for _, code := range c.b {
		switch {
		case kind == TypeUnsuback && !unsubackCode(Code(code)):
			return 0, c.fail(ruleUnsubackCode)
		case kind == TypeSuback && !subackCode(c.version, Code(code)):
			return 0, c.fail(ruleSubackCode)
		}
	}
	c.b = nil
	return props, nil
}

// identified takes a packet identifier and, in version 5.0, the properties of kind.
func (c *cursor) identified(kind Type) (seen, *Error) {
	if wrong := c.identifier(); wrong != nil || c.version != V5 {
		return 0, wrong
	}
	return c.properties(kind)
}

func (c *cursor) disconnect() (seen, *Error) {
	if c.version != V5 || len(c.b) == 0 {
		return 0, nil // 0x00, normal disconnection
	}
	code, _ := c.byte()
	if !disconnectCode(c.sender, Code(code)) {
		return 0, c.fail(ruleDisconnectCode)
	}
	if len(c.b) == 0 {
		return 0, nil // "if the remaining length is less than 2, a value of 0 is used" for the property length
	}
	return c.properties(TypeDisconnect)
}

func (c *cursor) auth() (seen, *Error) {
	if len(c.b) == 0 { // short for 0x00 without properties
		if !authCode(c.sender, Success) {
			return 0, c.fail(ruleAuthCode)
		}
		return 0, nil
	}
	code, _ := c.byte()
	if !authCode(c.sender, Code(code)) {
		return 0, c.fail(ruleAuthCode)
	}
	props, wrong := c.properties(TypeAuth)
	if wrong == nil && !props.has(propAuthenticationMethod) {
		wrong = c.fail(ruleAuthMethod)
	}
	return props, wrong
}
