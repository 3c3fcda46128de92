package soak

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The rate that the hub is told to allow, and for how long at once it may be used up. The senders go far beyond ten times
// of it: as fast as the hub reads.
const (
	allowedRate  = 100
	allowedBurst = 10 * allowedRate
	rateMemory   = 48 << 20
	lastRead     = 64 // messages that a connection's last read may have brought in before it ended
)

// TestAPublisherFarAboveItsRate has two devices send as fast as the hub takes it, once over one connection and once coming
// back again and again. The hub reads them more slowly; nobody else notices, and its memory stays flat.
func TestAPublisherFarAboveItsRate(t *testing.T) {
	for _, c := range []struct {
		name  string
		stays time.Duration // on a connection
	}{{"over one connection", time.Hour}, {"over many connections", 300 * time.Millisecond}} {
		t.Run(c.name, func(t *testing.T) {
			h := shared.serve(t, collected, "FLEETHUB_MQTT__QUOTAS__PUBLISH_RATE=100")
			b := watchBystanders(t, h)
			before := h.footprint()
			received, _ := h.metric("fleethub_messages_received_total")
			began := time.Now()
			end := began.Add(3 * time.Second)
			var work sync.WaitGroup
			var connections atomic.Int64
			for i, qos := range []byte{0, 1} {
				work.Go(func() {
					for time.Now().Before(end) && !t.Failed() {
						connections.Add(1)
						flood(t, h, i, qos, time.Until(end), c.stays)
					}
				})
			}
			work.Wait()
			now, _ := h.metric("fleethub_messages_received_total")
			// Two senders, and the bystander.
			most := 2*(allowedBurst+allowedRate*(time.Since(began).Seconds()+1)) + time.Since(began).Seconds()/sightseeing.Seconds() +
				float64(lastRead*connections.Load())
			t.Logf("%.0f messages taken, %.0f allowed", now-received, most)
			if now-received > most {
				t.Errorf("%.0f messages taken, which is more than the %.0f that are allowed", now-received, most)
			}
			if throttled, ok := h.metric("fleethub_throttled_total"); !ok || throttled == 0 {
				t.Error("no metric says that anybody was slowed down")
			}
			h.peak(t, before, rateMemory)
			b.judge()
			h.wantNothingLeaked(t, before, rateMemory)
		})
	}
}

// flood sends as fast as the hub takes it, over one connection.
func flood(t *testing.T, h *hub, device int, qos byte, left, stays time.Duration) {
	c, err := connect(t.Context(), h.at.MQTT, shared.devices[device], nil, connectOptions{version: v311, clean: true, keepAlive: 60})
	if err != nil {
		t.Errorf("connect %s: %v", shared.devices[device].Identity.ID, err)
		return
	}
	var reading sync.WaitGroup
	reading.Go(func() { _, _, _ = c.drain(patience) }) // it takes its acknowledgements: they are not the fault
	frame := publishFrame(v311, packet{topic: deviceTopic(device, "tele/x"), qos: qos, id: 1, payload: make([]byte, 100)})
	bunch := []byte(strings.Repeat(string(frame), 100))
	c.tls.SetWriteDeadline(time.Now().Add(min(left, stays)))
	for err == nil {
		_, err = c.tls.Write(bunch)
	}
	c.hangUp(broken)
	reading.Wait()
}
