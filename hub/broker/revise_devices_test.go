package broker

import (
	"testing"

	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/wire"
)

// TestAfterAChangeOfLabelsSubscriptionsThatAreNotAllowedAreRemoved: of those devices, live
// and stored, and of nobody else.
func TestAfterAChangeOfLabelsSubscriptionsThatAreNotAllowedAreRemoved(t *testing.T) {
	h := startHub(t)
	const filter = "g/site=north/cmd/#"
	live := h.online(h.device("pi-1", "site", "north"), persistent)
	live.subscribe(1, 1, "d/pi-1/cmd/#", filter)
	away := h.online(h.device("pi-2", "site", "north"), persistent)
	away.subscribe(1, 1, "d/pi-2/cmd/#", filter)
	away.disconnect()
	h.gone("pi-2")
	other := h.online(h.device("pi-3", "site", "north"))
	other.subscribe(1, 1, filter)

	for _, id := range []string{"pi-1", "pi-2", "pi-4"} {
		h.devices.set(id, func(s *registry.Status) { s.Labels = map[string]string{"site": "south"} })
	}
	r, err := h.ReviseDevices(t.Context(), []string{"pi-1", "pi-2", "pi-4"})
	must(t, err)
	if r.Live != 1 || r.Stored != 1 || r.Sessions != 2 {
		t.Errorf("%+v", r)
	}
	if m := h.index.Match("g/site=north/cmd/x/1"); len(m.Direct) != 1 {
		t.Errorf("%d sessions would get the group's command, want that of pi-3 alone", len(m.Direct))
	}
	if codes := live.subscribe(2, 1, filter, "g/site=south/cmd/#"); codes[0] != wire.Code(0x80) || codes[1] != 1 {
		t.Errorf("asking again: %#x", codes)
	}
	// What was removed stays so over a crash, and what wasn't is there.
	after := h.afterCrash()
	if m := after.index.Match("g/site=north/cmd/x/1"); len(m.Direct) != 0 {
		t.Error("a removed subscription came back with the hub")
	}
	if m := after.index.Match("d/pi-2/cmd/x/1"); len(m.Direct) != 1 {
		t.Error("a subscription is gone that is still allowed")
	}
}
