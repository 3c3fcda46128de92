package peers

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	idleConnections = 3000 // at every server
	idleWarm        = 100  // connections that were there and went before the first look
	// idleSettle is longer than the two minutes after which a Go program collects its garbage whether it needs to or not.
	// Nobody asks a server to do so.
	idleSettle = 150 * time.Second
)

// BenchmarkIdle measures the resident memory that a connection which has subscribed and says nothing costs a server: what the
// process has more than before, divided by the connections. It ignores b.N.
func BenchmarkIdle(b *testing.B) {
	if !*withPeers {
		b.Skip("compares brokers, for minutes: make bench-peers")
	}
	s := newSite(b, idleConnections)
	peers := []peer{s.hub(b), s.mosquitto(b), s.mochi(b)}
	before := make(map[string]int)
	for _, p := range peers {
		clients, err := s.idle(p, idleWarm)
		closeAll(clients)
		if err != nil {
			b.Fatalf("%s: %v", p.name, err)
		}
	}
	time.Sleep(time.Second) // until they have noticed
	for _, p := range peers {
		before[p.name] = p.resident(b)
	}
	connected := make(map[string][]*client)
	for _, p := range peers {
		clients, err := s.idle(p, idleConnections)
		b.Cleanup(func() { closeAll(clients) })
		if err != nil {
			b.Fatalf("%s: %v", p.name, err)
		}
		connected[p.name] = clients
	}
	time.Sleep(idleSettle)
	values := make(map[string]float64)
	for _, p := range peers {
		values[p.name] = float64(p.resident(b)-before[p.name]) / idleConnections
		for _, c := range connected[p.name] { // still there, each of them
			c.renew()
			if err := c.barrier(); err != nil {
				b.Fatalf("%s: %v", p.name, err)
			}
		}
	}
	printFigures(b, "resident memory", peers, []figure{
		{name: fmt.Sprintf("each of %d idle connections", idleConnections), unit: "KiB/connection", format: "%.1f KiB", values: values, limit: 19},
	})
}

// idle connects n devices, each of which subscribes to its commands.
func (s *site) idle(p peer, n int) ([]*client, error) {
	clients := make([]*client, n)
	var all errgroup.Group
	for w := range workers {
		all.Go(func() (err error) {
			for i := w; i < n; i += workers {
				d := s.devices[i]
				if clients[i], err = dial(p, d, d.Identity.ID, true); err != nil {
					return err
				}
				if err := clients[i].subscribe("d/"+d.Identity.ID+"/cmd/#", 1); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := all.Wait()
	return clients, err
}

// resident returns the KiB of memory that the peer occupies.
func (p peer) resident(b *testing.B) int {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(line, "kB")))
	if err != nil {
		b.Fatal(err)
	}
	return n
}
