package soak

import (
	"testing"
	"time"
)

// acceptsWithin is how soon the hub must take connections again once it has descriptors again.
const acceptsWithin = time.Second

// TestDescriptorsExhaustedAndGivenBack takes the hub's file descriptors away, and looks that it goes on serving whom it
// has, and takes others again when it can.
func TestDescriptorsExhaustedAndGivenBack(t *testing.T) {
	h := shared.serve(t)
	b := watchBystanders(t, h)
	before := h.footprint()
	const room = 5
	limit, err := h.limitDescriptors(uint64(before.descriptors + room))
	if err != nil {
		t.Fatal(err)
	}
	// More peers than there is room for. Some wait in the kernel's queue, and are taken when there is room.
	type outcome struct {
		c   *connection
		err error
	}
	const comers = 4 * room
	outcomes := make(chan outcome, comers)
	for i := range comers {
		go func() {
			c, err := connect(t.Context(), h.at.MQTT, shared.devices[i], nil, connectOptions{version: v311, clean: true, keepAlive: 60})
			outcomes <- outcome{c, err}
		}()
	}
	if !within(10*time.Second, func() bool { return h.descriptors() >= before.descriptors+room-1 }) {
		t.Fatalf("the hub has %d descriptors, so they are not exhausted", h.descriptors())
	}
	time.Sleep(2 * time.Second) // a state that must be survived, not one that ends by itself
	if h.ended() {
		t.Fatalf("the hub ended: %v", h.cmd.ProcessState)
	}
	if _, err := h.limitDescriptors(limit); err != nil {
		t.Fatal(err)
	}
	given := time.Now()
	c, err := connect(t.Context(), h.at.MQTT, shared.devices[comers], nil, connectOptions{version: v311, clean: true, keepAlive: 60})
	took := time.Since(given)
	if err != nil {
		t.Errorf("with descriptors again: %v", err)
	} else {
		c.hangUp(goodbye)
	}
	t.Logf("a connection was accepted %v after the descriptors were given back", took.Round(time.Millisecond))
	if took > acceptsWithin {
		t.Errorf("accepting again took %v, more than %v", took, acceptsWithin)
	}
	for range comers {
		if o := <-outcomes; o.c != nil {
			o.c.hangUp(goodbye)
		}
	}
	b.judge()
	h.wantNothingLeaked(t, before, 32<<20)
	if n := len(h.lines()); n > 25+comers {
		t.Errorf("%d log lines for a few seconds without descriptors", n)
	}
}
