package peers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fleethub/fleethub/certs/mtls"
)

// The load. Each figure is measured in loadRounds rounds, in which every server has its turn.
const (
	loadRounds  = 3
	publishers  = 50
	subscribers = 200
	window      = 20 // QoS 1 messages that a publisher has unacknowledged, at most

	fanIn  = 4000 // messages of each publisher in a round
	fanOut = 2000 // messages of the one publisher in a round
)

// payload is what a message carries.
var payload = strings.Repeat("x", 128)

// cost is what a number of messages, or deliveries, took.
type cost struct {
	messages  int
	cpu, wall time.Duration
}

func (c *cost) add(d cost) {
	c.messages += d.messages
	c.cpu += d.cpu
	c.wall += d.wall
}

func (c cost) each() float64   { return float64(c.cpu.Nanoseconds()) / 1e3 / float64(c.messages) }
func (c cost) second() float64 { return float64(c.messages) / c.wall.Seconds() }

// fleet are the connections to one server.
type fleet struct {
	peer       peer
	publishers []*client
	devices    []string // whose the publishers are
	services   func(n int) ([]*client, error)
}

// BenchmarkLoad measures the processor time of a server per message, beside mosquitto and a stock mochi server. All
// connections are mutual TLS 1.3, all messages 128 bytes long, each in a TLS record of its own. It ignores b.N.
//
//   - Fan-in to one: 50 devices publish to one subscriber that counts. The publishers together are at most 1,000 messages
//     ahead of what it has, so that no server has cause to drop any.
//   - Fan-in: the same without subscriber and limit, so that messages wait in the socket and a server reads many at once. A
//     PINGREQ behind the last message of each device proves that the server has taken them all. Nothing must be reached
//     here: it is reading and little else.
//   - Fan-out: one device publishes to 200 subscribers that count; it is at most 40 messages ahead of what all have.
//   - QoS 1: 50 devices publish with 20 messages unacknowledged each, nobody subscribes. Mosquitto and mochi acknowledge
//     what they have in memory.
func BenchmarkLoad(b *testing.B) {
	if !*withPeers {
		b.Skip("compares brokers, for minutes: make bench-peers")
	}
	s := newSite(b, publishers)
	service := s.service(b, "bench")
	peers := []peer{s.hub(b), s.mosquitto(b), s.mochi(b)}
	var fleets []*fleet
	for _, p := range peers {
		fleets = append(fleets, s.fleet(b, p, service))
	}
	measures := []func(*fleet) (cost, error){(*fleet).fanIn, (*fleet).fanInToOne, (*fleet).fanOut, (*fleet).fanInAcknowledged}
	costs := make([]map[string]*cost, len(measures))
	for i, measure := range measures {
		costs[i] = make(map[string]*cost)
		for round := range loadRounds {
			for j := range fleets { // another one begins each time
				f := fleets[(round+j)%len(fleets)]
				c, err := measured(b, f, measure)
				if err != nil {
					b.Fatalf("%s: %v", f.peer.name, err)
				}
				if costs[i][f.peer.name] == nil {
					costs[i][f.peer.name] = new(cost)
				}
				costs[i][f.peer.name].add(c)
			}
		}
	}
	values := func(i int, value func(cost) float64) map[string]float64 {
		all := make(map[string]float64)
		for name, c := range costs[i] {
			all[name] = value(*c)
		}
		return all
	}
	printFigures(b, "server CPU", peers, []figure{
		{name: "QoS 0 fan-in, per message", unit: "µs/fan-in", format: "%.1f µs", values: values(0, cost.each)},
		{name: "QoS 0 fan-in to one subscriber, per message", unit: "µs/fan-in-to-one", format: "%.1f µs", values: values(1, cost.each), rival: "mochi", limit: 0.5},
		{name: "QoS 0 fan-out to 200, per delivery", unit: "µs/delivery", format: "%.1f µs", values: values(2, cost.each), rival: "mochi", limit: 0.55},
		{name: "QoS 1 fan-in, per message", unit: "µs/QoS-1", format: "%.1f µs", values: values(3, cost.each), rival: "mosquitto", limit: 0.5},
		{name: "QoS 1 fan-in, messages/s", unit: "msg/s", format: "%.0f", values: values(3, cost.second), rival: "mosquitto", limit: 0.6, least: true},
	})
}

