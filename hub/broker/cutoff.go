package broker

import (
	"context"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/session"
)

// Closed is what became of one identity's connections.
type Closed struct {
	ID         string
	Sessions   int       // connections closed
	Open       int       // connections that were not when ctx ended
	At         time.Time // when the last of them was closed; zero if there was none
	LastPacket time.Time // when the last packet of any of them was taken; zero if unknown
}

// Disconnect cuts every connection of a device, within a second, and returns
// how many there were and when the last of them was closed. A device that is
// revoked also loses its session with everything queued for it. Neither way is
// its will published. It satisfies fleet.Sessions; reason is one of the Reason
// constants of package protocol. The caller has marked the device first.
func (b *Broker) Disconnect(ctx context.Context, id, reason string) (closed int, last time.Time) {
	result := b.DisconnectMany(ctx, []string{id}, reason)
	return result[0].Sessions, result[0].At
}

// DisconnectMany is Disconnect for many devices at once. 1. Of none of them anything more
// is taken, nor is anything sent to them: at once, however many they are. 2. Their sockets
// are closed, no faster than the others' latency bears; if ctx ends, without further
// pauses. 3. Meanwhile, whose connections are gone loses what is stored of him. So a peer
// that is slow to go delays no other's end.
func (b *Broker) DisconnectMany(ctx context.Context, ids []string, reason string) []Closed {
	result := make([]Closed, len(ids))
	conns := make([][]session.Live, len(ids))
	var all []session.Conn
	for i, id := range ids {
		result[i].ID = id
		conns[i] = b.live.Live(identity.RoleDevice, id)
		for _, l := range conns[i] {
			all = append(all, l.Conn)
		}
	}
	told := cutOff(ctx, all, reason)
	if len(all) > 0 {
		b.through(ctx)
	}
	// A reader may wait for a disk: a second for all of them, once all are told.
	readers, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		<-told
		pause(readers, time.Second)
		cancel()
	}()
	for i, id := range ids {
		for _, l := range conns[i] {
			select {
			case <-l.Conn.Done():
				result[i].Sessions++
			case <-ctx.Done():
				result[i].Open++
			}
			if c, ok := l.Conn.(*client); ok {
				select { // what its reader still takes comes before what is removed below
				case <-c.gone:
				case <-readers.Done():
				}
				result[i].At = later(result[i].At, c.conn.ClosedAt())
				result[i].LastPacket = later(result[i].LastPacket, c.lastPacket())
			}
		}
		key := sessionKey(identity.RoleDevice, id)
		if endsDevice(reason) {
			b.purge(key)
			b.forgetRetained(id)
		} else {
			b.cancelWill(key)
		}
	}
	<-told
	return result
}

// through waits, as long as ctx lasts, until every message that was being entered is: of
// those who were condemned before, none follows. Otherwise one that waits for a stalled
// disk would be accepted when the receipt has long said that nothing is.
func (b *Broker) through(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		b.gate.Lock()
		defer b.gate.Unlock()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// cutOff condemns all of them at once, and closes their sockets; what it returns is closed
// when all are told. If they are few, they are when it returns.
func cutOff(ctx context.Context, conns []session.Conn, reason string) (told <-chan struct{}) {
	for _, conn := range conns {
		if c, ok := conn.(*client); ok {
			c.condemn(reason)
		}
	}
	done := make(chan struct{})
	tell := func() {
		disconnectPaced(ctx, conns, reason)
		close(done)
	}
	if len(conns) <= closedAtOnce {
		tell()
	} else {
		go tell()
	}
	return done
}

// How fast sockets are closed where there are many. Each costs some 100 µs of processor
// time, here and at whoever is told of it; as fast as can be, ten thousand would keep all
// others waiting for half a second.
const (
	closedAtOnce   = 100 // without a pause, if they are no more
	closedPerTurn  = 4
	closedASecond  = 3800
	closedWithin   = 10 * time.Second // all of them, if they are more than that rate closes
	closedTogether = 8                // while the hub makes up for a moment in which it was held up
	closedBreath   = 100 * time.Microsecond
	closedLate     = 100 * time.Millisecond // so far behind, it makes up without a breath: the rate is a promise
)

// disconnectPaced tells all of them, with pauses, and without if ctx has ended. One after
// the other: what has to be done for others meanwhile waits for a few of them at most.
func disconnectPaced(ctx context.Context, conns []session.Conn, reason string) {
	each := min(time.Second/closedASecond, closedWithin/time.Duration(max(1, len(conns))))
	began, together := time.Now(), 0
	for i, conn := range conns {
		if len(conns) > closedAtOnce && i%closedPerTurn == 0 {
			wait := time.Until(began.Add(time.Duration(i) * each))
			if together >= closedTogether && wait > -closedLate {
				wait = max(wait, closedBreath)
			}
			if wait > 0 {
				pause(ctx, wait)
				together = 0
			}
		}
		together++
		if c, ok := conn.(*client); ok {
			c.disconnectHere(reason)
		} else {
			conn.Disconnect(reason)
		}
	}
}

// pause waits, or until ctx has ended.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// later returns the later of two times.
func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// endsDevice reports whether a device that is cut off for that reason never comes back.
func endsDevice(reason string) bool {
	return reason == protocol.ReasonRevoked || reason == protocol.ReasonRetired || reason == protocol.ReasonReplaced
}
