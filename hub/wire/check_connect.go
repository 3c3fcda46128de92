package wire

import "github.com/mochi-mqtt/server/v2/packets"

// The properties that judging or decoding asks for by name.
const (
	propMessageExpiry        = packets.PropMessageExpiryInterval
	propSessionExpiry        = packets.PropSessionExpiryInterval
	propAuthenticationMethod = packets.PropAuthenticationMethod
	propAuthenticationData   = packets.PropAuthenticationData
	propTopicAlias           = packets.PropTopicAlias
)

// The bits of the connect flags.
const (
	flagReserved     = 0x01
	flagCleanStart   = 0x02
	flagWill         = 0x04
	flagWillQoS      = 0x18
	flagWillQoSShift = 3
	flagWillRetain   = 0x20
	flagPassword     = 0x40
	flagUsername     = 0x80
)

// connect judges a CONNECT. From the protocol level on it goes by the version
// that the CONNECT itself announces; of one that is not spoken here nothing
// more can be judged, and it is for the caller to refuse it.
func (c *cursor) connect(padded bool) (facts, *Error) {
	name, ok := c.binary()
	if !ok {
		return facts{}, c.fail(ruleTruncated)
	}
	level, ok := c.byte()
	if !ok {
		return facts{}, c.fail(ruleTruncated)
	}
	switch {
	case string(name) == "MQIsdp" && level&0x7F == 3: // MQTT 3.1, and its bridges
		return facts{level: level}, nil
	case string(name) != "MQTT":
		return facts{}, c.fail(ruleProtocolName)
	case level != V311 && level != V5:
		return facts{level: level}, nil
	}
	c.version = level
	if padded && level == V5 {
		return facts{level: level}, c.fail(ruleMinimalInteger)
	}
	x, wrong := c.connectBody()
	x.level = level
	return x, wrong
}

// connectBody judges a CONNECT from its flags on.
func (c *cursor) connectBody() (x facts, wrong *Error) {
	flags, ok := c.byte()
	if !ok {
		return x, c.fail(ruleTruncated)
	}
	if wrong := c.connectFlags(flags); wrong != nil {
		return x, wrong
	}
	if _, ok := c.uint16(); !ok { // keep alive
		return x, c.fail(ruleTruncated)
	}
	if c.version == V5 {
		if x.props, wrong = c.properties(TypeConnect); wrong != nil {
			return x, wrong
		}
		if x.props.has(propAuthenticationData) && !x.props.has(propAuthenticationMethod) {
			return x, c.fail(ruleAuthDataAlone)
		}
	}
	if _, wrong := c.string("the client identifier"); wrong != nil {
		return x, wrong
	}
	if flags&flagWill != 0 {
		if x.willProps, wrong = c.will(); wrong != nil {
			return x, wrong
		}
	}
	if flags&flagUsername != 0 {
		if _, wrong := c.string("the user name"); wrong != nil {
			return x, wrong
		}
	}
	if flags&flagPassword != 0 {
		if _, ok := c.binary(); !ok {
			return x, c.fail(ruleTruncated)
		}
	}
	if len(c.b) > 0 {
		return x, c.fail(ruleTrailing)
	}
	return x, nil
}

func (c *cursor) connectFlags(flags byte) *Error {
	qos := flags & flagWillQoS >> flagWillQoSShift
	switch {
	case flags&flagReserved != 0:
		return c.fail(ruleConnectReserved)
	case flags&flagWill == 0 && qos != 0:
		return c.fail(ruleWillQoSWithoutWill)
	case qos == 3:
		return c.fail(ruleWillQoS)
	case flags&flagWill == 0 && flags&flagWillRetain != 0:
		return c.fail(ruleWillRetainWithoutWill)
	case c.version == V311 && flags&flagUsername == 0 && flags&flagPassword != 0:
		return c.fail(rulePasswordWithoutUsername)
	}
	return nil
}

// will judges the will properties, the will topic and the will payload.
func (c *cursor) will() (props seen, wrong *Error) {
	if c.version == V5 {
		if props, wrong = c.properties(will); wrong != nil {
			return 0, wrong
		}
	}
	if wrong := c.topic("the will topic", ruleTopicWildcard); wrong != nil {
		return 0, wrong
	}
	if _, ok := c.binary(); !ok {
		return 0, c.fail(ruleTruncated)
	}
	return props, nil
}

// connack judges a CONNACK.
func (c *cursor) connack() (seen, *Error) {
	flags, ok := c.byte()
	if !ok {
		return 0, c.fail(ruleTruncated)
	}
	code, ok := c.byte()
	if !ok {
		return 0, c.fail(ruleTruncated)
	}
	switch {
	case flags&^1 != 0:
		return 0, c.fail(ruleConnackFlags)
	case c.version == V5 && !connackCode(Code(code)), c.version != V5 && code > lastReturnCode:
		return 0, c.fail(ruleConnackCode)
	case flags != 0 && code != 0:
		return 0, c.fail(ruleConnackSessionPresent)
	case c.version != V5:
		return 0, nil
	}
	props, wrong := c.properties(TypeConnack)
	if wrong == nil && props.has(propAuthenticationData) && !props.has(propAuthenticationMethod) {
		wrong = c.fail(ruleAuthDataAlone)
	}
	return props, wrong
}
