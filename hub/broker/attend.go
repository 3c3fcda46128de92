package broker

import (
	"errors"
	"net"
	"os"
	"time"

	"github.com/fleethub/fleethub/hub/wire"
)

// A connection's first moments are spent on the goroutine that greeted it, whose stack
// has grown: many a board connects, says what it has to say, and is gone. One that stays
// is read on a small stack for the rest of its life.
const (
	firstMoments = time.Second
	maxAttended  = 256 // at a time, with some 32 KiB of stack each
)

// errLasting is that the first moments are over and the connection isn't.
var errLasting = errors.New("it goes on")

// attend takes packets in the connection's first moments. It returns errLasting, or why
// the connection ended.
func (c *client) attend() error {
	defer c.b.attended.Add(-1)
	if c.b.attended.Add(1) > maxAttended || c.keepAlive > 0 && c.keepAlive <= firstMoments {
		return errLasting
	}
	until := time.Now().Add(firstMoments)
	if err := c.conn.SetReadDeadline(until); err != nil {
		return err
	}
	for {
		pk, err := c.reader.Next()
		now := time.Now()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errLasting
		}
		if err := c.step(pk, err, now); err != nil {
			return err
		}
		if !now.Before(until) {
			return errLasting
		}
	}
}

// read takes packets until the connection ends; it returns why it did.
func (c *client) read() error {
	if c.keepAlive == 0 {
		c.conn.Connected()
	}
	now := time.Now()
	for {
		c.arm(now)
		pk, err := c.next()
		now = time.Now()
		if err := c.step(pk, err, now); err != nil {
			return err
		}
	}
}

// step acts on what was read. An error ends the connection, whose client has been told.
func (c *client) step(pk wire.Packet, err error, now time.Time) error {
	if err == nil && c.cut.Load() {
		err = net.ErrClosed // what lies in the buffer is not taken any more
	}
	if err == nil {
		err = c.take(pk, now)
	}
	if err != nil {
		c.complain(err)
	}
	return err
}

// grace is how long a client that was silent for too long is looked at once more.
const grace = 100 * time.Millisecond

// next returns the next packet. Where the deadline has passed, what lies in the socket
// still counts: perhaps it is us who were not there for a while.
func (c *client) next() (wire.Packet, error) {
	pk, err := c.reader.Next()
	if err == nil || c.keepAlive == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		return pk, err
	}
	c.armed = time.Time{}
	c.conn.SetReadDeadline(time.Now().Add(grace))
	return c.reader.Next()
}
