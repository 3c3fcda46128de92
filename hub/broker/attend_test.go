package broker

import (
	"testing"

	"github.com/fleethub/fleethub/hub/wire"
)

// TestConnectionOutlivesItsFirstMoments: half a packet lies in the reader when the
// goroutine that greeted the connection hands it on, and none of it is lost.
func TestConnectionOutlivesItsFirstMoments(t *testing.T) {
	t.Parallel()
	h := startHub(t)
	for name, c := range map[string]option{"with a keep-alive": keepAlive(60), "without one": keepAlive(0), "with one that is shorter": keepAlive(1)} {
		w := h.mustDial(h.device("pi-1"))
		w.mustConnect("pi-1", c)
		w.alive()
		data, err := wire.AppendWithin(nil, &wire.Publish{Topic: "d/pi-1/tele/a", Payload: []byte("b"), QoS: 1, ID: 7}, wire.V311, 0)
		must(t, err)
		must(t, w.sendRaw(data[:5]))
		until(t, "handed on "+name, func() bool { return h.attended.Load() == 0 })
		must(t, w.sendRaw(data[5:]))
		if ack := w.ack(wire.TypePuback); ack.ID != 7 {
			t.Errorf("%s: acknowledged %d", name, ack.ID)
		}
		w.disconnect()
	}
}

// TestOnlySoManyAreAttended: whoever comes while all places are taken is served as well.
func TestOnlySoManyAreAttended(t *testing.T) {
	t.Parallel()
	h := startHub(t)
	h.attended.Add(maxAttended)
	w := h.online(h.device("pi-1"))
	until(t, "handed on", func() bool { return h.attended.Load() == maxAttended })
	w.alive()
	w.disconnect()
}
