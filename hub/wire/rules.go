package wire

// A rule is one thing that the specifications demand of a packet's form.
type rule byte

// The rules, in the order of the specification's sections.
const (
	ruleNone rule = iota // nothing is wrong
	ruleString
	ruleNUL
	ruleMinimalInteger
	ruleReservedType
	ruleReservedFlags
	rulePubrelFlags
	ruleSubscribeFlags
	ruleUnsubscribeFlags
	ruleDisconnectFlags
	ruleAuthFlags
	ruleIntegerLength
	ruleTooLarge
	ruleTooLargeFromServer
	ruleTruncated
	ruleTrailing
	ruleIdentifierZero
	rulePropertyLength
	rulePropertyForeign
	rulePropertyTwice
	rulePropertyBool
	rulePropertyZero
	ruleWrongDirection
	ruleConnectFirst
	ruleConnectOnce
	ruleProtocolName
	ruleConnectReserved
	ruleWillQoSWithoutWill
	ruleWillQoS
	ruleWillRetainWithoutWill
	rulePasswordWithoutUsername
	ruleAuthDataAlone
	ruleConnackFlags
	ruleConnackSessionPresent
	ruleConnackCode
	ruleDupWithoutQoS
	rulePublishQoS
	ruleTopicEmpty
	ruleTopicMissing
	ruleTopicWildcard
	ruleTopicAliasZero
	ruleResponseTopicWildcard
	ruleSubIDFromClient
	rulePubackCode
	rulePubrecCode
	rulePubrelCode
	rulePubcompCode
	ruleFilterEmpty
	ruleNoFilters
	ruleSubscribeQoS
	ruleSubscribeReserved
	ruleRetainHandling
	ruleNoLocalShared
	ruleSubackCode
	ruleNoCodes
	ruleNoUnsubscribeFilters
	ruleUnsubackCode
	ruleDisconnectCode
	ruleDisconnectExpiry
	ruleAuthCode
	ruleAuthMethod
	ruleTooMany
	ruleCount // how many rules there are
)

// statement is a rule's wording: what is answered to a 5.0 peer that breaks
// it, the clause in each version ("" where there is no number), and the words.
type statement struct {
	code     Code
	v311, v5 string
	detail   string
}

