package listener

import (
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// storm has all configs connect at once, each with full-jitter backoff of its own, until
// every one has echoed. It returns how many attempts each needed, and leaves nothing
// open.
func storm(t testing.TB, addr string, configs []*tls.Config) (attempts []int) {
	t.Helper()
	attempts = make([]int, len(configs))
	var (
		devices sync.WaitGroup // those that are not in
		begin   = make(chan struct{})
		over    = make(chan struct{})
		running sync.WaitGroup
	)
	devices.Add(len(configs))
	for i, config := range configs {
		running.Go(func() {
			<-begin
			ceiling := 50 * time.Millisecond
			for {
				attempts[i]++
				if conn, err := try(addr, config); err == nil {
					devices.Done()
					<-over
					conn.Close()
					return
				}
				time.Sleep(rand.N(ceiling)) // the device's backoff
				ceiling = min(2*ceiling, 2*time.Second)
			}
		})
	}
	close(begin)
	devices.Wait()
	close(over)
	running.Wait()
	return attempts
}

// try makes one attempt, as a device would.
func try(addr string, config *tls.Config) (*tls.Conn, error) {
	raw, err := net.DialTimeout("tcp", addr, 2*patience)
	if err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Now().Add(2 * patience))
	conn := tls.Client(raw, config)
	if _, err = conn.Write([]byte("ping")); err == nil {
		_, err = io.ReadFull(conn, make([]byte, 4))
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// devices returns so many configurations, with a ticket in each or with none.
func (h *harness) devices(n int, tickets bool) []*tls.Config {
	h.t.Helper()
	first := h.pki.Device("pi-1").ClientConfig()
	first.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	const key = "127.0.0.1"
	conn, err := h.dial(first)
	must(h.t, err)
	roundTrip(h.t, conn)
	conn.Close()
	session, ok := first.ClientSessionCache.Get(key)
	if !ok {
		h.t.Fatal("no ticket was earned")
	}
	configs := make([]*tls.Config, n)
	for i := range configs {
		configs[i] = first.Clone()
		configs[i].ClientSessionCache = nil
		if tickets {
			configs[i].ClientSessionCache = tls.NewLRUClientSessionCache(1)
			configs[i].ClientSessionCache.Put(key, session)
		}
	}
	return configs
}

// TestStormEndsWithEverybodyIn: 500 new devices and 500 with tickets, at a hub that lets
// 50 wait.
func TestStormEndsWithEverybodyIn(t *testing.T) {
	h := start(t, echo, func(c *Config) {
		c.HandshakeTimeout = time.Hour // a slow machine is not what is tested
		c.Limits.FullQueue = 50
	})
	const each = 500
	attempts := storm(t, h.addr, slices.Concat(h.devices(each, false), h.devices(each, true)))
	full, resumed := attempts[:each], attempts[each:]
	if most := slices.Max(full); most > 30 {
		t.Errorf("a new device needed %d attempts", most)
	}
	if most := slices.Max(resumed); most > 1 {
		t.Errorf("a device with a ticket needed %d attempts", most)
	}
	until(t, "nothing is open", func() bool { return h.Open() == 0 })
	if s := h.Stats(); s.Computing != 0 || s.Handshaking != 0 || s.WaitingFull+s.WaitingResumed+s.WaitingBegun != 0 {
		t.Errorf("something is left: %+v", s)
	}
}

// BenchmarkStorm is 4,000 devices at a hub of this process, with the default limits.
// firmware-sim storm is the same from outside, and up to the hub's connections.
func BenchmarkStorm(b *testing.B) {
	for name, tickets := range map[string]bool{"full": false, "resumed": true} {
		b.Run(name, func(b *testing.B) {
			h := start(b, echo)
			configs := h.devices(4000, tickets)
			most, all := 0, 0
			for b.Loop() {
				attempts := storm(b, h.addr, configs)
				most, all = max(most, slices.Max(attempts)), all+len(attempts)
			}
			b.ReportMetric(float64(most), "attempts-max")
			b.ReportMetric(float64(all)/b.Elapsed().Seconds(), "devices/s")
		})
	}
}
