package broker

import (
	"container/heap"
	"sync"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/wire"
)

// deadlines has the times at which something of a session may be over, earliest first.
// What is due is asked of the session: one that was taken up again is passed over, and
// one whose time has moved comes again. Each is in it once at most, so a device that
// reconnects all day doesn't fill it.
type deadlines struct {
	mu sync.Mutex // guards queue and what is in it
	queue
}

// deadline is a session's place in the queue.
type deadline struct {
	at    time.Time
	s     *Session
	index int // in the queue
}

type queue []*deadline

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	d := x.(*deadline)
	d.index = len(*q)
	*q = append(*q, d)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return last
}

// add has a session looked at at that time, or earlier if it is anyway.
func (d *deadlines) add(at time.Time, s *Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case s.alarm == nil:
		s.alarm = &deadline{at: at, s: s}
		heap.Push(&d.queue, s.alarm)
	case at.Before(s.alarm.at):
		s.alarm.at = at
		heap.Fix(&d.queue, s.alarm.index)
	}
}

// remove forgets a session.
func (d *deadlines) remove(s *Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.alarm != nil {
		heap.Remove(&d.queue, s.alarm.index)
		s.alarm = nil
	}
}

func (d *deadlines) len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.queue)
}

// due takes out one session whose time has come, nil if there is none.
func (d *deadlines) due(now time.Time) *Session {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) == 0 || d.queue[0].at.After(now) {
		return nil
	}
	s := heap.Pop(&d.queue).(*deadline).s
	s.alarm = nil
	return s
}

// sweep ends sessions whose time is over, with everything of them, and publishes
// wills whose delay is. Time is the process's own, which no clock change moves.
func (b *Broker) sweep() {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	forget := b.config.Now()
	looked := forget
	for {
		select {
		case <-b.context.Done():
			return
		case <-tick.C:
		}
		now := b.config.Now()
		for s := b.deadlines.due(now); s != nil; s = b.deadlines.due(now) {
			b.judgeTime(s, now)
		}
		if now.Sub(looked) >= b.config.ExpirySweep {
			looked = now
			b.cutExpired(now)
			b.tellDue(now)
		}
		if now.Sub(forget) >= retainedSweep {
			forget = now
			b.rates.sweep(time.Now())
			b.forgetExpired(now)
		}
		b.system.tick(b, now)
	}
}

// retainedSweep is how often retained messages are looked through for expired ones,
// which nobody gets in any case.
const retainedSweep = time.Minute

// cutExpired cuts the connections whose certificate is no longer valid. They may leave
// their wills: nobody has cut them off.
func (b *Broker) cutExpired(now time.Time) {
	for _, c := range b.live.Where(ofPeer(func(p mtls.Peer) bool { return p.Certificate != nil && now.After(p.Certificate.NotAfter) })) {
		c.Disconnect(protocol.ReasonExpired)
	}
}

// seconds is a number of them, as the specification has times.
func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

// judgeTime does what is due for a session without connection.
func (b *Broker) judgeTime(s *Session, now time.Time) {
	s.mu.Lock()
	var last *wire.Will
	if s.client == nil && !s.gone {
		ends := !now.Before(s.left.Add(s.expiry))
		if !s.willDue.IsZero() && (ends || !now.Before(s.willDue)) {
			last = s.will
			b.dropWill(s)
		}
		switch {
		case ends:
			b.end(s)
		case !s.willDue.IsZero():
			b.deadlines.add(s.willDue, s)
		default:
			b.deadlines.add(s.left.Add(s.expiry), s)
		}
	}
	s.mu.Unlock()
	b.publishWill(s, last)
}