// statements has a line for every rule but ruleNone.
var statements = [ruleCount]statement{
	ruleString:                  {MalformedPacket, "MQTT-1.5.3-1", "MQTT-1.5.4-1", "is not well-formed UTF-8"},
	ruleNUL:                     {MalformedPacket, "MQTT-1.5.3-2", "MQTT-1.5.4-2", "contains U+0000"},
	ruleMinimalInteger:          {MalformedPacket, "", "MQTT-1.5.5-1", "a variable byte integer has more bytes than its value needs"},
	ruleReservedType:            {MalformedPacket, "", "", "the packet type is reserved"},
	ruleReservedFlags:           {MalformedPacket, "MQTT-2.2.2-2", "MQTT-2.1.3-1", "reserved flags of the fixed header are wrong"},
	rulePubrelFlags:             {MalformedPacket, "MQTT-3.6.1-1", "MQTT-3.6.1-1", "the flags of a PUBREL are not 0010"},
	ruleSubscribeFlags:          {MalformedPacket, "MQTT-3.8.1-1", "MQTT-3.8.1-1", "the flags of a SUBSCRIBE are not 0010"},
	ruleUnsubscribeFlags:        {MalformedPacket, "MQTT-3.10.1-1", "MQTT-3.10.1-1", "the flags of an UNSUBSCRIBE are not 0010"},
	ruleDisconnectFlags:         {MalformedPacket, "MQTT-3.14.1-1", "MQTT-3.14.1-1", "the flags of a DISCONNECT are not 0000"},
	ruleAuthFlags:               {MalformedPacket, "", "MQTT-3.15.1-1", "the flags of an AUTH are not 0000"},
	ruleIntegerLength:           {MalformedPacket, "", "", "a variable byte integer has more than four bytes"},
	ruleTooLarge:                {PacketTooLarge, "", "MQTT-3.2.2-15", "the packet announces more bytes than are accepted"},
	ruleTooLargeFromServer:      {PacketTooLarge, "", "MQTT-3.1.2-24", "the packet announces more bytes than are accepted"},
	ruleTruncated:               {MalformedPacket, "", "", "the packet ends in the middle of a field"},
	ruleTrailing:                {MalformedPacket, "", "", "bytes are left behind the packet's last field"},
	ruleIdentifierZero:          {ProtocolError, "MQTT-2.3.1-1", "MQTT-2.2.1-3", "the packet identifier is 0"},
	rulePropertyLength:          {MalformedPacket, "", "", "the property length reaches past the packet's end"},
	rulePropertyForeign:         {MalformedPacket, "", "", "is no property of this packet"},
	rulePropertyTwice:           {ProtocolError, "", "", "is there more than once"},
	rulePropertyBool:            {ProtocolError, "", "", "is neither 0 nor 1"},
	rulePropertyZero:            {ProtocolError, "", "", "is 0"},
	ruleWrongDirection:          {ProtocolError, "", "", "a packet of this type goes in the other direction"},
	ruleConnectFirst:            {ProtocolError, "MQTT-3.1.0-1", "MQTT-3.1.0-1", "the first packet is not a CONNECT"},
	ruleConnectOnce:             {ProtocolError, "MQTT-3.1.0-2", "MQTT-3.1.0-2", "a second CONNECT"},
	ruleProtocolName:            {UnsupportedProtocolVersion, "MQTT-3.1.2-1", "MQTT-3.1.2-1", "the protocol name is not MQTT"},
	ruleConnectReserved:         {MalformedPacket, "MQTT-3.1.2-3", "MQTT-3.1.2-3", "the reserved connect flag is set"},
	ruleWillQoSWithoutWill:      {MalformedPacket, "MQTT-3.1.2-13", "MQTT-3.1.2-11", "a will QoS without a will"},
	ruleWillQoS:                 {MalformedPacket, "MQTT-3.1.2-14", "MQTT-3.1.2-12", "the will QoS is 3"},
	ruleWillRetainWithoutWill:   {MalformedPacket, "MQTT-3.1.2-15", "MQTT-3.1.2-13", "will retain without a will"},
	rulePasswordWithoutUsername: {MalformedPacket, "MQTT-3.1.2-22", "", "a password without a user name"},
	ruleAuthDataAlone:           {ProtocolError, "", "", "authentication data without an authentication method"},
	ruleConnackFlags:            {MalformedPacket, "", "MQTT-3.2.2-1", "reserved connect acknowledge flags are set"},
	ruleConnackSessionPresent:   {ProtocolError, "MQTT-3.2.2-4", "MQTT-3.2.2-6", "a refusal says that a session is present"},
	ruleConnackCode:             {ProtocolError, "", "MQTT-3.2.2-8", "the reason code is none of a CONNACK"},
	ruleDupWithoutQoS:           {MalformedPacket, "MQTT-3.3.1-2", "MQTT-3.3.1-2", "DUP is set on a QoS 0 message"},
	rulePublishQoS:              {MalformedPacket, "MQTT-3.3.1-4", "MQTT-3.3.1-4", "the QoS is 3"},
	ruleTopicEmpty:              {MalformedPacket, "MQTT-4.7.3-1", "MQTT-4.7.3-1", "is empty"},
	ruleTopicMissing:            {ProtocolError, "", "", "neither a topic name nor a topic alias"},
	ruleTopicWildcard:           {MalformedPacket, "MQTT-3.3.2-2", "MQTT-3.3.2-2", "contains a wildcard"},
	ruleTopicAliasZero:          {TopicAliasInvalid, "", "MQTT-3.3.2-8", "is 0"},
	ruleResponseTopicWildcard:   {ProtocolError, "", "MQTT-3.3.2-14", "contains a wildcard"},
	ruleSubIDFromClient:         {ProtocolError, "", "MQTT-3.3.4-6", "comes from a client in a PUBLISH"},
	rulePubackCode:              {ProtocolError, "", "MQTT-3.4.2-1", "the reason code is none of a PUBACK"},
	rulePubrecCode:              {ProtocolError, "", "MQTT-3.5.2-1", "the reason code is none of a PUBREC"},
	rulePubrelCode:              {ProtocolError, "", "MQTT-3.6.2-1", "the reason code is none of a PUBREL"},
	rulePubcompCode:             {ProtocolError, "", "MQTT-3.7.2-1", "the reason code is none of a PUBCOMP"},
	ruleFilterEmpty:             {MalformedPacket, "MQTT-4.7.3-1", "MQTT-4.7.3-1", "a topic filter is empty"},
	ruleNoFilters:               {ProtocolError, "MQTT-3.8.3-3", "MQTT-3.8.3-2", "a SUBSCRIBE without a topic filter"},
	ruleSubscribeQoS:            {ProtocolError, "MQTT-3.8.3-4", "", "the QoS of a subscription is 3"},
	ruleSubscribeReserved:       {MalformedPacket, "MQTT-3.8.3-4", "MQTT-3.8.3-5", "reserved bits of a subscription's options are set"},
	ruleRetainHandling:          {ProtocolError, "", "", "the retain handling of a subscription is 3"},
	ruleNoLocalShared:           {ProtocolError, "", "MQTT-3.8.3-4", "no local on a shared subscription"},
	ruleSubackCode:              {ProtocolError, "MQTT-3.9.3-2", "MQTT-3.9.3-2", "a reason code is none of a SUBACK"},
	ruleNoCodes:                 {ProtocolError, "MQTT-3.8.4-5", "MQTT-3.8.4-6", "an acknowledgement without a reason code"},
	ruleNoUnsubscribeFilters:    {ProtocolError, "MQTT-3.10.3-2", "MQTT-3.10.3-2", "an UNSUBSCRIBE without a topic filter"},
	ruleUnsubackCode:            {ProtocolError, "", "MQTT-3.11.3-2", "a reason code is none of an UNSUBACK"},
	ruleDisconnectCode:          {ProtocolError, "", "MQTT-3.14.2-1", "the reason code is none of a DISCONNECT from there"},
	ruleDisconnectExpiry:        {ProtocolError, "", "MQTT-3.14.2-2", "is sent by a server in a DISCONNECT"},
	ruleAuthCode:                {ProtocolError, "", "MQTT-3.15.2-1", "the reason code is none of an AUTH from there"},
	ruleAuthMethod:              {ProtocolError, "", "", "an AUTH without an authentication method"},
	ruleTooMany:                 {QuotaExceeded, "", "", "more topic filters or user properties than the hub takes in one packet"},
}

// failed words the breach of a rule; about, if not empty, is the field it is about.
func failed(r rule, version byte, about string) *Error {
	s := &statements[r]
	e := &Error{Code: s.code, Clause: s.v5, Detail: s.detail}
	if version == V311 {
		e.Clause = s.v311
	}
	if about != "" {
		e.Detail = about + " " + e.Detail
	}
	return e
}
