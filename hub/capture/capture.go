// Package capture explains TLS handshakes that somebody recorded with tcpdump, tshark or
// Wireshark: who offered what, what was chosen, what was refused and what that probably
// means on a Fleethub fleet.
//
// It reads pcap and pcapng files (gzip too), puts the TCP streams together, and reads
// what TLS shows in the clear. What TLS 1.3 hides is told from the order and the sizes of
// the records, and marked as inferred. Nothing is decrypted and no key is asked for.
//
// The bytes are anybody's. Every length is checked, memory is bounded whatever a file
// says (see the limits below), and what is wrong with one connection stays with it, as its
// Problem.
package capture

import (
	"fmt"
	"net/netip"
	"time"
)

// The limits. What is beyond them is left out and said, never silently.
const (
	maxFile        = 512 << 20 // bytes of a capture, unpacked
	maxPacket      = 16 << 20  // bytes of one packet or block of the file
	maxConnections = 20_000    // TCP connections followed
	maxPages       = 64        // of 1.9 kB, that one connection may hold while it waits for a missing segment
	maxTotalPages  = 16_384    // and all connections together
	maxRecord      = 16_384 + 2_048
	maxMessage     = 128 << 10 // bytes of one handshake message; crypto/tls takes 64 KiB, 256 KiB for certificates
	maxEvents      = 192       // kept for one connection; the middle of a longer one is counted only
	maxItems       = 64        // of one list in one message, such as cipher suites, that are named
	maxText        = 200       // bytes of one name from the wire
)

// Side is an end of a connection.
type Side string

// The two ends. The client is who sent the ClientHello, or else the SYN.
const (
	Client Side = "client"
	Server Side = "server"
)

// Outcome is how a connection went, in a word.
type Outcome string

// The outcomes. Only Full and Resumed are connections that worked.
const (
	Full        Outcome = "full"        // a complete handshake, with certificates
	Resumed     Outcome = "resumed"     // a complete handshake, with a session ticket
	Refused     Outcome = "refused"     // an alert ended the handshake
	Closed      Outcome = "closed"      // a side hung up in the middle of the handshake, without an alert
	Unfinished  Outcome = "unfinished"  // the capture ends before the handshake does
	Unreadable  Outcome = "unreadable"  // the handshake is malformed, or packets of it are missing
	Midstream   Outcome = "midstream"   // the capture began after the handshake
	NotTLS      Outcome = "not-tls"     // something else was spoken to a TLS port
	Unreachable Outcome = "unreachable" // TCP got no connection to a TLS port
)

// Traffic is a number of bytes each way.
type Traffic struct {
	Up   int `json:"up"`   // client to server
	Down int `json:"down"` // server to client
}

func (t *Traffic) add(from Side, n int) {
	if from == Client {
		t.Up += n
	} else {
		t.Down += n
	}
}

// Capture is what a file holds.
type Capture struct {
	File        string        `json:"file"`
	Packets     int           `json:"packets"`
	Begin       time.Time     `json:"begin"` // of the first packet; zero without packets
	End         time.Time     `json:"end"`
	Connections []*Connection `json:"connections"` // those with TLS, and failed attempts at TLS ports, in order of time
	OtherTCP    int           `json:"other_tcp"`   // TCP connections without TLS
	Notes       []string      `json:"notes"`       // what the reader should know about the file
}

// Connection is one TCP connection with TLS in it.
type Connection struct {
	Number  int       `json:"number"` // from 1, in order of time
	Client  string    `json:"client"` // address and port
	Server  string    `json:"server"`
	Begin   time.Time `json:"begin"` // of its first packet
	Outcome Outcome   `json:"outcome"`
	Verdict string    `json:"verdict"` // one sentence or two: how it went, and what to do

	ServerName  string `json:"server_name,omitempty"` // SNI
	Version     string `json:"version,omitempty"`     // chosen by the server; empty before it chose
	CipherSuite string `json:"cipher_suite,omitempty"`
	Group       string `json:"group,omitempty"`
	Protocol    string `json:"protocol,omitempty"` // ALPN, where it is in the clear
	Device      string `json:"device,omitempty"`   // the client's identity, where its certificate is in the clear
	Alert       string `json:"alert,omitempty"`    // the alert that ended the handshake, "probably" and all

	TCPRoundTrip  time.Duration `json:"tcp_round_trip_ns"` // SYN to SYN/ACK, as seen where the capture was made
	Duration      time.Duration `json:"handshake_ns"`      // ClientHello to the last message that mattered
	RoundTrips    int           `json:"round_trips"`       // of TLS alone
	HandshakeData Traffic       `json:"handshake_bytes"`   // TLS records of the handshake, tickets included
	TCPData       Traffic       `json:"tcp_bytes"`         // all payload
	WireData      Traffic       `json:"wire_bytes"`        // with IP and TCP headers, acknowledgements and retransmissions

	ClosedBy Side   `json:"closed_by,omitempty"`
	ClosedAs string `json:"closed_as,omitempty"` // FIN or RST
	Problem  string `json:"problem,omitempty"`   // why a part of it can't be told
	Steps    []Step `json:"steps"`
}

// Step is one thing that happened.
type Step struct {
	Offset   time.Duration `json:"offset_ns"` // since the connection's first packet
	From     Side          `json:"from"`
	Bytes    int           `json:"bytes"` // on the TCP stream, record headers included; 0 for TCP's own
	Name     string        `json:"name"`
	Note     string        `json:"note,omitempty"`
	Inferred bool          `json:"inferred,omitempty"` // encrypted: the name is a conclusion from sizes and order
	Fields   []Field       `json:"fields,omitempty"`
}

// Field is one property of a message, with what it says in order.
type Field struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
}

// tlsPorts are where a hub listens. A connection to them that has no TLS is a finding.
func isTLSPort(port uint16) bool { return port == 8883 || port == 8443 }

// sideOf returns the side of an end of a connection, given which end the client is.
func sideOf(end, client int) Side {
	if end == client {
		return Client
	}
	return Server
}

// field returns a Field, its values bounded in number.
func field(name string, values ...string) Field {
	if extra := len(values) - maxItems; extra > 0 {
		values = append(values[:maxItems:maxItems], fmt.Sprintf("and %d more", extra))
	}
	return Field{Name: name, Values: values}
}

// address prints an endpoint, IPv4-mapped ones as IPv4.
func address(a netip.AddrPort) string {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
}
