package soak

import (
	"testing"
	"time"
)

// TestWhatAFullDiskAnswersIsTrueAfterAKill has services subscribe and unsubscribe while the disk is full, again and again,
// and kills the hub. Whatever it has said yes to must be so afterwards, and what it has not said yes to must be as before.
func TestWhatAFullDiskAnswersIsTrueAfterAKill(t *testing.T) {
	d := newSmallDisk(t)
	h := shared.hubIn(t, d.at, smallSegments)
	if err := h.start(); err != nil {
		t.Fatal(err)
	}
	const filter = "d/+/tele/x"
	options := connectOptions{version: v5, clean: false, keepAlive: 600}
	dial(t, h, "always-1", options).subscribe(t, filter, 1)
	dial(t, h, "always-2", options).hangUp(broken)
	publisher := newSender(dialDevice(t, h, 0, options), deviceTopic(0, "tele/large"), 1, 100<<10)
	if err := d.leave(spareBytes); err != nil {
		t.Fatal(err)
	}
	fill(t, publisher)

	ended := h.insist(t, "always-1", unsubscribeFrame(v5, 7, filter))
	begun := h.insist(t, "always-2", subscribeFrame(v5, 7, filter, 1))
	t.Logf("on a full disk, UNSUBSCRIBE is granted: %v; SUBSCRIBE: %v", ended, begun)
	h.kill()
	if err := d.resize(roomyBytes); err != nil {
		t.Fatal(err)
	}
	if err := h.start(); err != nil {
		t.Fatal(err)
	}
	first, second := dial(t, h, "always-1", options), dial(t, h, "always-2", options)
	if !first.connack.present {
		t.Error("the session of who wanted to unsubscribe is gone")
	}
	sender := newSender(dialDevice(t, h, 1, options), deviceTopic(1, "tele/x"), 1, 10)
	if code, err := sender.next(); code != 0 || err != nil {
		t.Fatalf("after the restart: 0x%02X, %v", code, err)
	}
	if got := first.publishes(); got == ended {
		t.Errorf("UNSUBSCRIBE was granted: %v; a message after the restart came: %v", ended, got)
	}
	if got := second.publishes(); got != begun {
		t.Errorf("SUBSCRIBE was granted: %v; a message after the restart came: %v", begun, got)
	}
}

// insist sends a SUBSCRIBE or UNSUBSCRIBE a few times, over as many connections as it takes, and reports whether it was
// granted.
func (h *hub) insist(t *testing.T, name string, frame []byte) (granted bool) {
	t.Helper()
	for range 5 {
		c, err := connect(t.Context(), h.at.MQTT, shared.services[name], nil, connectOptions{version: v5, clean: false, keepAlive: 600})
		if err != nil {
			continue // the hub may not take sessions now
		}
		c.write(frame)
		p, err := c.next(patience)
		c.hangUp(broken)
		if err == nil && (p.kind == typeSuback || p.kind == typeUnsuback) && len(p.codes) == 1 && p.codes[0] < 0x80 {
			return true
		}
	}
	return false
}

// publishes reports whether a PUBLISH comes before the answer to a PINGREQ, and a moment after.
func (c *connection) publishes() bool {
	c.write(pingFrame())
	for {
		switch p, err := c.next(2 * time.Second); {
		case err != nil:
			return false
		case p.kind == typePublish:
			return true
		}
	}
}
