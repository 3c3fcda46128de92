package soak

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"
)

// TestQoS2NeverReleased has clients of both versions publish QoS 2 and never send a PUBREL. A client of version 5 that
// goes beyond the Receive Maximum it was told is told so (0x93); one of 3.1.1, which was told nothing, waits or is closed.
// The hub's memory is bounded in either case.
func TestQoS2NeverReleased(t *testing.T) {
	for _, version := range []byte{v311, v5} {
		t.Run(map[byte]string{v311: "3.1.1", v5: "5.0"}[version], func(t *testing.T) {
			h := shared.serve(t)
			b := watchBystanders(t, h)
			before := h.footprint()
			c := dialDevice(t, h, 1, connectOptions{version: version, clean: false, keepAlive: 60})
			// Version 5: as many as it may, and one more once they are answered, so that no unread rest turns the hub's
			// goodbye into a reset. 3.1.1: every identifier there is, and again.
			first, rest := int(c.connack.receive), 1
			if version == v311 {
				first, rest = 0, 2*65535
			}
			publish := func(from, to int) {
				for n := from; n < to; n++ {
					select {
					case <-c.closed:
						return
					default:
						c.write(publishFrame(version, packet{topic: deviceTopic(1, "tele/x"), qos: 2, id: uint16(1 + n%65535), payload: make([]byte, 100)}))
					}
				}
			}
			publish(0, first)
			for i := range first {
				if p, err := c.next(patience); err != nil || p.kind != typePubrec || p.code >= 0x80 {
					t.Fatalf("answer %d of the %d that the hub announced: %+v, %v", i+1, first, p, err)
				}
			}
			var publishing sync.WaitGroup
			defer publishing.Wait()
			defer c.hangUp(broken)
			publishing.Go(func() { publish(first, first+rest) })
			received, reason, err := c.drain(10 * time.Second)
			t.Logf("%d PUBRECs, then %v, reason 0x%02X", received, err, reason)
			switch {
			case version == v5 && reason != 0x93:
				t.Errorf("the hub ends it with 0x%02X (%v), want 0x93", reason, err)
			case version == v5 && received > 0:
				t.Errorf("%d more PUBRECs than the hub's Receive Maximum of %d", received, c.connack.receive)
			case version == v311 && errors.Is(err, os.ErrDeadlineExceeded) && received >= 65535:
				t.Errorf("all %d identifiers were taken", received)
			}
			c.hangUp(broken)
			if n := len(h.lines(shared.devices[1].Identity.ID)); n > 1 {
				t.Errorf("%d log lines for one connection:\n%s", n, h.lines(shared.devices[1].Identity.ID))
			}
			b.judge()
			h.wantNothingLeaked(t, before, 64<<20)
		})
	}
}

// drain reads until nothing comes for quiet or the connection ends, and returns how many acknowledgements there were and
// the reason of a DISCONNECT, 0xFF if there was none.
func (c *connection) drain(quiet time.Duration) (acks int, reason byte, err error) {
	for {
		p, err := c.next(quiet)
		switch {
		case err != nil:
			return acks, 0xFF, err
		case p.kind == typeDisconnect:
			return acks, p.code, nil
		case p.kind == typePuback, p.kind == typePubrec:
			acks++
		}
	}
}

// TestAReceiverThatNeverCompletes has a device take commands of QoS 2 and acknowledge none of them. What it gets is
// bounded by its Receive Maximum, what waits for it by its quota, and it is all there when it comes back.
func TestAReceiverThatNeverCompletes(t *testing.T) {
	h := shared.serve(t)
	b := watchBystanders(t, h)
	before := h.footprint()
	const receive, commands = 10, 500
	device := dialDevice(t, h, 1, connectOptions{version: v5, clean: false, keepAlive: 60, receive: receive})
	device.subscribe(t, deviceTopic(1, "cmd/#"), 2)
	service := dial(t, h, "command", connectOptions{version: v311, clean: true, keepAlive: 60})
	s := newSession("command", v311)
	service.send(func() []byte { return s.connected(false) })
	finished := make(chan struct{}, commands)
	go func() {
		for n := range commands {
			service.send(func() []byte {
				return s.publish(&outgoing{topic: deviceTopic(1, "cmd/do/1"), qos: 2, payload: []byte{byte(n >> 8), byte(n)}, finished: func() { finished <- struct{}{} }}, true)
			})
		}
	}()
	for len(finished) < commands {
		p, err := service.next(patience)
		if err != nil {
			t.Fatalf("after %d of %d commands: %v", len(finished), commands, err)
		}
		service.send(func() []byte { return s.handle(p) })
	}
	got := 0
	for {
		p, err := device.next(2 * time.Second)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil || p.kind != typePublish {
			t.Fatalf("the device got %+v, %v", p, err)
		}
		got++
	}
	if got != receive {
		t.Errorf("%d messages on their way to a client whose Receive Maximum is %d", got, receive)
	}
	device.hangUp(broken)

	again := dialDevice(t, h, 1, connectOptions{version: v5, clean: false, keepAlive: 60, receive: receive})
	if !again.connack.present {
		t.Error("the session is gone")
	}
	taken := newSession("device", v5)
	want := 0
	taken.accuse = func(fault, format string, args ...any) { t.Errorf(fault+": "+format, args...) }
	taken.deliver = func(p packet) {
		if n := int(p.payload[0])<<8 | int(p.payload[1]); n != want {
			t.Errorf("command %d came when %d was due", n, want)
		}
		want++
	}
	for completed := 0; completed < commands; {
		p, err := again.next(patience)
		if err != nil {
			t.Fatalf("after %d of %d: %v", completed, commands, err)
		}
		if p.kind == typePubrel {
			completed++
		}
		again.send(func() []byte { return taken.handle(p) })
	}
	again.hangUp(goodbye)
	service.hangUp(goodbye)
	b.judge()
	h.wantNothingLeaked(t, before, 64<<20)
}
