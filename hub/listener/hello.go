package listener

import (
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// maxHello bounds a ClientHello, its record headers included. One with a ticket is
// 300 octets, with a post-quantum key share 1,600.
const maxHello = 16 << 10

var (
	errNotTLS        = errors.New("the first bytes are no TLS record")
	errHelloTooLarge = fmt.Errorf("the ClientHello is larger than %d bytes", maxHello)
	errHello         = errors.New("malformed ClientHello")
)

const (
	recordHandshake    = 22 // RFC 8446 §5.1
	recordHeader       = 5
	messageClientHello = 1 // RFC 8446 §4
	messageHeader      = 4
	extensionTicket    = 35 // RFC 5077 §3.2
	extensionPSK       = 41 // RFC 8446 §4.2.11
)

// readHello reads until it has a whole ClientHello, in as many records as it comes,
// and returns all that it read, appended to buf, and the message in it. A malformed
// one is no error here, but a nil message: crypto/tls knows the alert for it.
func readHello(receive func([]byte) (int, error), buf []byte) (read, message []byte, err error) {
	for {
		message, whole, err := assemble(buf)
		if err != nil || whole {
			return buf, message, err
		}
		if len(buf) >= maxHello {
			return buf, nil, errHelloTooLarge
		}
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, min(2*cap(buf)+512, maxHello)), buf...)
		}
		n, err := receive(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n == 0 && err != nil {
			return buf, nil, err
		}
	}
}

// assemble returns the first handshake message in the records of b, or false if
// more has to be read. It returns no message but true for what can't become one.
func assemble(b []byte) (message []byte, whole bool, err error) {
	for records := 0; ; records++ {
		if len(b) > 0 && b[0] != recordHandshake {
			if records > 0 {
				return nil, true, nil
			}
			return nil, true, errNotTLS
		}
		if len(b) < recordHeader {
			return nil, false, nil
		}
		if b[1] != 3 { // major version, ever since SSL 3
			return nil, true, errNotTLS
		}
		size := int(b[3])<<8 | int(b[4])
		if size == 0 {
			return nil, true, nil
		}
		body := b[recordHeader:min(recordHeader+size, len(b))]
		if records == 0 {
			message = body[:len(body):len(body)] // mostly all; append copies
		} else {
			message = append(message, body...)
		}
		if len(message) > 0 && message[0] != messageClientHello {
			return nil, true, nil
		}
		if len(message) >= messageHeader {
			total := messageHeader + int(message[1])<<16 + int(message[2])<<8 + int(message[3])
			if total > maxHello {
				return nil, true, errHelloTooLarge
			}
			if len(message) >= total {
				return message[:total], true, nil
			}
		}
		if len(body) < size {
			return nil, false, nil
		}
		b = b[recordHeader+size:]
	}
}

// ticketOf returns the ticket that a ClientHello offers: the first identity of TLS 1.3,
// else the ticket of TLS 1.2, else nil. It is a claim, no more.
func ticketOf(message []byte) ([]byte, error) {
	var (
		hello             cryptobyte.String
		kind              uint8
		session, suites   cryptobyte.String
		compression, exts cryptobyte.String
		ticket, identity  cryptobyte.String
	)
	in := cryptobyte.String(message)
	if !in.ReadUint8(&kind) || kind != messageClientHello || !in.ReadUint24LengthPrefixed(&hello) || !in.Empty() ||
		!hello.Skip(2+32) || !hello.ReadUint8LengthPrefixed(&session) ||
		!hello.ReadUint16LengthPrefixed(&suites) || !hello.ReadUint8LengthPrefixed(&compression) {
		return nil, errHello
	}
	if hello.Empty() {
		return nil, nil
	}
	if !hello.ReadUint16LengthPrefixed(&exts) || !hello.Empty() {
		return nil, errHello
	}
	for !exts.Empty() {
		var id uint16
		var data, identities cryptobyte.String
		if !exts.ReadUint16(&id) || !exts.ReadUint16LengthPrefixed(&data) {
			return nil, errHello
		}
		switch id {
		case extensionTicket:
			ticket = data
		case extensionPSK:
			if !data.ReadUint16LengthPrefixed(&identities) || !identities.ReadUint16LengthPrefixed(&identity) {
				return nil, errHello
			}
		}
	}
	if len(identity) > 0 {
		return identity, nil
	}
	if len(ticket) > 0 {
		return ticket, nil
	}
	return nil, nil
}
