package wire

import "fmt"

// The protocol versions, as CONNECT's protocol level says them.
const (
	V311 byte = 4
	V5   byte = 5
)

// Type is a control packet type (MQTT 5.0 §2.1.2).
type Type byte

// The control packet types.
const (
	TypeConnect Type = iota + 1
	TypeConnack
	TypePublish
	TypePuback
	TypePubrec
	TypePubrel
	TypePubcomp
	TypeSubscribe
	TypeSuback
	TypeUnsubscribe
	TypeUnsuback
	TypePingreq
	TypePingresp
	TypeDisconnect
	TypeAuth
)

// Code is a version 5.0 reason code (MQTT 5.0 §2.4). For version 3.1.1 the
// encoder of a Connack or Suback maps it to a return code.
type Code byte

// The reason codes that the hub sends or understands.
const (
	Success                     Code = 0x00 // also: normal disconnection, granted QoS 0
	DisconnectWithWill          Code = 0x04
	NoMatchingSubscribers       Code = 0x10
	NoSubscriptionExisted       Code = 0x11
	UnspecifiedError            Code = 0x80
	MalformedPacket             Code = 0x81
	ProtocolError               Code = 0x82
	ImplementationSpecificError Code = 0x83
	UnsupportedProtocolVersion  Code = 0x84
	ClientIdentifierNotValid    Code = 0x85
	BadUserNameOrPassword       Code = 0x86
	NotAuthorized               Code = 0x87
	ServerUnavailable           Code = 0x88
	ServerBusy                  Code = 0x89
	Banned                      Code = 0x8A
	ServerShuttingDown          Code = 0x8B
	BadAuthenticationMethod     Code = 0x8C
	KeepAliveTimeout            Code = 0x8D
	SessionTakenOver            Code = 0x8E
	TopicFilterInvalid          Code = 0x8F
	TopicNameInvalid            Code = 0x90
	PacketIdentifierInUse       Code = 0x91
	PacketIdentifierNotFound    Code = 0x92
	ReceiveMaximumExceeded      Code = 0x93
	TopicAliasInvalid           Code = 0x94
	PacketTooLarge              Code = 0x95
	MessageRateTooHigh          Code = 0x96
	QuotaExceeded               Code = 0x97
	AdministrativeAction        Code = 0x98
	PayloadFormatInvalid        Code = 0x99
	RetainNotSupported          Code = 0x9A
	QoSNotSupported             Code = 0x9B
	UseAnotherServer            Code = 0x9C
	SharedNotSupported          Code = 0x9E
	ConnectionRateExceeded      Code = 0x9F
)

// Error is what a peer did wrong: its packet breaks the specification. The
// connection ends with Code (version 5.0) or without a word (3.1.1).
type Error struct {
	Code   Code
	Clause string // such as "MQTT-3.8.3-2"; "" where the specification has no number
	Detail string // in words, never with payload
}

// Error returns the detail with its clause.
func (e *Error) Error() string {
	if e.Clause == "" {
		return e.Detail
	}
	return fmt.Sprintf("%s [%s]", e.Detail, e.Clause)
}

// Packet is one control packet: a pointer to one of the structs below.
type Packet interface {
	// Type says which packet it is.
	Type() Type
}

// User is one user property; order and repetition are kept [MQTT-3.1.3-10].
type User struct{ Key, Value string }

// Connect is a CONNECT. Absent properties are zero but where a field says otherwise.
type Connect struct {
	ProtocolName string
	Version      byte // protocol level: decoded whatever it is, so that a CONNACK can answer 0x84
	CleanStart   bool // "clean session" in 3.1.1
	KeepAlive    uint16
	ClientID     string
	Will         *Will // nil: none
	HasUsername  bool
	HasPassword  bool
	Username     string
	Password     []byte

	SessionExpiry     uint32 // seconds; 0xFFFFFFFF: never
	ReceiveMaximum    uint16 // 0: not given, 65,535 [MQTT-3.1.2-11]
	MaximumPacketSize uint32 // 0: not given, no limit
	TopicAliasMaximum uint16
	RequestResponse   bool // request response information
	NoProblemInfo     bool // request problem information was 0: reason strings and user properties only on PUBLISH, CONNACK, DISCONNECT [MQTT-3.1.2-29]
	AuthMethod        string
	AuthData          []byte
	User              []User
}

