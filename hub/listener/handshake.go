package listener

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

// maxChain bounds the certificates that a peer may present: its own, its issuer, the
// root, and one to spare. The hub uses the first.
const maxChain = 4

// handshake ends its goroutine, and with it a stack that has grown to some
// 30 KiB, before the connection's long life begins.
func (l *Listener) handshake(c *Conn, accepted time.Time) {
	err := l.measured(c, accepted)
	l.handshaking.Add(-1)
	if err == nil || overload(err) || l.isClosed() {
		l.addresses.giveBack(c.address, time.Now())
	}
	if err != nil {
		reason, id, detail := explain(err, c)
		l.refused(c.RemoteAddr(), reason, id, detail)
		l.tell(c, err, reason, id, detail)
		switch {
		case overload(err):
			c.Cut() // RST: nothing to wait for, nothing kept, and no alert that says something else
		case c.judged:
			c.linger()
		}
		l.finish(c)
		return
	}
	l.config.Observer.OnHandshake(c.Peer.Resumed, time.Since(accepted))
	l.handle(c)
}

// shake performs the handshake and contains a panic in it, whatever the peer sent.
func (l *Listener) shake(c *Conn, accepted time.Time) (err error) {
	t := &turn{lanes: &l.lanes, raw: c.raw, done: c.done, budget: maxHandshake, deadline: accepted.Add(time.Duration(l.wait.Load()))}
	defer func() {
		if r := recover(); r != nil {
			l.config.Log.Error("panic in a TLS handshake", "remote", c.RemoteAddr(), "panic", r, "stack", string(debug.Stack()))
			err = errPanic
		}
		t.leave()
		c.raw.turn = nil
	}()
	deadline := accepted.Add(l.config.HandshakeTimeout)
	if err := c.bound(deadline, accepted); err != nil {
		return err
	}
	hello := c.buffer()
	defer c.release(hello)
	if err := l.admit(c, t, hello); err != nil {
		return err
	}
	if t.waited { // The wait was ours. The peer has the whole time for its part.
		now := time.Now()
		deadline = now.Add(l.config.HandshakeTimeout)
		if err := c.bound(deadline, now); err != nil {
			return err
		}
	}
	t.deadline = deadline
	c.raw.turn = t
	if err := c.tls.Handshake(); err != nil {
		if t.err != nil {
			return t.err
		}
		return err
	}
	if c.Peer.Resumed && len(t.identity) >= 8 {
		c.ticket = binary.BigEndian.Uint64(t.identity)
	}
	if !c.Peer.Resumed && c.Peer.Issuer != nil {
		l.charge(c, time.Now())
	}
	c.shakenAt = c.raw.down.Load()
	c.shaken.Store(true) // each write has a deadline of its own from now on
	return c.await(time.Now().Add(l.config.ConnectTimeout), deadline)
}

// charge counts a full handshake, which is complete, to whom it was with.
func (l *Listener) charge(c *Conn, now time.Time) {
	issuer, d := string(c.Peer.Issuer.SubjectKeyId), device(0)
	if c.Peer.Identity.Role == identity.RoleDevice && c.Peer.Certificate != nil {
		d = l.devices.of(c.Peer.Certificate)
		l.devices.charge(d, now)
	}
	l.issuers.charge(issuer, now)
	l.addresses.note(c.address, issuer, d, now)
}

// admit reads the ClientHello, before crypto/tls has spent anything on it, and waits
// in the lane that it belongs to. Which one is decided by opening the ticket, a
// symmetric operation; what merely looks like one is nobody's pass. One that opens and
// still isn't resumed with (another version or suite) meets lateSigner.
func (l *Listener) admit(c *Conn, t *turn, buffer *[]byte) error {
	read, message, err := readHello(c.raw.receive, *buffer)
	*buffer = read
	if err != nil {
		return err
	}
	t.unread = read
	t.budget -= len(read)
	if message != nil && !l.tls.SessionTicketsDisabled {
		if t.identity, err = ticketOf(message); err == nil && t.identity != nil {
			if t.session, err = l.unwrap(t.identity, tls.ConnectionState{}); err != nil {
				t.session = nil
			}
		}
	}
	if t.session == nil {
		issuer, d := l.addresses.aloneAt(c.address)
		switch {
		case d != 0 && l.devices.spent(d, time.Now()):
			return errDeviceLimit
		case issuer != "" && l.issuers.spent(issuer, time.Now()):
			return errIssuerLimit
		}
	}
	return t.begin()
}

