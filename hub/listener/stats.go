package listener

import "time"

// Stats are figures of the handshakes. What became of each is Config.Observer's to
// count.
type Stats struct {
	Open        int // connections
	Handshaking int // of them, those that are not yet verified
	Computing   int // of them, those that use the processor

	// Waiting for their first turn, and for another with work begun.
	WaitingResumed, WaitingFull, WaitingBegun int
	// Waiting for their peers' answer, and not for too long yet.
	AwaitedResumed, AwaitedFull int

	// Admitted so far, and how long they had waited all together.
	AdmittedResumed, AdmittedFull uint64
	WaitedResumed, WaitedFull     time.Duration

	Unlogged uint64 // refusals that the log was spared
}

// Stats returns the figures of this moment.
func (l *Listener) Stats() Stats {
	s := Stats{Open: l.Open(), Handshaking: int(l.handshaking.Load()), Unlogged: l.refusals.suppressed()}
	l.lanes.mu.Lock()
	defer l.lanes.mu.Unlock()
	s.Computing = l.lanes.rights - l.lanes.free
	s.WaitingResumed, s.WaitingFull, s.WaitingBegun = l.lanes.queues[laneResumed].Len(), l.lanes.queues[laneFull].Len(), l.lanes.queues[laneBegun].Len()
	s.AwaitedResumed, s.AwaitedFull = l.lanes.awaited[laneResumed].Len(), l.lanes.awaited[laneFull].Len()
	s.AdmittedResumed, s.AdmittedFull = l.lanes.admitted[laneResumed], l.lanes.admitted[laneFull]
	s.WaitedResumed, s.WaitedFull = l.lanes.waited[laneResumed], l.lanes.waited[laneFull]
	return s
}
