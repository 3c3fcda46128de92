package conformance

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/server"
	"github.com/fleethub/fleethub/hub/wire"
)

// hub is one hub for many rules, with identities to give away and one client that
// no rule touches.
type hub struct {
	*hubtest.Hub

	mu        sync.Mutex // guards what follows
	spare     []certtest.Credential
	made      int
	bystander *client
}

// start runs a hub whose limits on new connections are out of the way: every test
// client has the same address.
func start(t *testing.T, options ...hubtest.Option) *hub {
	t.Helper()
	h := &hub{Hub: hubtest.Start(t, append(options, func(c *server.Config) {
		c.MQTT.Limits.AddressBurst, c.MQTT.Limits.AddressRate = 1<<20, 1<<20
		c.MQTT.Limits.IssuerBurst, c.MQTT.Limits.IssuerRate = 1<<20, 1<<20
	})...)}
	x := &exam{T: t, hub: h, version: wire.V5}
	h.bystander = x.service()
	h.bystander.connect(keepAlive(0))
	return h
}

// batch is how many devices are registered at once, because each manifest is synced to disk.
const batch = 64

// device returns the credential of a registered device that nobody else has.
func (h *hub) device() certtest.Credential {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.spare) == 0 {
		for range batch {
			h.made++
			h.spare = append(h.spare, h.Fleet.Device(fmt.Sprintf("dev%d", h.made)))
		}
		h.Register(h.spare...)
	}
	c := h.spare[0]
	h.spare = h.spare[1:]
	return c
}

// service returns the credential of a service that nobody else has.
func (h *hub) service() certtest.Credential {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.made++
	return h.Fleet.Service(fmt.Sprintf("svc%d", h.made))
}

// undisturbed fails the test if the bystander has noticed anything.
func (h *hub) undisturbed(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bystander.T = t
	h.bystander.alive()
}

// exam is one run of a rule: for one version, against one hub.
type exam struct {
	*testing.T
	hub     *hub
	version byte
}

// device returns a device that has done its handshake and sent nothing.
func (x *exam) device() *client {
	x.Helper()
	return x.dial(x.hub.device())
}

// service returns a service that has done its handshake and sent nothing.
func (x *exam) service() *client {
	x.Helper()
	return x.dial(x.hub.service())
}

// pair is a subscribing device and a service that sends to it.
type pair struct {
	*exam
	sub, pub *client
	marks    int
}

// pair returns a pair whose subscriber has connected with those options.
func (x *exam) pair(options ...option) *pair {
	x.Helper()
	p := &pair{exam: x, sub: x.device(), pub: x.service()}
	p.sub.connect(options...)
	p.pub.connect()
	p.sub.subscribe(p.mark(), 1)
	return p
}

// topic returns a topic that the publisher may write and the subscriber read.
func (p *pair) topic(name string) string { return "d/" + p.sub.id + "/cmd/" + name + "/1" }

// all returns the filter of every topic.
func (p *pair) all() string { return "d/" + p.sub.id + "/cmd/#" }

func (p *pair) mark() string { return "d/" + p.sub.id + "/twin/desired" }

// nothing fails the test if the subscriber gets anything before a message that is
// published only now.
func (p *pair) nothing() {
	p.Helper()
	p.marks++
	payload := fmt.Sprintf("mark %d", p.marks)
	p.pub.publish(p.mark(), payload, 1)
	if got := p.sub.take(); got.Topic != p.mark() || string(got.Payload) != payload {
		p.Fatalf("the subscriber got %s, want nothing", describe(got))
	}
}

// reconnect hangs up without DISCONNECT and comes back.
func (p *pair) reconnect(options ...option) *wire.Connack {
	p.Helper()
	p.sub.hangUp()
	return p.comeBack(options...)
}

// comeBack connects the subscriber again.
func (p *pair) comeBack(options ...option) *wire.Connack {
	p.Helper()
	p.sub = p.sub.again()
	return p.sub.connect(options...)
}

// watch returns a service that has subscribed to what a device publishes.
func (x *exam) watch(device *client, options ...option) *client {
	x.Helper()
	w := x.service()
	w.connect(options...)
	w.subscribe("d/"+device.id+"/tele/+", 2)
	w.subscribe("d/"+device.id+"/evt/+", 2)
	return w
}

// each runs a check for every named input.
func each[V any](x *exam, cases map[string]V, check func(*exam, V)) {
	x.Helper()
	for name, v := range cases {
		x.Run(name, func(t *testing.T) { check(&exam{T: t, hub: x.hub, version: x.version}, v) })
	}
}

// named returns the credential of a service of that name.
func (h *hub) named(id string) certtest.Credential {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.Fleet.Service(id)
}

// elapse waits until that many seconds have gone by on every clock: where the
// specification speaks of an interval, time itself is the condition.
func (x *exam) elapse(seconds int) {
	<-time.After(time.Duration(seconds)*time.Second + 100*time.Millisecond)
}