// Will is the will of a CONNECT. Message holds its topic, payload, QoS, retain
// and message properties (expiry, content type and so on).
type Will struct {
	Message Publish
	Delay   uint32 // seconds
}

// Connack is a CONNACK. Zero properties are not sent, pointers when not nil.
type Connack struct {
	SessionPresent bool
	Code           Code // Success or an error; 3.1.1 gets the nearest return code

	SessionExpiry     *uint32
	ReceiveMaximum    uint16
	MaximumQoS        *byte
	NoRetain          bool // retain available = 0
	MaximumPacketSize uint32
	AssignedClientID  string
	TopicAliasMaximum uint16
	Reason            string
	NoWildcard        bool
	NoSubscriptionIDs bool
	NoShared          bool
	ServerKeepAlive   *uint16
	ResponseInfo      string
	ServerReference   string
	AuthMethod        string
	AuthData          []byte
	User              []User
}

// Publish is a PUBLISH, in either direction.
type Publish struct {
	Topic   string // "" if only TopicAlias names it
	Payload []byte
	ID      uint16 // packet identifier; 0 for QoS 0
	QoS     byte
	Retain  bool
	Dup     bool
	Alias   uint16             // topic alias; 0: none
	SubIDs  []int              // subscription identifiers; server to client only
	Expiry  *uint32            // message expiry interval in seconds; nil: none
	Props   *MessageProperties // nil: none
}

// MessageProperties are the properties of a message that travel with it unchanged.
type MessageProperties struct {
	Format        byte // payload format indicator: 1 means UTF-8
	ContentType   string
	ResponseTopic string
	Correlation   []byte
	User          []User
}

// Ack is a PUBACK, PUBREC, PUBREL or PUBCOMP, as Kind says.
type Ack struct {
	Kind   Type
	ID     uint16
	Code   Code
	Reason string
	User   []User
}

// Subscription is one filter of a SUBSCRIBE.
type Subscription struct {
	Filter            string
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte
}

// Subscribe is a SUBSCRIBE.
type Subscribe struct {
	ID      uint16
	Filters []Subscription
	SubID   int // subscription identifier; 0: none
	User    []User
}

// Unsubscribe is an UNSUBSCRIBE.
type Unsubscribe struct {
	ID      uint16
	Filters []string
	User    []User
}

// Suback is a SUBACK or, as Kind says, an UNSUBACK (whose codes 3.1.1 omits).
type Suback struct {
	Kind   Type
	ID     uint16
	Codes  []Code // granted QoS, or an error; 3.1.1 gets 0x80 for every error
	Reason string
	User   []User
}

// Ping is a PINGREQ or PINGRESP, as Kind says.
type Ping struct{ Kind Type }

// Disconnect is a DISCONNECT.
type Disconnect struct {
	Code            Code
	SessionExpiry   *uint32 // seconds; nil: as the CONNECT said
	Reason          string
	ServerReference string
	User            []User
}

// Auth is an AUTH.
type Auth struct {
	Code   Code
	Method string
	Data   []byte
	Reason string
	User   []User
}

// Type implements Packet.
func (*Connect) Type() Type { return TypeConnect }

// Type implements Packet.
func (*Connack) Type() Type { return TypeConnack }

// Type implements Packet.
func (*Publish) Type() Type { return TypePublish }

// Type implements Packet.
func (a *Ack) Type() Type { return a.Kind }

// Type implements Packet.
func (*Subscribe) Type() Type { return TypeSubscribe }

// Type implements Packet.
func (*Unsubscribe) Type() Type { return TypeUnsubscribe }

// Type implements Packet.
func (s *Suback) Type() Type { return s.Kind }

// Type implements Packet.
func (p *Ping) Type() Type { return p.Kind }

// Type implements Packet.
func (*Disconnect) Type() Type { return TypeDisconnect }

// Type implements Packet.
func (*Auth) Type() Type { return TypeAuth }
