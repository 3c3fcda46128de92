package capture

import (
	"bytes"
	"fmt"
	"strings"
)

// finish returns the connection explained, without its addresses; nil if there is no TLS
// in it, and none was to be expected.
func (c *conversation) finish(tlsPort bool) *Connection {
	for end := range c.halves {
		if h := &c.halves[end]; !h.dead && len(h.buf)+len(h.message) > 0 {
			c.fail("the capture, or the connection, ends in the middle of a record of the %s", sideOf(end, c.client))
		}
	}
	records := c.halves[0].records + c.halves[1].records
	if records == 0 && !tlsPort {
		return nil
	}
	p := c.infer()
	conn := &Connection{Problem: c.problem}
	c.describe(conn)
	c.judge(conn, p)
	c.account(conn, p)
	c.steps(conn)
	return conn
}

// describe fills in what was offered and chosen.
func (c *conversation) describe(conn *Connection) {
	if c.hello != nil {
		conn.ServerName = c.hello.serverName
	}
	if c.server != nil {
		conn.Version, conn.CipherSuite, conn.Protocol = versionName(c.version), suiteName(c.server.suite), c.server.protocol
		if c.server.group != 0 {
			conn.Group = groupName(c.server.group)
		}
	}
	if shown := c.certificates[c.client]; shown != nil && shown.id.ID != "" {
		conn.Device = text(shown.id.String())
	}
	if c.closedAs != "" {
		conn.ClosedBy, conn.ClosedAs = sideOf(c.closer, c.client), c.closedAs
	}
	if !c.synAt.IsZero() && c.synAckAt.After(c.synAt) {
		conn.TCPRoundTrip = c.synAckAt.Sub(c.synAt)
	}
}

// judge decides how the connection went.
func (c *conversation) judge(conn *Connection, p progress) {
	client, server := &c.halves[c.client], &c.halves[1-c.client]
	switch {
	case p.alert != noEvent && c.hello != nil:
		e := c.events[p.alert]
		conn.Outcome = Refused
		conn.Alert = strings.TrimPrefix(strings.TrimPrefix(e.name, "Alert "), "Alert, ")
		with := "with the alert " + conn.Alert
		if likely, ok := strings.CutPrefix(conn.Alert, "probably "); ok {
			with = "probably with the alert " + likely
		}
		conn.Verdict = fmt.Sprintf("The %s refused the handshake, %s: %s.", sideOf(e.end, c.client), with, e.note)
	case p.done && c.resumed:
		conn.Outcome = Resumed
		with := " an earlier session, by its number"
		if size := c.ticketSize(); size != "" {
			with = " with a ticket" + size
		}
		conn.Verdict = "Resumed" + with + ": no certificate crossed the line." + c.advice()
	case p.done:
		conn.Outcome = Full
		conn.Verdict = "A full handshake, with certificates." + c.advice()
	case c.hello == nil && client.foreign != nil:
		conn.Outcome = NotTLS
		conn.Verdict = "The client doesn't speak TLS to this port, but " + guess(client.foreign) + "."
	case c.hello == nil && (client.mid || server.mid):
		conn.Outcome = Midstream
		conn.Verdict = "The capture began after the handshake: record from before the device connects."
	case c.refusedTCP:
		conn.Outcome = Unreachable
		conn.Verdict = "Nothing listens on this port: the hub is not running, or on another address."
	case !c.synAt.IsZero() && c.synAckAt.IsZero() && server.bytes == 0:
		conn.Outcome = Unreachable
		conn.Verdict = "Nobody answered the SYN: a firewall, a wrong address, or no route."
	case c.problem != "":
		conn.Outcome = Unreadable
		conn.Verdict = "How it went can't be told: " + c.problem + "."
	case c.hello == nil:
		conn.Outcome = Closed
		conn.Verdict = "Nobody said anything."
	case server.foreign != nil:
		conn.Outcome = NotTLS
		conn.Verdict = "The server doesn't answer in TLS, but with " + guess(server.foreign) + "."
	case c.closedAs != "":
		conn.Outcome = Closed
		conn.Verdict = c.hungUp()
	default:
		conn.Outcome = Unfinished
		conn.Verdict = "The capture ends before the handshake does" + c.silence() + "."
	}
}

// hungUp explains an end without an alert.
func (c *conversation) hungUp() string {
	after := fmt.Sprintf("%.1f s", c.closedAt.Sub(c.begin).Seconds())
	if c.closer == c.client {
		return fmt.Sprintf("The client hung up (%s) after %s, in the middle of the handshake: it ran into its own timeout, or was stopped%s.", c.closedAs, after, c.silence())
	}
	if c.server == nil {
		return fmt.Sprintf("The server hung up (%s) after %s without an answer to the ClientHello: a hub does so when too many connect at once, come back later; or something in between cuts TLS.", c.closedAs, after)
	}
	return fmt.Sprintf("The server hung up (%s) after %s, in the middle of the handshake and without an alert: the client was too slow for the handshake's deadline, or something in between cuts TLS.", c.closedAs, after)
}

