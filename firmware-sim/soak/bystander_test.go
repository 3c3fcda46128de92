package soak

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// bystanders are a device and a service that have nothing to do with a fault and must not notice it: the device's
// messages of QoS 1 must be acknowledged and reach the service, over the connections that both had before.
type bystanders struct {
	t      *testing.T
	device *connection
	reader *connection
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu    sync.Mutex // guards what follows
	began map[string]time.Time
	took  []time.Duration // from PUBLISH to delivery
	acks  int
	ended error // the first end of a connection
}

// sightseeing is how often the device publishes.
const sightseeing = 20 * time.Millisecond

// watchBystanders starts them; calm or the test's end stops them.
func watchBystanders(t *testing.T, h *hub) *bystanders {
	t.Helper()
	b := &bystanders{t: t, began: make(map[string]time.Time)}
	who := shared.devices[deviceCount-1]
	b.reader = dial(t, h, "witness", connectOptions{version: v5, clean: true, keepAlive: 60})
	topic := "d/" + who.Identity.ID + "/tele/bystander"
	b.reader.subscribe(t, topic, 1)
	b.device = dialDevice(t, h, deviceCount-1, connectOptions{version: v311, clean: true, keepAlive: 60})
	ctx, cancel := context.WithCancel(t.Context())
	b.cancel = cancel
	b.work.Go(func() { b.publish(ctx, topic) })
	b.work.Go(func() { b.read(b.device) })
	b.work.Go(func() { b.read(b.reader) })
	t.Cleanup(b.end)
	return b
}

func (b *bystanders) publish(ctx context.Context, topic string) {
	tick := time.NewTicker(sightseeing)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		payload := fmt.Sprint(n)
		b.mu.Lock()
		b.began[payload] = time.Now()
		b.mu.Unlock()
		b.device.write(publishFrame(v311, packet{topic: topic, qos: 1, id: uint16(1 + n%60000), payload: []byte(payload)}))
	}
}

// read takes what the hub sends to either of them.
func (b *bystanders) read(c *connection) {
	for {
		p, err := readPacket(c.reader, c.version)
		b.mu.Lock()
		switch {
		case err != nil && b.ended == nil:
			b.ended = err
		case p.kind == typePuback:
			b.acks++
		case p.kind == typePublish:
			if began, ok := b.began[string(p.payload)]; ok {
				b.took = append(b.took, time.Since(began))
				delete(b.began, string(p.payload))
			}
		}
		b.mu.Unlock()
		if err != nil {
			return
		}
		if p.kind == typePublish && p.qos == 1 {
			c.write(ackFrame(typePuback, p.id))
		}
	}
}

// end stops both without a judgement.
func (b *bystanders) end() {
	b.cancel()
	b.device.hangUp(goodbye)
	b.reader.hangUp(goodbye)
	b.work.Wait()
}

// judge stops them and fails the test if they noticed anything.
func (b *bystanders) judge() {
	b.t.Helper()
	until(func() bool { // they have been there, however short the rest was
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.ended != nil || len(b.took) > 10
	})
	b.cancel()
	complete := within(10*time.Second, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.ended != nil || len(b.began) == 0 && b.acks == len(b.took)
	})
	b.mu.Lock()
	if b.ended != nil {
		b.t.Errorf("a bystander's connection ended: %v", b.ended)
	} else if !complete || len(b.took) == 0 {
		b.t.Errorf("of the bystanders' messages, %d arrived, %d were acknowledged, %d did not arrive", len(b.took), b.acks, len(b.began))
	}
	if n := len(b.took); n > 0 {
		slices.Sort(b.took)
		b.t.Logf("bystanders: %d messages delivered in %v (median), %v (99 %%), %v (worst)", n,
			b.took[n/2].Round(10*time.Microsecond), b.took[n*99/100].Round(10*time.Microsecond), b.took[n-1].Round(10*time.Microsecond))
	}
	b.mu.Unlock()
	b.end()
}

// dial connects a service up to its CONNACK; the test's end hangs up.
func dial(t *testing.T, h *hub, name string, o connectOptions) *connection {
	t.Helper()
	c, err := connect(t.Context(), h.at.MQTT, shared.services[name], nil, o)
	if err != nil {
		t.Fatalf("connect %s: %v", name, err)
	}
	t.Cleanup(func() { c.hangUp(broken) })
	return c
}

// dialDevice is dial for a device.
func dialDevice(t *testing.T, h *hub, i int, o connectOptions) *connection {
	t.Helper()
	c, err := connect(t.Context(), h.at.MQTT, shared.devices[i], nil, o)
	if err != nil {
		t.Fatalf("connect %s: %v", shared.devices[i].Identity.ID, err)
	}
	t.Cleanup(func() { c.hangUp(broken) })
	return c
}

// deviceTopic is a topic below a device.
func deviceTopic(i int, rest string) string { return "d/" + shared.devices[i].Identity.ID + "/" + rest }

// subscribe subscribes and reads the SUBACK, which must be the next packet.
func (c *connection) subscribe(t *testing.T, filter string, qos byte) {
	t.Helper()
	c.write(subscribeFrame(c.version, 1, filter, qos))
	if p, err := c.next(patience); err != nil || p.kind != typeSuback || len(p.codes) != 1 || p.codes[0] != qos {
		t.Fatalf("SUBSCRIBE %s: %+v, %v", filter, p, err)
	}
}

// footprint is what a hub holds of the machine.
type footprint struct {
	resident    int64
	descriptors int
	goroutines  int
}

func (f footprint) String() string {
	return fmt.Sprintf("%d MiB resident, %d descriptors, %d goroutines", f.resident>>20, f.descriptors, f.goroutines)
}

// footprint measures the hub.
func (h *hub) footprint() footprint {
	n, _ := h.metric("go_goroutines")
	return footprint{h.resident(), h.descriptors(), int(n)}
}

// wantNothingLeaked waits until the hub holds no more descriptors and goroutines than before, but for a few that come
// and go (the monitoring door's, the recorder's), and fails if its memory has grown by more than that.
func (h *hub) wantNothingLeaked(t *testing.T, before footprint, memory int64) {
	t.Helper()
	const few = 6
	var now footprint
	if !within(30*time.Second, func() bool {
		now = h.footprint()
		return now.descriptors <= before.descriptors+few && now.goroutines > 0 && now.goroutines <= before.goroutines+few
	}) {
		t.Errorf("left behind: %v; before: %v", now, before)
	}
	if now.resident > before.resident+memory {
		t.Errorf("memory has grown by %d MiB, more than %d: %v; before: %v", (now.resident-before.resident)>>20, memory>>20, now, before)
	}
	t.Logf("before: %v; after: %v", before, now)
	if h.ended() {
		t.Errorf("the hub ended: %v", h.cmd.ProcessState)
	}
}
