package soak

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// The load of a soak. It keeps two cores busy with the hub, the clients and the race detector together, and stays far
// below what the hub may drop by a quota: nothing may be lost.
const (
	turn      = 400 * time.Millisecond // between a device's bursts, on average
	burst     = 2                      // messages at most in one
	inFlight  = 12                     // of one publisher, unacknowledged
	reportsIn = 8                      // one burst in so many also sets the retained reported document
)

// load is a fleet at work: 200 devices and the services, all told to the ledger.
type load struct {
	t       *testing.T
	ledger  *ledger
	devices []*client
	others  []*client
	command *client
	who     map[string]mtls.Credentials
	addr    string
	seed    uint64

	publishing atomic.Bool
	deaf       *atomic.Bool // of every client; see client.deaf
	running    sync.WaitGroup
	audits     sync.WaitGroup
	mu         sync.Mutex // guards resumed audits of devices
	auditing   map[string]*audit
}

// service describes one backend application of the load.
type service struct {
	name    string
	version byte
	filter  string
	share   string
	qos     byte
	receive uint16
	flaps   bool
}

// crew is the shared subscription; everything else is one application's own.
const crew = "$share/crew/d/+/tele/#"

var services = []service{
	{name: "always-1", version: v311, filter: "d/+/tele/#", qos: 1},
	{name: "always-2", version: v5, filter: "d/+/tele/#", qos: 2},
	{name: "flap-a", version: v311, filter: "d/+/tele/#", qos: 2, flaps: true},
	{name: "flap-b", version: v5, filter: "d/+/tele/x", qos: 1, flaps: true},
	{name: "flap-c", version: v5, filter: "d/+/tele/+", qos: 2, receive: 40, flaps: true},
	{name: "crew-1", version: v5, filter: crew, share: "crew", qos: 2},
	{name: "crew-2", version: v5, filter: crew, share: "crew", qos: 2, flaps: true},
	{name: "crew-3", version: v311, filter: crew, share: "crew", qos: 2, flaps: true},
}

// between returns a function that returns random durations of that range.
func between(low, high time.Duration, r *rand.Rand) func() time.Duration {
	return func() time.Duration { return low + time.Duration(r.Int64N(int64(high-low))) }
}

func isTelemetry(topic string) bool {
	return strings.HasPrefix(topic, "d/") && strings.Contains(topic, "/tele/")
}

func isReported(topic string) bool { return strings.HasSuffix(topic, "/twin/reported") }

// client makes a client whose accusations go to the ledger.
func (l *load) client(who mtls.Credentials, version byte, deliver func(p packet)) *client {
	s := newSession(who.Identity.ID, version)
	s.accuse, s.deliver = l.ledger.accuse, deliver
	l.seed++
	c := newClient(s, who, l.addr, l.seed)
	c.deaf = l.deaf
	return c
}

// run keeps a client going until ctx ends, and does with it what else it does.
func (l *load) run(ctx context.Context, c *client, also func(ctx context.Context)) {
	l.running.Go(func() { c.run(ctx) })
	if also != nil {
		l.running.Go(func() { also(ctx) })
	}
}

// subscribe makes the persistent subscription of a reader.
func (l *load) subscribe(ctx context.Context, c *client, r *reader, filter string, qos byte) {
	l.ledger.asking(r)
	codes, err := c.ask(ctx, func(id uint16) []byte { return subscribeFrame(c.session.version, id, filter, qos) })
	switch {
	case err != nil:
	case len(codes) != 1 || codes[0] != qos:
		l.ledger.accuse(faultRefused, "%s: SUBACK %x to a subscription of %s at QoS %d", c.session.name, codes, filter, qos)
	default:
		l.ledger.granted(r)
	}
}

// startServices starts those that only read.
func (l *load) startServices(ctx context.Context) {
	for _, s := range services {
		var r *reader
		c := l.client(l.who[s.name], s.version, func(p packet) { l.ledger.delivered(r, p.topic, p.qos, p.payload) })
		wants := isTelemetry
		if s.filter == "d/+/tele/x" {
			wants = func(topic string) bool { return strings.HasSuffix(topic, "/tele/x") }
		}
		r = l.ledger.join(s.name, s.share, s.qos, wants)
		c.receive = s.receive
		if s.flaps {
			c.online, c.offline = between(300*time.Millisecond, 3*time.Second, c.random), between(10*time.Millisecond, 1500*time.Millisecond, c.random)
		}
		l.others = append(l.others, c)
		l.run(ctx, c, func(ctx context.Context) { l.subscribe(ctx, c, r, s.filter, s.qos) })
	}
	l.startChanging(ctx)
}