// unwrap opens a ticket.
func (l *Listener) unwrap(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	if l.tls.UnwrapSession != nil {
		return l.tls.UnwrapSession(identity, cs)
	}
	return l.tls.DecryptTicket(identity, cs)
}

// wrap makes a ticket.
func (l *Listener) wrap(cs tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
	if l.tls.WrapSession != nil {
		return l.tls.WrapSession(cs, session)
	}
	return l.tls.EncryptTicket(cs, session)
}

// configFor returns a configuration whose callbacks know the connection that they
// are about. Ticket keys still come from the shared one.
func (l *Listener) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c := hello.Conn.(*rawConn).conn
	config := l.tls.Clone()
	config.GetConfigForClient = nil
	policy := l.policy.Load()
	config.CipherSuites, config.CurvePreferences = policy.suites, policy.curves
	config.VerifyConnection = func(cs tls.ConnectionState) error { return l.verify(c, cs) }
	var by *tls.SessionState // the session last opened: the one that is resumed, if any is
	config.UnwrapSession = func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		session, ok := c.raw.turn.unwrapped(identity)
		var err error
		if !ok {
			session, err = l.unwrap(identity, cs)
		}
		if session != nil {
			by = session
		}
		return session, err
	}
	config.WrapSession = func(cs tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		if cs.DidResume && by != nil {
			session.Extra = append(session.Extra, by.Extra...) // what one session hands down to the next
		}
		return l.wrap(cs, session)
	}
	t := c.raw.turn
	if t == nil || !t.ticketed {
		return config, nil
	}
	if own := l.tls.GetCertificate; own != nil {
		config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := own(hello)
			if err != nil || cert == nil {
				return cert, err
			}
			return c.raw.turn.late(cert), nil
		}
	}
	if len(config.Certificates) > 0 {
		config.Certificates = nil
		for i := range l.tls.Certificates {
			config.Certificates = append(config.Certificates, *t.late(&l.tls.Certificates[i]))
		}
	}
	return config, nil
}

// verify judges the peer, inside the handshake.
func (l *Listener) verify(c *Conn, cs tls.ConnectionState) (err error) {
	c.judged = true
	if len(cs.PeerCertificates) > 0 {
		leaf := cs.PeerCertificates[0]
		c.claimed = leaf.Subject.CommonName
		if n := len(cs.PeerCertificates); n > maxChain {
			return &mtls.Refusal{Reason: ReasonChainTooLong, Detail: fmt.Sprintf("the client presented %d certificates, its own and %d for its issuers are enough", n, maxChain-1)}
		}
		if !cs.DidResume {
			if err := l.exhausted(leaf, time.Now()); err != nil {
				// The alert that crypto/tls sends for any error here would tell a good
				// device that its certificate is bad, so it must not arrive.
				c.Cut()
				c.raw.turn.err = err
				return err
			}
		}
	}
	c.Peer, err = l.config.Verify(cs)
	return err
}

// exhausted is an error if no more full handshakes are served to the device of a
// certificate, or to its issuer's devices, for a while.
func (l *Listener) exhausted(leaf *x509.Certificate, now time.Time) error {
	switch {
	case l.devices.spent(l.devices.of(leaf), now):
		return errDeviceLimit
	case l.issuers.spent(string(leaf.AuthorityKeyId), now):
		return errIssuerLimit
	}
	return nil
}
