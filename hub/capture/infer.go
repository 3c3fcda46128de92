package capture

import (
	"crypto/tls"
)

// What an encrypted TLS 1.3 record shows is its size: the content, one byte for its type,
// and the tag (RFC 8446 §5.2).
const (
	overhead      = 1 + 16
	sealedAlert   = 2 + overhead
	emptySealed   = 4 + 1 + 3 + overhead // a Certificate message without a certificate
	leastTicket   = 60                   // a NewSessionTicket is larger; an answer to MQTT CONNECT is smaller
	mostOfFlight  = 8                    // records of a flight that are looked at
	noEvent       = -1
	finishedBytes = 4
)

// sealedFinished is the size of a Finished record, which is the hash's of the suite.
func sealedFinished(suite uint16) int {
	if suite == tls.TLS_AES_256_GCM_SHA384 {
		return finishedBytes + 48 + overhead
	}
	return finishedBytes + 32 + overhead
}

// progress is how far a handshake came: indexes of events.
type progress struct {
	finished [2]int // each end's Finished
	end      int    // the last event that counts; noEvent if none does
	alert    int    // the alert that ended it, in the clear or inferred
	done     bool
	tickets  int // NewSessionTickets seen
}

// infer names the encrypted records and finds how far the handshake came.
func (c *conversation) infer() progress {
	p := progress{finished: [2]int{noEvent, noEvent}, end: noEvent, alert: noEvent}
	if c.version == tls.VersionTLS13 {
		c.infer13(&p)
	} else {
		c.infer12(&p)
	}
	p.done = p.finished[0] != noEvent && p.finished[1] != noEvent
	for i := range c.events {
		e := &c.events[i]
		if e.kind == kindAlert {
			e.note = c.meaning(e)
			if e.fatal && p.alert == noEvent {
				p.alert = i
			}
		}
	}
	switch {
	case p.alert != noEvent:
		p.end = p.alert
	case p.done:
		p.end = max(p.finished[0], p.finished[1])
	default:
		p.end = len(c.events) - 1
	}
	return p
}

// infer12 names the encrypted records of TLS 1.2 and older, which at least say their type:
// after ChangeCipherSpec comes Finished (RFC 5246 §7.3).
func (c *conversation) infer12(p *progress) {
	for i := range c.events {
		e := &c.events[i]
		both := p.finished[0] != noEvent && p.finished[1] != noEvent
		switch e.kind {
		case kindMessage:
			if e.message == newSessionTicket {
				p.tickets++
			}
		case kindSecret:
			e.inferred = true
			if p.finished[e.end] == noEvent {
				p.finished[e.end] = i
				e.name = "Finished"
			} else {
				e.note = "a renegotiation, which a hub doesn't do"
			}
		case kindSecretEnd:
			e.inferred = true
			if both || c.halves[e.end].mid {
				e.name, e.note = "Alert, probably close_notify (0)", "a normal end"
			} else if p.alert == noEvent && c.problem == "" {
				p.alert = i
				e.name, e.note = "Alert, encrypted", "probably a refusal; the log of the "+string(sideOf(e.end, c.client))+" names it"
			}
		}
	}
}

// infer13 names the encrypted records of TLS 1.3 by order and size (RFC 8446 §2).
func (c *conversation) infer13(p *progress) {
	var server, client []int // encrypted records of each, in order
	for i, e := range c.events {
		if e.kind != kindData {
			continue
		}
		c.events[i].inferred = true
		if e.end == c.client {
			client = append(client, i)
		} else {
			server = append(server, i)
		}
	}
	if c.hello != nil && c.hello.early {
		client = c.earlyData(client, server)
	}
	// The server's flight is over before the client's begins.
	n := len(server)
	if len(client) > 0 {
		for n = 0; n < len(server) && server[n] < client[0]; {
			n++
		}
	}
	c.serverFlight(server[:n], len(client) > 0, p)
	rest := c.clientFlight(client, p)
	c.closingAlerts(server, client, p)
	c.tickets(server, p)
	if len(rest) > 0 && isApplicationData(c.events[rest[0]]) {
		c.events[rest[0]].note = "MQTT CONNECT, if this is MQTT"
	}
}

// isApplicationData reports whether a record is taken for application data.
func isApplicationData(e event) bool { return e.kind == kindData && e.name == "application data" }

// earlyData names 0-RTT data, which comes before the server's Finished, and returns the
// client's other records.
func (c *conversation) earlyData(client, server []int) []int {
	for len(client) > 0 && len(server) > 0 && client[0] < server[len(server)-1] {
		if c.events[client[0]].payload == sealedFinished(c.server.suite) {
			break
		}
		c.events[client[0]].note = "0-RTT"
		client = client[1:]
	}
	return client
}