// fleet connects the publishers to a server.
func (s *site) fleet(b *testing.B, p peer, service mtls.Credentials) *fleet {
	b.Helper()
	f := &fleet{peer: p}
	for _, d := range s.devices {
		c, err := dial(p, d, d.Identity.ID, true)
		if err != nil {
			b.Fatalf("%s: %v", p.name, err)
		}
		b.Cleanup(c.close)
		f.publishers, f.devices = append(f.publishers, c), append(f.devices, d.Identity.ID)
	}
	f.services = func(n int) (all []*client, err error) {
		for i := range n {
			c, err := dial(p, service, fmt.Sprintf("bench:%d", i), true)
			if err != nil {
				return all, err
			}
			c.roomy()
			all = append(all, c)
			if err := c.subscribe("d/+/tele/#", 0); err != nil {
				return all, err
			}
		}
		return all, nil
	}
	return f
}

// measured runs one measure between two moments at which the server is idle.
func measured(b *testing.B, f *fleet, measure func(*fleet) (cost, error)) (cost, error) {
	b.Helper()
	for _, c := range f.publishers { // who was idle while others had their turn
		c.renew()
		if err := c.barrier(); err != nil {
			return cost{}, err
		}
	}
	return measure(f)
}

// spend measures what the server spends on work, up to the moment at which it has been idle for a while.
func (f *fleet) spend(messages int, work func() error) (cost, error) {
	before, err := f.peer.used()
	if err != nil {
		return cost{}, err
	}
	began := time.Now()
	if err := work(); err != nil {
		return cost{}, err
	}
	wall := time.Since(began)
	time.Sleep(300 * time.Millisecond) // what it still does for these messages is part of their price
	after, err := f.peer.used()
	return cost{messages, after - before, wall}, err
}

func (f *fleet) fanIn() (cost, error) {
	return f.spend(publishers*fanIn, func() error { return f.publishAll(nil) })
}

// publishAll has every publisher send its messages of QoS 0.
func (f *fleet) publishAll(credit *meter) error {
	var all errgroup.Group
	for i, c := range f.publishers {
		all.Go(func() error { return c.publish(newMessage("d/"+f.devices[i]+"/tele/x", 0, payload), fanIn, credit) })
	}
	return all.Wait()
}

func (f *fleet) fanInToOne() (cost, error) {
	one, err := f.services(1)
	defer closeAll(one)
	if err != nil {
		return cost{}, err
	}
	credit := newMeter(publishers, 1)
	return f.spend(publishers*fanIn, func() error {
		var all errgroup.Group
		all.Go(func() error { return one[0].count(publishers*fanIn, credit) })
		all.Go(func() error { return f.publishAll(credit) })
		return all.Wait()
	})
}

func (f *fleet) fanOut() (cost, error) {
	many, err := f.services(subscribers)
	defer closeAll(many)
	if err != nil {
		return cost{}, err
	}
	credit := newMeter(2, subscribers)
	return f.spend(subscribers*fanOut, func() error {
		var all errgroup.Group
		for _, c := range many {
			all.Go(func() error { return c.count(fanOut, credit) })
		}
		all.Go(func() error {
			return f.publishers[0].publish(newMessage("d/"+f.devices[0]+"/tele/x", 0, payload), fanOut, credit)
		})
		return all.Wait()
	})
}

func (f *fleet) fanInAcknowledged() (cost, error) {
	return f.spend(publishers*fanIn, func() error {
		var all errgroup.Group
		for i, c := range f.publishers {
			m := newMessage("d/"+f.devices[i]+"/tele/x", 1, payload)
			all.Go(func() error {
				return c.publishAcknowledged(func(int) message { return m }, fanIn, window)
			})
		}
		return all.Wait()
	})
}

func closeAll(clients []*client) {
	for _, c := range clients {
		c.close()
	}
}
