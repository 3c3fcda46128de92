package wire

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Append encodes p for a connection of the given version and appends it to
// dst. A CONNECT says its own version, and where it names none it is MQTT of
// that one. What Append writes a strict reader accepts: anything else is an
// error, and dst is returned unchanged with it.
//
// 3.1.1 can't say everything. A CONNACK whose code has no return code
// [MQTT-3.2.2-6] and a DISCONNECT with a code, which only a 5.0 server sends,
// append nothing: the connection is closed without a word. A PUBACK or PUBREC
// that refuses is an error, because in 3.1.1 it would say that the message was
// accepted.
func Append(dst []byte, p Packet, version byte) ([]byte, error) {
	if c, ok := p.(*Connect); version != V311 && version != V5 && (!ok || c.Version == 0) {
		return dst, fmt.Errorf("encode packet type %d: protocol version %d is not spoken here", p.Type(), version)
	}
	switch p := p.(type) {
	case *Publish:
		out, _, err := appendPublish(dst, p, version)
		return out, err
	case *Ack:
		return appendAck(dst, p, version)
	case *Ping:
		if p.Kind != TypePingreq && p.Kind != TypePingresp {
			return dst, fmt.Errorf("encode ping: packet type %d is none", p.Kind)
		}
		return append(dst, byte(p.Kind)<<4, 0), nil
	case *Connack:
		if _, ok := returnCode(p.Code); version == V311 && !ok {
			return dst, nil
		}
	case *Auth:
		if version == V5 && p.Code == Success && p.Method == "" && len(p.Data) == 0 && p.Reason == "" && len(p.User) == 0 {
			return append(dst, byte(TypeAuth)<<4, 0), nil // the codec has only the long form, which needs a method
		}
	case *Disconnect:
		if version == V311 {
			if p.Code != Success {
				return dst, nil
			}
			return append(dst, byte(TypeDisconnect)<<4, 0), nil
		}
	}
	return appendRare(dst, p, version)
}

// packed holds the codec's packets between uses, zeroed.
var packed = sync.Pool{New: func() any { return new(packets.Packet) }}

// appendRare encodes through the codec and judges what came out by the rules
// of the other side, which know everything that a field may not be.
func appendRare(dst []byte, p Packet, version byte) ([]byte, error) {
	if err := fits(p); err != nil {
		return dst, fmt.Errorf("encode packet type %d: %w", p.Type(), err)
	}
	pk := packed.Get().(*packets.Packet)
	defer func() {
		*pk = packets.Packet{}
		packed.Put(pk)
	}()
	fill(pk, p, version)
	out := bytes.NewBuffer(dst)
	if err := pack(pk, out); err != nil {
		return dst, fmt.Errorf("encode packet type %d: %w", p.Type(), err)
	}
	if pk.FixedHeader.Remaining > maxRemaining {
		return dst, fmt.Errorf("encode packet type %d: %w", p.Type(), errTooLong)
	}
	if wrong := judge(out.Bytes()[len(dst):], pk.FixedHeader.Remaining, version); wrong != nil {
		return dst, fmt.Errorf("encode packet type %d: %w", p.Type(), wrong)
	}
	return out.Bytes(), nil
}

// judge applies the rules to an encoded packet.
func judge(packet []byte, remaining int, version byte) error {
	f := frame{first: packet[0], body: packet[len(packet)-remaining:], version: version, sender: either}
	if broken := checkFirst(f.first, f.version, either); broken != ruleNone {
		return failed(broken, f.version, "")
	}
	if _, wrong := f.check(); wrong != nil {
		return wrong
	}
	return nil
}

var (
	errFieldTooLong = errors.New("a field is longer than the 65,535 bytes that its length can say")
	errTooLong      = errors.New("the packet is longer than the remaining length can say")
)

