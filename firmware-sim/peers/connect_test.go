package peers

import (
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// The measurement: rounds times every peer gets each device once per kind of connection.
const (
	devices = 500
	rounds  = 40
	workers = 4
)

// kind is a kind of connection.
type kind struct {
	version uint16
	resumed bool
}

func (k kind) String() string {
	if k.resumed {
		return tls.VersionName(k.version) + " resumed"
	}
	return tls.VersionName(k.version) + " full"
}

// BenchmarkConnect measures the processor time of a server per connection, CONNECT and CONNACK included, and its ratio to
// the hub's. It ignores b.N: one run is several thousand connections.
func BenchmarkConnect(b *testing.B) {
	s := newSite(b, devices)
	peers := []peer{s.hub(b), s.bare(b)}
	if *withPeers {
		peers = append(peers, s.mosquitto(b))
	}
	kinds := []kind{{tls.VersionTLS13, false}, {tls.VersionTLS13, true}, {tls.VersionTLS12, false}, {tls.VersionTLS12, true}}
	// Whoever comes behind a larger or a slower one finds colder caches, so they come in another order each time.
	order := rand.New(rand.NewPCG(1, 2))
	used := make(map[string]map[kind]time.Duration)
	for _, p := range peers {
		used[p.name] = make(map[kind]time.Duration)
	}
	for _, k := range kinds {
		sessions := make(map[string][]*kept)
		for _, p := range peers {
			sessions[p.name] = s.connectAll(b, p, kind{k.version, false}, nil) // every peer knows every device, every device has a ticket
		}
		for range rounds {
			for _, i := range order.Perm(len(peers)) {
				p := peers[i]
				before := p.cpu(b)
				sessions[p.name] = s.connectAll(b, p, k, sessions[p.name])
				used[p.name][k] += p.cpu(b) - before
			}
		}
	}
	report(b, peers, kinds, used)
}

// connectAll connects every device once and returns the sessions for the next time. A resumed kind starts from sessions.
func (s *site) connectAll(b *testing.B, p peer, k kind, sessions []*kept) []*kept {
	b.Helper()
	next := make([]*kept, len(s.devices))
	var wait sync.WaitGroup
	for w := range workers {
		wait.Go(func() {
			for i := w; i < len(s.devices); i += workers {
				next[i] = &kept{}
				if k.resumed {
					next[i].state = sessions[i].state
				}
				resumed, err := connect(p.addr, s.devices[i], k.version, next[i])
				if err != nil {
					b.Errorf("%s at %s: %v", k, p.name, err)
					return
				}
				if resumed != k.resumed {
					b.Errorf("%s at %s: resumed is %v", k, p.name, resumed)
					return
				}
			}
		})
	}
	wait.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return next
}

func report(b *testing.B, peers []peer, kinds []kind, used map[string]map[kind]time.Duration) {
	per := func(p peer, k kind) float64 {
		return float64(used[p.name][k].Microseconds()) / float64(rounds*devices)
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "server CPU per connect\t")
	for _, p := range peers {
		fmt.Fprintf(t, "%s\t", p.name)
	}
	for _, p := range peers[1:] {
		fmt.Fprintf(t, "hub ÷ %s\t", p.name)
	}
	fmt.Fprintln(t)
	hub := peers[0]
	for _, k := range kinds {
		fmt.Fprintf(t, "%s\t", k)
		for _, p := range peers {
			fmt.Fprintf(t, "%.0f µs\t", per(p, k))
		}
		for _, p := range peers[1:] {
			fmt.Fprintf(t, "%.2f\t", per(hub, k)/per(p, k))
		}
		fmt.Fprintln(t)
	}
	t.Flush()
	for _, k := range kinds {
		b.ReportMetric(per(hub, k), "µs/"+strings.ReplaceAll(k.String(), " ", "-"))
	}
	b.ReportMetric(0, "ns/op")
}
