package soak

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// collected has the hub collect garbage as Go does by itself: the hub's own setting trades memory for processor time, and
// would hide in its slack what a test of memory looks for.
const collected = "GOGC=100"

// unreadMemory is how much the hub may grow for one client that doesn't read: its queue's quota of 64 MiB, its write buffer,
// what waits for the disk, and as much again until it is collected.
const unreadMemory = 256 << 20

// TestAServiceThatNeverReads has a service subscribe to everything and read nothing, while devices send far more than the
// hub may keep for it.
func TestAServiceThatNeverReads(t *testing.T) {
	h := shared.serve(t, collected)
	b := watchBystanders(t, h)
	before := h.footprint()
	deaf := dial(t, h, "flap-a", connectOptions{version: v5, clean: false, keepAlive: 600})
	deaf.subscribe(t, "d/+/tele/x", 1)
	const devices, size, messages = 4, 64 << 10, 500 // 125 MiB
	send := func() {
		var work sync.WaitGroup
		for i := range devices {
			work.Go(func() {
				c := dialDevice(t, h, i, connectOptions{version: v5, clean: true, keepAlive: 60})
				defer c.hangUp(goodbye)
				pump(t, c, deviceTopic(i, "tele/x"), size, messages)
			})
		}
		work.Wait()
	}
	send() // twice its quota, and then as much again
	h.peak(t, before, unreadMemory)
	send()
	h.peak(t, before, unreadMemory)
	b.judge()
	deaf.hangUp(broken)
	h.wantNothingLeaked(t, before, unreadMemory)
	if n := len(h.lines("id=flap-a")); n > 2 {
		t.Errorf("%d log lines about one service that doesn't read", n)
	}
}

// pump publishes messages of QoS 1, 16 of them on their way at a time, and reads every acknowledgement.
func pump(t *testing.T, c *connection, topic string, size, messages int) {
	payload := make([]byte, size)
	for n := range messages + 16 {
		if n >= 16 {
			if p, err := c.next(patience); err != nil || p.kind != typePuback || p.code >= 0x80 {
				t.Errorf("answer %d on %s: %+v, %v", n-15, topic, p, err)
				return
			}
		}
		if n < messages {
			c.write(publishFrame(c.version, packet{topic: topic, qos: 1, id: uint16(1 + n), payload: payload}))
		}
	}
}

// receipt is what `hub device revoke --output json` says.
type receipt struct {
	DurableAt    time.Time `json:"durable_at"`
	EffectiveAt  time.Time `json:"effective_at"`
	Closed       int       `json:"sessions_closed"`
	LastClosedAt time.Time `json:"last_session_closed_at"`
}

// revoke revokes a device as an operator does.
func (h *hub) revoke(t *testing.T, id string) receipt {
	t.Helper()
	cmd := exec.Command(filepath.Join(h.bin, "hub"), "device", "revoke", id, "--dir", h.dir, "--reason", "keyCompromise", "--confirm", "--output", "json")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &stderr)
	}
	var r receipt
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return r
}

// cutWithin bounds how long a revoked device's socket may live on. It is milliseconds; a busy machine gets more.
const cutWithin = time.Second

// TestADeviceThatNeverReadsIsStillCutOff fills a device's connection from the other side until nothing more goes into it,
// and revokes the device.
func TestADeviceThatNeverReadsIsStillCutOff(t *testing.T) {
	h := shared.serve(t, collected)
	b := watchBystanders(t, h)
	before := h.footprint()
	const victim = 1
	id := shared.devices[victim].Identity.ID
	service := dial(t, h, "command", connectOptions{version: v5, clean: true, keepAlive: 60})
	deaf := dialDevice(t, h, victim, connectOptions{version: v5, clean: false, keepAlive: 600, narrow: true})
	deaf.subscribe(t, deviceTopic(victim, "cmd/#"), 1)
	pump(t, service, deviceTopic(victim, "cmd/do/1"), 200<<10, 400) // the hub may cut it by itself
	h.peak(t, before, unreadMemory)
	r := h.revoke(t, id)
	took := r.EffectiveAt.Sub(r.DurableAt)
	if r.Closed > 0 {
		took = r.LastClosedAt.Sub(r.DurableAt)
	}
	t.Logf("%d connections closed %v after the revocation was durable", r.Closed, took)
	if took > cutWithin {
		t.Errorf("the cut took %v, more than %v", took, cutWithin)
	}
	if c, err := connect(t.Context(), h.at.MQTT, shared.devices[victim], nil, connectOptions{version: v5, clean: false, keepAlive: 60}); err == nil {
		c.hangUp(broken)
		t.Error("the revoked device connects")
	}
	service.hangUp(goodbye)
	b.judge()
	h.wantNothingLeaked(t, before, unreadMemory)
}

// TestADeviceThatStopsReadingIsCutOffAtOnce revokes a device whose connection is full, but not so full that the hub ends
// it by itself.
func TestADeviceThatStopsReadingIsCutOffAtOnce(t *testing.T) {
	h := shared.serve(t)
	const victim = 2
	deaf := dialDevice(t, h, victim, connectOptions{version: v311, clean: false, keepAlive: 600, narrow: true})
	deaf.subscribe(t, deviceTopic(victim, "cmd/#"), 2)
	service := dial(t, h, "command", connectOptions{version: v5, clean: true, keepAlive: 60})
	pump(t, service, deviceTopic(victim, "cmd/do/1"), 1<<10, 300)
	r := h.revoke(t, shared.devices[victim].Identity.ID)
	if r.Closed != 1 {
		t.Errorf("%d connections closed, want 1", r.Closed)
	}
	if took := r.LastClosedAt.Sub(r.DurableAt); took > cutWithin {
		t.Errorf("the cut took %v, more than %v", took, cutWithin)
	}
	_ = deaf.tls.NetConn().(*net.TCPConn).SetReadBuffer(1 << 20) // else what is on its way takes seconds to read
	for {
		if _, err := deaf.next(5 * time.Second); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the connection is not closed")
			break
		} else if err != nil {
			break
		}
	}
}
