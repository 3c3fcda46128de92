package wire

import "errors"

// ErrTooLarge says that a packet is larger than its receiver takes.
var ErrTooLarge = errors.New("encode packet: it is larger than the receiver's maximum packet size")

// AppendWithin is Append for a peer that takes packets of at most limit bytes,
// 0 meaning any. A reason string and user properties that would make a packet
// larger than that are left out [MQTT-3.2.2-19, -20; MQTT-3.4.2-2, -3 and
// their likes]; a packet that is too large without them, as a PUBLISH always
// is, ends in ErrTooLarge [MQTT-3.1.2-24].
func AppendWithin(dst []byte, p Packet, version byte, limit uint32) ([]byte, error) {
	out, err := Append(dst, p, version)
	if err != nil || limit == 0 || uint64(len(out)-len(dst)) <= uint64(limit) {
		return out, err
	}
	brief, ok := brief(p)
	if !ok {
		return dst, ErrTooLarge
	}
	out, err = Append(dst, brief, version)
	if err == nil && uint64(len(out)-len(dst)) > uint64(limit) {
		return dst, ErrTooLarge
	}
	return out, err
}

// brief returns p without its reason string and user properties; ok is false
// if p is of a kind whose properties all matter.
func brief(p Packet) (short Packet, ok bool) {
	switch p := p.(type) {
	case *Connack:
		q := *p
		q.Reason, q.User = "", nil
		return &q, true
	case *Ack:
		q := *p
		q.Reason, q.User = "", nil
		return &q, true
	case *Suback:
		q := *p
		q.Reason, q.User = "", nil
		return &q, true
	case *Disconnect:
		q := *p
		q.Reason, q.User = "", nil
		return &q, true
	case *Auth:
		q := *p
		q.Reason, q.User = "", nil
		return &q, true
	}
	return nil, false
}
