package listener

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
)

// helloOf returns the records of the ClientHello that crypto/tls sends.
func helloOf(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	done := make(chan struct{})
	go func() { defer close(done); tls.Client(theirs, config).Handshake() }()
	records, _, err := readHello(ours.Read, nil)
	must(t, err)
	ours.Close()
	<-done
	return records
}

// fragmented has the message in records of n octets.
func fragmented(records []byte, n int) []byte {
	var out []byte
	for body := records[recordHeader:]; len(body) > 0; {
		part := body[:min(n, len(body))]
		body = body[len(part):]
		out = append(out, recordHandshake, 3, 1, byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestHelloIsReadInWhateverPieces(t *testing.T) {
	whole := helloOf(t, &tls.Config{ServerName: "hub.example", InsecureSkipVerify: true})
	for _, records := range [][]byte{whole, fragmented(whole, 1), fragmented(whole, 100)} {
		for name, r := range map[string]io.Reader{
			"at once":            bytes.NewReader(records),
			"octet by octet":     iotest.OneByteReader(bytes.NewReader(records)),
			"with more behind":   bytes.NewReader(append(records[:len(records):len(records)], "more"...)),
			"with its last read": iotest.DataErrReader(bytes.NewReader(records)),
		} {
			read, message, err := readHello(r.Read, nil)
			must(t, err)
			if !bytes.Equal(message, whole[recordHeader:]) || !bytes.HasPrefix(read, records) {
				t.Errorf("%s: %d octets of the message, %d of the records", name, len(message), len(read))
			}
		}
	}
}

func TestHelloThatIsNone(t *testing.T) {
	whole := helloOf(t, &tls.Config{InsecureSkipVerify: true})
	tests := []struct {
		name    string
		records []byte
		want    error
	}{
		{"nothing", nil, io.EOF},
		{"half of it", whole[:len(whole)/2], io.EOF},
		{"plain text", []byte("GET / HTTP/1.1\r\n\r\n"), errNotTLS},
		{"MQTT", []byte("\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"), errNotTLS},
		{"SSL 2", []byte{0x80, 0x2e, 1, 0, 2}, errNotTLS},
		{"record of version 4", []byte{22, 4, 0, 0, 1, 1}, errNotTLS},
		{"announced too large", []byte{22, 3, 1, 0, 4, 1, 0, 0x40, 0}, errHelloTooLarge},
		{"announced very large", []byte{22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff}, errHelloTooLarge},
		{"too much overhead", fragmented(append(make([]byte, recordHeader), append([]byte{1, 0, 0x30, 0}, make([]byte, 0x3000)...)...), 1), errHelloTooLarge},
		{"alert first", []byte{21, 3, 1, 0, 2, 1, 0}, errNotTLS},
		{"empty record", []byte{22, 3, 1, 0, 0}, nil},
		{"another message", []byte{22, 3, 1, 0, 4, 2, 0, 0, 0}, nil},
		{"alert within", append(fragmented(whole, 50)[:55], 21, 3, 1, 0, 2, 1, 0), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			read, message, err := readHello(bytes.NewReader(tt.records).Read, nil)
			if !errors.Is(err, tt.want) || message != nil || cap(read) > maxHello {
				t.Errorf("message %x, error %v; %d octets kept", message, err, cap(read))
			}
		})
	}
}

// TestTicketFoundIsTheOneThatTLSFinds, in both versions.
func TestTicketFoundIsTheOneThatTLSFinds(t *testing.T) {
	for _, version := range versions {
		var offered [][]byte
		h := start(t, echo, func(c *Config) {
			own := c.TLS
			c.TLS.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) { return own.EncryptTicket(cs, s) }
			c.TLS.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
				offered = append(offered, bytes.Clone(ticket))
				return nil, nil // so that crypto/tls asks too
			}
		})
		config := h.pki.Device("pi-1").ClientConfig()
		config.MaxVersion = version
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		for range 2 {
			conn, err := h.dial(config)
			must(t, err)
			roundTrip(t, conn)
			conn.Close()
		}
		h.Close()
		var real [][]byte
		for _, ticket := range offered {
			if len(ticket) > 0 { // TLS 1.2 asks about none, too
				real = append(real, ticket)
			}
		}
		if len(real) != 2 || !bytes.Equal(real[0], real[1]) {
			t.Errorf("%s: the tickets found were %x", tls.VersionName(version), real)
		}
	}
}

// FuzzHello holds the reader and the parser to their bounds.
func FuzzHello(f *testing.F) {
	whole := helloOf(f, &tls.Config{ServerName: "hub.example", InsecureSkipVerify: true})
	f.Add(whole)
	f.Add(fragmented(whole, 7))
	f.Add([]byte{22, 3, 1, 0, 4, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		read, message, err := readHello(bytes.NewReader(data).Read, nil)
		if cap(read) > maxHello {
			t.Errorf("%d octets are kept", cap(read))
		}
		if !bytes.HasPrefix(data, read) {
			t.Error("other octets are handed on than were read")
		}
		if err != nil || message == nil {
			return
		}
		if len(message) < messageHeader || message[0] != messageClientHello {
			t.Errorf("%x passes for a ClientHello", message)
		}
		if ticket, err := ticketOf(message); err == nil && ticket != nil && !bytes.Contains(message, ticket) {
			t.Error("a ticket was made up")
		}
	})
}

// FuzzFirstBytes has a live hub meet them: it refuses or goes on, and panics never.
func FuzzFirstBytes(f *testing.F) {
	pki := certtest.New(f)
	config := pki.Device("pi-1").ClientConfig()
	whole := helloOf(f, config)
	f.Add(whole)
	f.Add(fragmented(whole, 3))
	f.Add(append(whole[:len(whole):len(whole)], whole...))
	f.Add(append(whole[:len(whole):len(whole)], 20, 3, 3, 0, 1, 1))
	f.Add([]byte{22, 3, 1, 0, 4, 1, 0, 0, 0})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	h := start(f, func(*Conn) { f.Error("the handler was called") }, func(c *Config) {
		c.HandshakeTimeout = time.Second
		c.Limits.AddressRate = 1e9
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		raw, err := net.Dial("tcp", h.addr)
		must(t, err)
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(patience))
		raw.Write(data)
		raw.(*net.TCPConn).CloseWrite()
		ended(t, raw)
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, refusal := range h.refusals {
			if strings.HasPrefix(refusal, ReasonPanic) {
				t.Fatalf("%x: %s", data, h.log.String())
			}
		}
		h.refusals = h.refusals[:0]
	})
}
