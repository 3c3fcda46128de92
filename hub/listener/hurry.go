package listener

import "time"

// hurry has every write that begins from now on wait for nobody, and what it writes leave
// together with what follows, the end of the stream at the latest. Not so where something
// that the peer sent was not read: such a stream is reset, and what has not left by then is
// lost. False: that is not to be had, or a write is under way that may wait, with a lock of
// crypto/tls's in hand: its answer to a key update of a peer that reads nothing.
func (r *rawConn) hurry() bool {
	unread, ok := unread(r.Conn)
	if !ok {
		return false
	}
	r.together.Store(unread == 0)
	r.hurried.Store(true) // before the look: a write that is not seen sees this
	if r.writers.Load() == 0 {
		return true
	}
	r.hurried.Store(false)
	return false
}

// SetWriteDeadline sets the deadline of writes that wait.
func (r *rawConn) SetWriteDeadline(t time.Time) error {
	if r.hurried.Load() {
		return nil
	}
	return r.Conn.SetWriteDeadline(t)
}
