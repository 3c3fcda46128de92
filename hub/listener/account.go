package listener

import (
	"crypto/tls"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// Handshake is a completed handshake and what it cost the hub and the line.
type Handshake struct {
	Peer    mtls.Peer
	Resumed bool
	Took    time.Duration // from accept to its end, its wait in a lane included

	// CPU is the processor time of the handshake's own thread, 0 if it was not
	// measured: one in cpuSample is. It leaves out what the kernel does in interrupts.
	CPU time.Duration

	// BytesUp and BytesDown are what the socket carried: TLS records and no TCP. What
	// the peer sent right behind its last message, its CONNECT, may be counted in.
	BytesUp, BytesDown int64

	Version uint16      // such as tls.VersionTLS13
	Suite   uint16      // such as tls.TLS_AES_128_GCM_SHA256
	Curve   tls.CurveID // of the key agreement

	// Ticket tells the ticket that was resumed by from others: its first octets, which
	// are as good as random. 0 if there was none. Since the handshake is complete, the peer
	// has the ticket's secret, too: who merely overheard it would not have come so far.
	Ticket uint64
}

// HandshakeObserver is what an Observer may be, too. It is called as an Observer is.
type HandshakeObserver interface {
	// OnHandshakeDone reports a completed handshake, before its connection is handled.
	OnHandshakeDone(Handshake)
}

// cpuSample is of how many handshakes the processor time of one is measured. Measuring
// ties a goroutine to its thread, and each of the handshake's waits for the peer then
// costs switches of threads: some 100 µs in all, a microsecond or two per handshake.
const cpuSample = 64

// cpuSampler decides whose processor time is measured. Never two at a time, so that a
// storm of slow handshakes ties up one thread. The zero value is ready for use.
type cpuSampler struct {
	seen atomic.Uint64
	busy atomic.Bool
}

// start begins a measurement, perhaps. Call the function that it returns on the same
// goroutine; it returns 0 if nothing was measured.
func (s *cpuSampler) start() (stop func() time.Duration) {
	if s.seen.Add(1)%cpuSample != 1 || !s.busy.CompareAndSwap(false, true) {
		return func() time.Duration { return 0 }
	}
	runtime.LockOSThread()
	began := threadTime()
	return func() time.Duration {
		spent := threadTime() - began
		runtime.UnlockOSThread()
		s.busy.Store(false)
		return spent
	}
}

// measured is shake, with an account of it for an Observer that wants one.
func (l *Listener) measured(c *Conn, accepted time.Time) error {
	observer, ok := l.config.Observer.(HandshakeObserver)
	if !ok {
		return l.shake(c, accepted)
	}
	stop := l.cpu.start()
	err := l.shake(c, accepted)
	cpu := stop()
	if err != nil {
		return err
	}
	cs := c.tls.ConnectionState()
	observer.OnHandshakeDone(Handshake{
		Peer: c.Peer, Resumed: c.Peer.Resumed, Took: time.Since(accepted), CPU: cpu,
		BytesUp: c.raw.up.Load(), BytesDown: c.raw.down.Load(),
		Version: cs.Version, Suite: cs.CipherSuite, Curve: cs.CurveID, Ticket: c.ticket,
	})
	return nil
}

// receive reads from the socket, and counts.
func (r *rawConn) receive(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.up.Add(int64(n))
	return n, err
}

// Write counts what the peer is sent. What crypto/tls sends by itself after the
// handshake, such as its answer to a key update, has a deadline, too.
func (r *rawConn) Write(p []byte) (n int, err error) {
	r.writers.Add(1)
	defer r.writers.Add(-1)
	if r.hurried.Load() {
		n, err = sendNow(r.Conn, p, r.together.Load())
		r.down.Add(int64(n))
		return n, err
	}
	if c := r.conn; c.shaken.Load() && c.writing.Load() == 0 {
		if err := r.Conn.SetWriteDeadline(time.Now().Add(c.writeTimeout)); err != nil {
			return 0, err
		}
	}
	n, err = r.Conn.Write(p)
	r.down.Add(int64(n))
	return n, err
}