// silence says whose turn it was.
func (c *conversation) silence() string {
	for i := len(c.events) - 1; i >= 0; i-- {
		e := c.events[i]
		if e.kind == kindTCP {
			continue
		}
		waiting := sideOf(1-e.end, c.client)
		if waiting == Client && c.server != nil {
			return "; the client was to go on: if it didn't get the server's large packets, look at the MTU of the link"
		}
		return fmt.Sprintf("; the %s was to answer", waiting)
	}
	return ""
}

// ticketSize is the size of the ticket that was offered.
func (c *conversation) ticketSize() string {
	switch {
	case c.hello == nil:
		return ""
	case len(c.hello.identities) > 0:
		return fmt.Sprintf(" of %d bytes", c.hello.identities[0])
	case c.hello.ticket > 0:
		return fmt.Sprintf(" of %d bytes", c.hello.ticket)
	}
	return ""
}

// advice says what made a good handshake dearer than it need be.
func (c *conversation) advice() string {
	s := ""
	if c.hello != nil && !c.resumed && c.hello.offersTicket() {
		s += " The client offered a ticket" + c.ticketSize() + " that the server didn't take: it is too old, of keys that were dropped, or of a certificate that was replaced."
	}
	switch {
	case c.resumed:
	case c.notAsked:
		s += " The server asked for no client certificate, which a hub always does: is this a hub?"
	case c.showsNoCertificate():
		s += " The client showed no certificate, and the server let it in: is this a hub?"
	}
	if c.retried {
		s += " The HelloRetryRequest cost a round trip: the client's first key share should be of the curve that the server prefers"
		if c.server != nil && c.server.group != 0 {
			s += ", " + groupName(c.server.group)
		}
		s += "."
	}
	return s
}

// account adds up bytes, times and round trips.
func (c *conversation) account(conn *Connection, p progress) {
	conn.TCPData = Traffic{Up: c.halves[c.client].bytes, Down: c.halves[1-c.client].bytes}
	handshaking := conn.Outcome != NotTLS && conn.Outcome != Midstream && conn.Outcome != Unreachable
	first, last := noEvent, noEvent
	for i, e := range c.events {
		if e.kind == kindTCP || !handshaking {
			continue
		}
		if first == noEvent && e.message == clientHelloType && e.kind == kindMessage {
			first = i
		}
		if i > p.end && e.name != "NewSessionTicket" || isApplicationData(e) {
			continue
		}
		conn.HandshakeData.add(sideOf(e.end, c.client), e.bytes)
		if i > p.end || first == noEvent {
			continue
		}
		if e.end != c.client && last != noEvent && c.events[last].end == c.client {
			conn.RoundTrips++
		}
		last = i
	}
	if first != noEvent && last != noEvent {
		conn.Duration = max(0, c.events[last].at.Sub(c.events[first].at))
	}
}

// guess says what the first bytes of a stream probably are.
func guess(b []byte) string {
	switch {
	case len(b) > 1 && b[0] == 0x10 && bytes.Contains(b, []byte("MQ")):
		return "plain MQTT: switch TLS on in its MQTT library"
	case bytes.HasPrefix(b, []byte("HTTP/")):
		return "plain HTTP"
	case bytes.HasPrefix(b, []byte("GET ")), bytes.HasPrefix(b, []byte("POST ")), bytes.HasPrefix(b, []byte("PUT ")), bytes.HasPrefix(b, []byte("HEAD ")), bytes.HasPrefix(b, []byte("CONNECT ")):
		return "plain HTTP: dial https://"
	case bytes.HasPrefix(b, []byte("SSH-")):
		return "SSH"
	case len(b) > 4 && b[0]&0x80 != 0 && b[2] == 1:
		return "SSL 2, of before 1996"
	case bytes.HasPrefix(b, []byte("PROXY ")), bytes.HasPrefix(b, []byte("\r\n\r\n\x00\r\nQUIT\n")):
		return "the PROXY protocol of a load balancer: switch it off there"
	}
	return fmt.Sprintf("something that begins with the bytes % x", b)
}

// steps turns the events into steps, with runs of application data as one.
func (c *conversation) steps(conn *Connection) {
	conn.Steps = []Step{}
	run := 0
	left := c.left[0]+c.left[1] > 0
	for i, e := range c.events {
		if left && i == maxEvents*3/4 {
			for end, n := range c.left {
				if n > 0 {
					conn.Steps = append(conn.Steps, Step{Offset: e.at.Sub(c.begin), From: sideOf(end, c.client), Bytes: c.leftB[end],
						Name: "…", Note: fmt.Sprintf("%d further records, not shown one by one", n)})
				}
			}
			run = 0
		}
		side := sideOf(e.end, c.client)
		if n := len(conn.Steps) - 1; isApplicationData(e) && run > 0 && conn.Steps[n].From == side {
			run++
			conn.Steps[n].Bytes += e.bytes
			conn.Steps[n].Name = fmt.Sprintf("application data, %d records", run)
			continue
		}
		run = 0
		if isApplicationData(e) {
			run = 1
		}
		conn.Steps = append(conn.Steps, Step{Offset: e.at.Sub(c.begin), From: side, Bytes: e.bytes, Name: e.name, Note: e.note,
			Inferred: e.inferred, Fields: e.fields})
	}
}