// fits reports whether the codec can say what a rare packet says. It would cut
// off the upper bits of a length, and leave out what it takes for absent.
func fits(p Packet) error {
	var all []int
	add := func(lengths ...int) { all = append(all, lengths...) }
	user := func(u []User) {
		for _, u := range u {
			add(len(u.Key), len(u.Value))
		}
	}
	switch p := p.(type) {
	case *Connect:
		add(len(p.ProtocolName), len(p.ClientID), len(p.Username), len(p.Password), len(p.AuthMethod), len(p.AuthData))
		user(p.User)
		if p.Will != nil {
			m := &p.Will.Message
			add(len(m.Topic), len(m.Payload))
			if m.Expiry != nil && *m.Expiry == 0 {
				return errors.New("the codec can't say that a will expires at once")
			}
			if m.Props != nil {
				if m.Props.Correlation != nil && len(m.Props.Correlation) == 0 {
					return errors.New("the codec can't say that correlation data is there and empty")
				}
				add(len(m.Props.ContentType), len(m.Props.ResponseTopic), len(m.Props.Correlation))
				user(m.Props.User)
			}
		}
	case *Connack:
		add(len(p.AssignedClientID), len(p.Reason), len(p.ResponseInfo), len(p.ServerReference), len(p.AuthMethod), len(p.AuthData))
		user(p.User)
	case *Ack:
		add(len(p.Reason))
		user(p.User)
	case *Subscribe:
		for _, s := range p.Filters {
			add(len(s.Filter))
		}
		user(p.User)
	case *Unsubscribe:
		for _, f := range p.Filters {
			add(len(f))
		}
		user(p.User)
	case *Suback:
		add(len(p.Reason))
		user(p.User)
	case *Disconnect:
		add(len(p.Reason), len(p.ServerReference))
		user(p.User)
	case *Auth:
		add(len(p.Method), len(p.Data), len(p.Reason))
		user(p.User)
	}
	for _, n := range all {
		if n > math.MaxUint16 {
			return errFieldTooLong
		}
	}
	return nil
}

// pack has the codec encode pk. A panic of the codec is an error like any other.
func pack(pk *packets.Packet, out *bytes.Buffer) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = errors.New("the codec gave up")
		}
	}()
	switch Type(pk.FixedHeader.Type) {
	case TypeConnect:
		return pk.ConnectEncode(out)
	case TypeConnack:
		return pk.ConnackEncode(out)
	case TypePuback:
		return pk.PubackEncode(out)
	case TypePubrec:
		return pk.PubrecEncode(out)
	case TypePubrel:
		return pk.PubrelEncode(out)
	case TypePubcomp:
		return pk.PubcompEncode(out)
	case TypeSubscribe:
		return pk.SubscribeEncode(out)
	case TypeSuback:
		return pk.SubackEncode(out)
	case TypeUnsubscribe:
		return pk.UnsubscribeEncode(out)
	case TypeUnsuback:
		return pk.UnsubackEncode(out)
	case TypeDisconnect:
		return pk.DisconnectEncode(out)
	case TypeAuth:
		return pk.AuthEncode(out)
	}
	return errors.New("there is no such packet type")
}

// appendAck encodes a PUBACK, PUBREC, PUBREL or PUBCOMP. The short forms, which
// are nearly all, are written here; they equal the codec's.
func appendAck(dst []byte, p *Ack, version byte) ([]byte, error) {
	first := byte(p.Kind) << 4
	switch p.Kind {
	case TypePubrel:
		first |= 2
	case TypePuback, TypePubrec, TypePubcomp:
	default:
		return dst, fmt.Errorf("encode acknowledgement: packet type %d is none", p.Kind)
	}
	switch {
	case p.ID == 0:
		return dst, errors.New("encode acknowledgement: " + statements[ruleIdentifierZero].detail)
	case version == V311 && p.Code >= UnspecifiedError && (p.Kind == TypePuback || p.Kind == TypePubrec):
		return dst, errors.New("encode acknowledgement: 3.1.1 can't refuse a message, close the connection instead")
	case version == V311, p.Code == Success && p.Reason == "" && len(p.User) == 0:
		return append(dst, first, 2, byte(p.ID>>8), byte(p.ID)), nil
	case !ackCode(p.Kind, either, p.Code):
		return dst, errors.New("encode acknowledgement: " + statements[ackCodeRule(p.Kind)].detail)
	case p.Reason == "" && len(p.User) == 0:
		return append(dst, first, 3, byte(p.ID>>8), byte(p.ID), byte(p.Code)), nil
	}
	return appendRare(dst, p, version)
}
