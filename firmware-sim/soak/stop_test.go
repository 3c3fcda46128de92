package soak

import (
	"syscall"
	"testing"
	"time"
)

// TestAStoppedHubGoesOn stops the hub for a while (SIGSTOP), as a suspended machine does, and has it go on: nobody is
// dropped who kept the rules, and nothing is lost.
func TestAStoppedHubGoesOn(t *testing.T) {
	h := shared.serve(t)
	b := watchBystanders(t, h)
	// Its keep-alive passes while the hub is stopped, but its packets lie there when the hub wakes up.
	pinger := dialDevice(t, h, 1, connectOptions{version: v5, clean: true, keepAlive: 1})
	late := dialDevice(t, h, 2, connectOptions{version: v5, clean: false, keepAlive: 60})
	before := h.footprint()
	if err := h.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resumed := false
	resume := func() {
		if !resumed {
			resumed = true
			_ = h.cmd.Process.Signal(syscall.SIGCONT)
		}
	}
	defer resume()
	late.write(publishFrame(v5, packet{topic: deviceTopic(2, "tele/x"), qos: 1, id: 9, payload: []byte("while stopped")}))
	pings := 0
	for end := time.Now().Add(duration(t, "SOAK_STOP", 4*time.Second)); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		pinger.write(pingFrame())
		pings++
	}
	resume()
	if p, err := late.next(patience); err != nil || p.kind != typePuback || p.id != 9 || p.code >= 0x80 {
		t.Errorf("the message sent meanwhile: %+v, %v", p, err)
	}
	for i := range pings {
		if p, err := pinger.next(patience); err != nil || p.kind != typePingresp {
			t.Errorf("answer %d of %d to who kept its keep-alive: %+v, %v", i+1, pings, p, err)
			break
		}
	}
	c := dialDevice(t, h, 3, connectOptions{version: v311, clean: true, keepAlive: 60})
	c.hangUp(goodbye)
	b.judge()
	pinger.hangUp(goodbye)
	late.hangUp(goodbye)
	h.wantNothingLeaked(t, before, 64<<20)
}