// startChanging starts the service that subscribes and unsubscribes again and again.
func (l *load) startChanging(ctx context.Context) {
	var r *reader
	c := l.client(l.who["change"], v5, func(p packet) { l.ledger.delivered(r, p.topic, p.qos, p.payload) })
	r = l.ledger.join("change", "", 2, isTelemetry)
	l.others = append(l.others, c)
	pause := between(200*time.Millisecond, 2*time.Second, rand.New(rand.NewPCG(l.seed, 2)))
	l.run(ctx, c, func(ctx context.Context) {
		for ctx.Err() == nil {
			l.subscribe(ctx, c, r, "d/+/tele/#", 2)
			c.wait(ctx, pause(), c.calm)
			if c.steady.Load() {
				return
			}
			l.ledger.quitting(r)
			codes, err := c.ask(ctx, func(id uint16) []byte { return unsubscribeFrame(v5, id, "d/+/tele/#") })
			if err != nil {
				return
			}
			if len(codes) != 1 || codes[0] >= 0x80 {
				l.ledger.accuse(faultRefused, "%s: UNSUBACK %x", c.session.name, codes)
			}
			l.ledger.left(r)
			c.wait(ctx, pause()/4, c.calm)
		}
	})
}

// startDevices starts the devices: each publishes telemetry and its reported document and takes commands.
func (l *load) startDevices(ctx context.Context, all []mtls.Credentials) {
	for i, who := range all {
		id, version, qos := who.Identity.ID, v311+byte(i%2), byte(1+i/2%2)
		commands := "d/" + id + "/cmd/"
		var r *reader
		c := l.client(who, version, func(p packet) {
			if strings.HasPrefix(p.topic, commands) {
				l.ledger.delivered(r, p.topic, p.qos, p.payload)
			} else {
				l.desiredArrived(id, p)
			}
		})
		r = l.ledger.join(id, "", qos, func(topic string) bool { return strings.HasPrefix(topic, commands) })
		if i%2 == 0 {
			c.online, c.offline = between(500*time.Millisecond, 6*time.Second, c.random), between(10*time.Millisecond, 2*time.Second, c.random)
		}
		l.devices = append(l.devices, c)
		random := rand.New(rand.NewPCG(l.seed, 3))
		l.run(ctx, c, func(ctx context.Context) {
			l.subscribe(ctx, c, r, commands+"#", qos)
			p := l.publisher(c)
			for l.pause(ctx, random) {
				for range 1 + random.IntN(burst) {
					p.publish(ctx, "d/"+id+"/tele/x", byte(1+random.IntN(2)))
				}
				if random.IntN(reportsIn) == 0 {
					p.retain(ctx, "d/"+id+"/twin/reported", byte(1+i%2), random.IntN(10) == 0)
				}
			}
		})
	}
}

// startCommands starts the service that sends commands to devices, whether they are there or not, and retains what they
// are to become.
func (l *load) startCommands(ctx context.Context) {
	c := l.client(l.who["command"], v5, func(packet) {})
	l.command = c
	random := rand.New(rand.NewPCG(l.seed, 4))
	l.run(ctx, c, func(ctx context.Context) {
		p := l.publisher(c)
		for l.publishing.Load() && ctx.Err() == nil {
			c.wait(ctx, 25*time.Millisecond, c.calm)
			i := random.IntN(len(l.devices))
			id := l.devices[i].session.name
			p.publish(ctx, "d/"+id+"/cmd/do/1", byte(1+random.IntN(2)))
			if random.IntN(4) == 0 {
				p.retain(ctx, "d/"+id+"/twin/desired", byte(1+i%2), random.IntN(10) == 0)
			}
		}
	})
}

// pause waits for a device's next turn; false means that publishing is over.
func (l *load) pause(ctx context.Context, r *rand.Rand) bool {
	timer := time.NewTimer(time.Duration(r.Int64N(int64(2 * turn))))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return l.publishing.Load() && ctx.Err() == nil
}

// publisher is one client's window of messages that are not acknowledged.
type publisher struct {
	l      *load
	c      *client
	window chan struct{}
}

func (l *load) publisher(c *client) *publisher {
	return &publisher{l, c, make(chan struct{}, inFlight)}
}

// enter waits for room in the window.
func (p *publisher) enter(ctx context.Context) bool {
	select {
	case p.window <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// publish sends the next message of a stream.
func (p *publisher) publish(ctx context.Context, topic string, qos byte) {
	if !p.enter(ctx) {
		return
	}
	k := streamKey{topic, qos}
	seq := p.l.ledger.sending(k)
	p.c.publish(&outgoing{
		topic: topic, qos: qos, payload: content(k, seq),
		accepted: func() { p.l.ledger.accepted(k, seq) },
		finished: func() { p.l.ledger.finished(k, seq); <-p.window },
		refused:  func(code byte) { p.l.ledger.refused(p.c.session.name, k.String(), code) },
	})
}

// retain sets a retained topic, or deletes what it holds.
func (p *publisher) retain(ctx context.Context, topic string, qos byte, empty bool) {
	if !p.enter(ctx) {
		return
	}
	n, payload := p.l.ledger.setting(topic, qos, empty)
	p.c.publish(&outgoing{
		topic: topic, qos: qos, retain: true, payload: payload,
		accepted: func() { p.l.ledger.settingAccepted(topic, n) },
		finished: func() { <-p.window },
		refused:  func(code byte) { p.l.ledger.refused(p.c.session.name, "setting "+topic, code) },
	})
}
