package broker

import (
	"testing"

	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/wire"
)

// TestNothingIsAcceptedAfterACutOffHoweverLongTheDiskStalled: the message came before,
// and could not be entered before the cut-off had returned.
func TestNothingIsAcceptedAfterACutOffHoweverLongTheDiskStalled(t *testing.T) {
	t.Parallel()
	for name, state := range map[string]registry.State{"revoked": registry.StateRevoked, "suspended": registry.StateSuspended} {
		h := startHub(t)
		reader := h.online(h.pki.Service("reader"))
		reader.subscribe(1, 1, "d/+/evt/#")
		d := h.online(h.device("pi-1"), v5, sessionExpiry(3600))
		const all = 16 << 20 // of what may be on its way to the disk
		must(t, h.ingest.Reserve(t.Context(), all))
		must(t, d.send(&wire.Publish{Topic: "d/pi-1/evt/x", Payload: []byte("late"), QoS: 1, ID: 1, Retain: true}))
		published := func() uint64 { return h.Stats().Published }
		until(t, "its message waits for the disk", func() bool { return published() > 0 })
		if n, at := h.cutOff("pi-1", state); n != 1 || at.IsZero() {
			t.Fatalf("%s: %d sessions closed, at %s", name, n, at)
		}
		h.ingest.Release(all)
		until(t, "its reader is gone", func() bool { return len(h.live.Live("device", "pi-1")) == 0 })
		other := h.online(h.device("pi-2"))
		other.publish("d/pi-2/evt/x", "mark", 1, 1)
		if pk := expect[*wire.Publish](reader); string(pk.Payload) != "mark" {
			t.Errorf("%s: %q on %s was delivered after the cut-off had returned", name, pk.Payload, pk.Topic)
		}
		if _, kept := h.retained.Get("d/pi-1/evt/x"); kept {
			t.Errorf("%s: its message is retained", name)
		}
	}
}
