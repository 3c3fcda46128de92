package broker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/wire"
)

func TestServiceHasSoManySessionsAndNoMore(t *testing.T) {
	h := startHub(t, func(c *Config, _ *listener.Config) { c.Quotas.Sessions = 3 })
	c := h.pki.Service("backend")
	for i := range 3 {
		h.mustDial(c).mustConnect(fmt.Sprintf("backend:%d", i), persistent)
	}
	ack, err := h.mustDial(c).connect("backend:3", v5, sessionExpiry(60))
	must(t, err)
	if ack.Code != wire.QuotaExceeded {
		t.Errorf("code %#x, want 0x97", ack.Code)
	}
	h.refusedFor(ReasonSessions)
	h.mustDial(c).mustConnect("backend:0", persistent) // one that it has
	h.mustDial(h.pki.Service("other")).mustConnect("other")
	h.mustDial(c).mustConnect("backend:1") // ends it, with its connection
	until(t, "a session has ended", func() bool { return h.sessions.count("service/backend:x") <= 3 })
}

func TestOneIdentityCantFillTheLog(t *testing.T) {
	h := startHub(t)
	c := h.device("pi-1")
	for range 3 * linesBurst {
		w := h.mustDial(c)
		w.mustConnect("pi-1")
		must(t, w.sendRaw([]byte{0xF0, 0x00}))
		w.closed()
	}
	until(t, "the last is gone", func() bool { return h.Stats().Devices == 0 })
	if n := strings.Count(h.log.String(), "id=pi-1"); n > 2*linesBurst {
		t.Errorf("%d lines about one device", n)
	}
	k := &bucket{}
	now := time.Now()
	for range linesBurst {
		k.line(now)
	}
	if _, ok := k.line(now); ok {
		t.Error("one line too many")
	}
	if unlogged, ok := k.line(now.Add(10 * time.Second)); !ok || unlogged != 1 {
		t.Errorf("later: %v, %d not logged before", ok, unlogged)
	}
}

// One message that is never acknowledged keeps none of those that follow it.
func TestOutboxForgetsWhatIsDoneBehindOneThatIsNot(t *testing.T) {
	var o outbox
	m := func() *message { return &message{size: 1} }
	first := o.add(m(), ingest.Delivery{QoS: 1})
	for range 100_000 {
		e := o.add(m(), ingest.Delivery{QoS: 1})
		if e == nil || e.ID == first.ID {
			t.Fatalf("entry %+v beside identifier %d", e, first.ID)
		}
		o.finish(e)
	}
	if len(o.entries) > 200 || o.waiting != 1 || o.bytes != 1 || first.message == nil {
		t.Errorf("%d entries, %d waiting, %d octets", len(o.entries), o.waiting, o.bytes)
	}
}

// A clear of QoS 0, which waits for no disk, is not undone by a value of QoS 1 that was
// sent before it.
func TestClearIsNotOvertakenByWhatItClears(t *testing.T) {
	h := startHub(t)
	w := h.online(h.device("pi-1"))
	for i := range 50 {
		topic := fmt.Sprintf("d/pi-1/tele/%d", i)
		must(t, w.send(&wire.Publish{Topic: topic, Payload: []byte("x"), QoS: 1, ID: uint16(i + 1), Retain: true}))
		must(t, w.send(&wire.Publish{Topic: topic, Retain: true}))
	}
	for range 50 {
		w.ack(wire.TypePuback)
	}
	w.alive()
	if names := h.retained.Match("d/pi-1/tele/#"); len(names) != 0 {
		t.Errorf("%d topics are retained, such as %s", len(names), names[0])
	}
	if len(h.pending) != 0 {
		t.Errorf("%d topics are pending", len(h.pending))
	}
}