func (c *conversation) serverFlight(flight []int, answered bool, p *progress) {
	size := sealedFinished(c.server.suite)
	last := noEvent
	for i := range min(len(flight), mostOfFlight) {
		if c.events[flight[i]].payload == size {
			last = i
		}
	}
	if last == noEvent {
		// Some libraries pack their flight into few records.
		if len(flight) > 0 && c.events[flight[0]].payload > size {
			c.events[flight[0]].name = "EncryptedExtensions to Finished, packed together"
			if answered {
				p.finished[1-c.client] = flight[0]
			}
		}
		return
	}
	p.finished[1-c.client] = flight[last]
	c.events[flight[last]].name = "Finished"
	var names []string
	switch {
	case last == 1 && c.resumed:
		names = []string{"EncryptedExtensions"}
	case last == 1:
		names = []string{"EncryptedExtensions to CertificateVerify, packed together"}
	case last == 2:
		names = []string{"EncryptedExtensions", "Certificate and CertificateVerify"}
	case last == 3:
		c.notAsked = true
		names = []string{"EncryptedExtensions", "Certificate", "CertificateVerify"}
	case last == 4:
		c.asked = true
		names = []string{"EncryptedExtensions", "CertificateRequest", "Certificate", "CertificateVerify"}
	}
	for i := range last {
		c.events[flight[i]].name = "part of the encrypted handshake"
		if i < len(names) {
			c.events[flight[i]].name = names[i]
		}
	}
}

// clientFlight names the client's answer and returns the records after it.
func (c *conversation) clientFlight(records []int, p *progress) []int {
	if p.finished[1-c.client] == noEvent {
		return nil // whatever it is, it is no answer to a Finished
	}
	size := sealedFinished(c.server.suite)
	for i := range min(len(records), 3) {
		if c.events[records[i]].payload != size {
			continue
		}
		p.finished[c.client] = records[i]
		c.events[records[i]].name = "Finished"
		switch {
		case i == 1 && c.events[records[0]].payload == emptySealed:
			c.events[records[0]].name, c.events[records[0]].note = "Certificate", "probably empty: the client has no certificate to show"
			c.certificates[c.client] = &chain{}
		case i == 1:
			c.events[records[0]].name = "Certificate and CertificateVerify"
		case i == 2:
			c.events[records[0]].name, c.events[records[1]].name = "Certificate", "CertificateVerify"
		}
		return records[i+1:]
	}
	if len(records) > 0 && c.events[records[0]].payload > size {
		p.finished[c.client] = records[0]
		c.events[records[0]].name = "Certificate to Finished, packed together"
		return records[1:]
	}
	return nil
}

// closingAlerts names the last record of each end, if it has the size of an alert and the
// connection was closed after it.
func (c *conversation) closingAlerts(server, client []int, p *progress) {
	both := p.finished[0] != noEvent && p.finished[1] != noEvent
	for _, records := range [][]int{client, server} {
		if len(records) == 0 || c.closedAs == "" {
			continue
		}
		i := records[len(records)-1]
		e := &c.events[i]
		if e.payload != sealedAlert {
			continue
		}
		if c.problem != "" { // what it answers may be missing
			e.name = "Alert, encrypted"
			continue
		}
		mine, theirs := p.finished[e.end], p.finished[1-e.end]
		switch {
		case e.end == c.client && mine == noEvent:
			// It answers the server's certificate.
			e.name = "Alert, probably bad_certificate (42) or unknown_ca (48)"
			e.alert, e.fatal = badCertificate, true
		case e.end != c.client && (mine == noEvent || theirs == noEvent || both && c.refusesClient(server, client, i, theirs)):
			e.name, e.alert, e.fatal = "Alert, probably bad_certificate (42)", badCertificate, true
			if c.showsNoCertificate() {
				e.name, e.alert = "Alert, probably certificate_required (116)", certificateRequired
			}
		default:
			e.name, e.note = "Alert, probably close_notify (0)", "a normal end"
			continue
		}
		e.note = c.meaning(e)
		if p.alert == noEvent || i < p.alert {
			p.alert = i
		}
	}
}

// refusesClient reports whether the server's alert, event i, is all that it said after the
// client's Finished, before the client ended the connection.
func (c *conversation) refusesClient(server, client []int, i, finished int) bool {
	if len(server) > 1 && server[len(server)-2] > finished {
		return false
	}
	// A client that said goodbye was not refused; one that only sent its CONNECT may have been.
	for _, j := range client {
		if j > finished && j < i && c.events[j].payload == sealedAlert {
			return false
		}
	}
	for j := range i {
		if e := c.events[j]; e.kind == kindTCP && e.end == c.client && (e.name == "TCP FIN" || e.name == "TCP RST") {
			return false
		}
	}
	return true
}

// tickets names the first records of the server after its Finished that are too large for
// an answer to MQTT CONNECT: a server sends its tickets before anything else.
func (c *conversation) tickets(server []int, p *progress) {
	first := 0
	for _, i := range server {
		e := &c.events[i]
		if finished := p.finished[1-c.client]; finished == noEvent || i <= finished {
			continue
		}
		if e.name != "application data" || e.payload < leastTicket || first != 0 && e.payload != first {
			return
		}
		first = e.payload
		e.name = "NewSessionTicket"
		p.tickets++
	}
}
