package listener

import (
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// accountant is an Observer that wants the account of each handshake.
type accountant struct {
	*harness
	mu   sync.Mutex // guards done
	done []Handshake
}

func (a *accountant) OnHandshakeDone(hs Handshake) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done = append(a.done, hs)
}

func (a *accountant) last(t *testing.T, n int) Handshake {
	t.Helper()
	until(t, "the handshake is accounted for", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.done) == n
	})
	return a.done[n-1]
}

// tally counts what a client's socket carries.
type tally struct {
	net.Conn
	up, down atomic.Int64
}

func (c *tally) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.down.Add(int64(n))
	return n, err
}

func (c *tally) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.up.Add(int64(n))
	return n, err
}

func TestHandshakeIsAccountedForToTheOctet(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			a := &accountant{}
			a.harness = start(t, func(c *Conn) {
				c.Write([]byte("!"))
				io.Copy(io.Discard, c)
			}, func(c *Config) { c.Observer = a })
			config := a.pki.Device("pi-1").ClientConfig()
			config.MaxVersion, config.ClientSessionCache = version, tls.NewLRUClientSessionCache(1)
			for n, resumed := range []bool{false, true} {
				raw, err := net.Dial("tcp", a.addr)
				must(t, err)
				socket := &tally{Conn: raw}
				socket.SetDeadline(time.Now().Add(patience))
				client := tls.Client(socket, config)
				must(t, client.Handshake())
				up := socket.up.Load()
				_, err = io.ReadFull(client, make([]byte, 1)) // and so the ticket
				must(t, err)
				const banner = 1 + 5 + 8 + 16 // an octet, as the record of TLS 1.2 carries it; that of 1.3 is smaller
				down := socket.down.Load()
				state := client.ConnectionState()
				client.Close()

				hs := a.last(t, n+1)
				if hs.BytesUp != up || hs.BytesDown >= down || hs.BytesDown < down-banner {
					t.Errorf("counted %d up and %d down, the client %d and %d with the octet behind it", hs.BytesUp, hs.BytesDown, up, down)
				}
				if hs.Resumed != resumed || hs.Peer.Identity.ID != "pi-1" || hs.Version != version || hs.Suite != state.CipherSuite || hs.Curve != state.CurveID || hs.Took <= 0 {
					t.Errorf("account %+v of %+v", hs, state)
				}
				if first := n == 0 && runtime.GOOS == "linux"; (hs.CPU > 0) != first || hs.CPU > hs.Took {
					t.Errorf("handshake %d took %s of the processor in %s", n, hs.CPU, hs.Took)
				}
			}
		})
	}
}

func TestRefusedHandshakeIsNotAccountedFor(t *testing.T) {
	a := &accountant{}
	a.harness = start(t, func(*Conn) {}, func(c *Config) { c.Observer = a })
	if client, err := tls.Dial("tcp", a.addr, a.pki.Foreign().Device("pi-1").ClientConfig()); err == nil {
		client.Close()
	}
	stranger := a.pki.Foreign().Device("pi-1")
	stranger.Roots = a.pki.Bundle()
	if client, err := tls.Dial("tcp", a.addr, stranger.ClientConfig()); err == nil {
		io.Copy(io.Discard, client)
		client.Close()
	}
	a.refused("unknown-issuer pi-1")
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.done) > 0 {
		t.Errorf("accounts %+v", a.done)
	}
}

func TestOneHandshakeIsMeasuredAtATime(t *testing.T) {
	var s cpuSampler
	stop := s.start()
	for range 2*cpuSample - 1 {
		if s.start()() != 0 {
			t.Fatal("a second one is measured meanwhile")
		}
	}
	for began := time.Now(); time.Since(began) < time.Millisecond; { // so that there is something to measure
	}
	if spent := stop(); runtime.GOOS == "linux" && spent <= 0 {
		t.Errorf("measured %s", spent)
	}
	stop = s.start()
	if !s.busy.Load() {
		t.Error("after the first nobody is measured any more")
	}
	stop()
}

// BenchmarkMeasuring is what the account costs a handshake: all of it but the thread
// switches of the one in cpuSample whose processor time is measured, which is
// "sampled" with nothing to wait for.
func BenchmarkMeasuring(b *testing.B) {
	b.Run("not sampled", func(b *testing.B) {
		s := cpuSampler{}
		s.busy.Store(true)
		for b.Loop() {
			s.start()()
		}
	})
	b.Run("sampled", func(b *testing.B) {
		for b.Loop() {
			var s cpuSampler
			s.start()()
		}
	})
}
