package listener

import "time"

// Connected lifts the deadline for the CONNECT packet, for a handler that sets none of
// its own.
func (c *Conn) Connected() { c.SetReadDeadline(time.Time{}) }

// bound sets the deadlines of a handshake that may last until then.
func (c *Conn) bound(read, now time.Time) error {
	c.writeBy = now.Add(max(c.writeTimeout, read.Sub(now)))
	if err := c.raw.SetReadDeadline(read); err != nil {
		return err
	}
	return c.raw.SetWriteDeadline(c.writeBy)
}

// await bounds the wait for what a peer sends after its handshake. Nearly all send it at
// once, so the socket's deadline, the handshake's, stays until it turns out to be too
// early: a timer less is set in each connect.
func (c *Conn) await(until, socket time.Time) error {
	if until.Before(socket) {
		return c.SetReadDeadline(until)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readBy = until
	return nil
}

// putOff sets the deadline that is meant, if the socket's was another.
func (c *Conn) putOff() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	until := c.readBy
	c.readBy = time.Time{}
	return !c.closing && time.Now().Before(until) && c.tls.SetReadDeadline(until) == nil
}

// SetDeadline sets the read deadline: writes have their own.
func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline bounds the next reads; zero means no bound. It does nothing
// once the connection is closing.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return nil
	}
	c.readBy = time.Time{}
	return c.tls.SetReadDeadline(t)
}

// SetWriteDeadline does nothing: every write has a deadline already.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }
