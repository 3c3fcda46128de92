package wire

// maxRemaining is the largest remaining length, and the largest value of any
// variable byte integer (MQTT 5.0 §1.5.5).
const maxRemaining = 268_435_455

// frame is one packet as it came: its first byte and what is behind the fixed header.
type frame struct {
	body    []byte
	first   byte
	padded  bool // the remaining length was written with more bytes than it needs
	version byte // the connection's, 0 before CONNECT
	sender  direction
}

func (f *frame) kind() Type { return Type(f.first >> 4) }

// header reads the remaining length at the front of what has been read of a
// packet, whose first byte is judged already. What can't become a packet is
// refused before its body is waited for. n is the size of the fixed header and
// size that of the whole packet, 0 while not known.
func (r *Reader) header(b []byte) (n, size int, padded bool, wrong *Error) {
	if len(b) < 2 {
		return 0, 0, false, nil
	}
	remaining, n, state := int(b[1]), 1, varintWhole
	if remaining > 0x7F {
		remaining, n, state = varint(b[1:])
	}
	switch state {
	case varintPartial:
		return 0, 0, false, nil
	case varintTooLong:
		return 0, 0, false, failed(ruleIntegerLength, r.version, "")
	}
	size = 1 + n + remaining
	if size > r.limit {
		return 0, 0, false, failed(tooLarge(r.sender), r.version, "")
	}
	if padded = n > 1 && b[n] == 0; padded && r.version == V5 {
		return 0, 0, false, failed(ruleMinimalInteger, r.version, "")
	}
	return 1 + n, size, padded, nil
}

func tooLarge(sender direction) rule {
	if sender == fromServer {
		return ruleTooLargeFromServer
	}
	return ruleTooLarge
}

// checkFirst judges a packet's first byte: its type, whether it may come now
// and from there, and its flags.
func checkFirst(first, version byte, sender direction) rule {
	kind, flags := Type(first>>4), first&0x0F
	switch {
	case kind == 0, kind == TypeAuth && version == V311:
		return ruleReservedType
	case sender == fromClient && version == 0 && kind != TypeConnect:
		return ruleConnectFirst
	case sender == fromClient && version != 0 && kind == TypeConnect:
		return ruleConnectOnce
	case senders(kind, version)&sender == 0:
		return ruleWrongDirection
	}
	switch kind {
	case TypePublish:
		qos := flags >> 1 & 3
		if qos == 3 {
			return rulePublishQoS
		}
		if qos == 0 && flags&8 != 0 {
			return ruleDupWithoutQoS
		}
	case TypePubrel, TypeSubscribe, TypeUnsubscribe:
		if flags != 2 {
			return flagRule(kind)
		}
	default:
		if flags != 0 {
			return flagRule(kind)
		}
	}
	return ruleNone
}

// flagRule returns the rule for the flags of kind, which for some types has a
// number of its own.
func flagRule(kind Type) rule {
	switch kind {
	case TypePubrel:
		return rulePubrelFlags
	case TypeSubscribe:
		return ruleSubscribeFlags
	case TypeUnsubscribe:
		return ruleUnsubscribeFlags
	case TypeDisconnect:
		return ruleDisconnectFlags
	case TypeAuth:
		return ruleAuthFlags
	default:
		return ruleReservedFlags
	}
}

// senders says who sends packets of kind (MQTT 5.0 table 2-1).
func senders(kind Type, version byte) direction {
	switch kind {
	case TypeConnect, TypeSubscribe, TypeUnsubscribe, TypePingreq:
		return fromClient
	case TypeConnack, TypeSuback, TypeUnsuback, TypePingresp:
		return fromServer
	case TypeDisconnect:
		if version != V5 {
			return fromClient
		}
	}
	return either
}

type varintState byte

const (
	varintPartial varintState = iota
	varintWhole
	varintTooLong
)

// varint reads a variable byte integer of at most four bytes and says how many
// it took.
func varint(b []byte) (value, n int, state varintState) {
	for i, c := range b {
		value |= int(c&0x7F) << (7 * i)
		if c&0x80 == 0 {
			return value, i + 1, varintWhole
		}
		if i == 3 {
			return 0, 0, varintTooLong
		}
	}
	return 0, 0, varintPartial
}
