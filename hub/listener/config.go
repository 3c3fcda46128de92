package listener

import (
	"crypto/tls"
	"log/slog"
	"net"
	"runtime"
	"syscall"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// Observer is told what happens, for metrics. Its methods are called on the
// connections' goroutines, must be safe for concurrent use and must not block.
type Observer interface {
	// OnRefused reports a connection that was turned away: the reason, the
	// peer's address, and the identity that it claimed ("" if none, and not
	// to be trusted).
	OnRefused(reason string, remote net.Addr, id string)
	// OnHandshake reports a completed handshake and how long it took.
	OnHandshake(resumed bool, took time.Duration)
}

// Config is what a Listener needs. TLS, Verify and Handle are required.
type Config struct {
	// TLS is the server's configuration, such as mtls.ServerConfig returns. It is
	// cloned; VerifyConnection and GetConfigForClient are replaced.
	TLS *tls.Config
	// Verify judges the peer and returns who it is. It runs inside the handshake.
	Verify func(tls.ConnectionState) (mtls.Peer, error)
	// Handle greets one connection and returns what serves it for the rest of its life,
	// nil if there is nothing to serve; the connection is closed when that returns. The
	// two run on different goroutines: the first has a stack that the handshake has
	// grown, and soon serves another connection; the second waits on a small one. A panic
	// in it is logged and ends that connection only.
	Handle func(*Conn) (serve func())

	HandshakeTimeout time.Duration // for the ClientHello, and from the first turn on for the rest; 0: 5 s
	ConnectTimeout   time.Duration // until Conn.Connected; 0: 10 s
	WriteTimeout     time.Duration // without progress of a write; 0: 10 s
	CloseTimeout     time.Duration // for what is still to be written at Close; 0: 500 ms
	WriteBuffer      int           // bytes that a peer may lag behind; 0: 1 MiB

	// MaxConnections bounds the connections, those in their handshake included;
	// 0: 15,000. In any case 512 of the process's file descriptors are left for
	// everything else.
	MaxConnections int

	Limits Limits // of the handshakes

	Observer Observer     // nil: nobody is told
	Log      *slog.Logger // nil: nothing is logged
}

// Limits bound what handshakes may cost. Zero values mean the defaults.
type Limits struct {
	// Computing is how many handshakes may use the processor at the same time;
	// one that waits for its peer doesn't count. 0: two per core.
	Computing int

	// Answers is how many full handshakes, and as many resumed ones, may wait for
	// their peers' answer before others of their kind begin. A peer that takes more
	// than a fifth of HandshakeTimeout counts no more. 0: 256 per core, which is what
	// a core begins in 0.3 s.
	Answers int

	// FullQueue and ResumedQueue are how many handshakes may wait for their first
	// turn; the next is reset, and so is who has waited until Wait after its accept.
	// Waiting costs some 10 KB and no work, being refused costs the device an attempt
	// and perhaps its ticket; but who has given up must not be served in the end.
	// 0: 4,096 and 8,192 per core, about what is served in the default of Wait, which
	// is twice HandshakeTimeout: half of what our own devices wait for CONNACK.
	FullQueue, ResumedQueue int
	Wait                    time.Duration

	// AddressBurst is how many connections of one address (IPv6: of one /64) may be
	// under way or have failed; every second AddressRate of them are forgiven. Those
	// that succeed count no more. 0: two thirds of MaxConnections, 200.
	AddressBurst int
	AddressRate  float64

	// IssuerBurst is how many full handshakes the devices of one issuing CA may
	// make; every second IssuerRate of them are forgotten. 0: MaxConnections, and a
	// fifth of it, which only devices gone mad come near.
	IssuerBurst int
	IssuerRate  float64

	// DeviceBurst and DeviceRate are the same for one device, so that one alone can't
	// use up its issuer's. 0: a hundredth of those, 64 and 1 at least.
	DeviceBurst int
	DeviceRate  float64
}

func (l *Limits) setDefaults(maxConnections int) {
	cores := runtime.GOMAXPROCS(0)
	for _, n := range []struct {
		field *int
		value int
	}{
		{&l.Computing, 2 * cores},
		{&l.Answers, 256 * cores},
		{&l.FullQueue, 4096 * cores},
		{&l.ResumedQueue, 8192 * cores},
		{&l.AddressBurst, max(64, maxConnections*2/3)},
		{&l.IssuerBurst, max(64, maxConnections)},
	} {
		if *n.field <= 0 {
			*n.field = n.value
		}
	}
	if l.DeviceBurst <= 0 {
		l.DeviceBurst = max(64, l.IssuerBurst/100)
	}
	if l.AddressRate <= 0 {
		l.AddressRate = 200
	}
	if l.IssuerRate <= 0 {
		l.IssuerRate = max(1, float64(maxConnections)/5)
	}
	if l.DeviceRate <= 0 {
		l.DeviceRate = max(1, l.IssuerRate/100)
	}
}

// spareFiles are the descriptors left for the store, the API and whatever else.
const spareFiles = 512

// openable returns how many connections this process can have, or n if that is less.
func openable(n int) int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || limit.Cur > 1<<30 {
		return n
	}
	files := int(limit.Cur)
	return max(1, min(n, max(files-spareFiles, files/2)))
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.HandshakeTimeout, 5 * time.Second},
		{&c.ConnectTimeout, 10 * time.Second},
		{&c.WriteTimeout, 10 * time.Second},
		{&c.CloseTimeout, 500 * time.Millisecond},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if c.MaxConnections <= 0 {
		c.MaxConnections = 15_000
	}
	c.MaxConnections = openable(c.MaxConnections)
	c.Limits.setDefaults(c.MaxConnections)
	if c.Limits.Wait <= 0 {
		c.Limits.Wait = 2 * c.HandshakeTimeout
	}
	if c.WriteBuffer <= 0 {
		c.WriteBuffer = 1 << 20
	}
	if c.Observer == nil {
		c.Observer = nobody{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

type nobody struct{}

func (nobody) OnRefused(string, net.Addr, string) {}
func (nobody) OnHandshake(bool, time.Duration)    {}
