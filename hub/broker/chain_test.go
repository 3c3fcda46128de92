package broker

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/wire"

	"github.com/fleethub/fleethub/hub/protocol"
)

// A device that sends its issuer along is told, once it asks, that its leaf is enough; one that sends its leaf only is told
// nothing, and so costs nothing.
func TestDeviceIsToldThatItsLeafIsEnough(t *testing.T) {
	h := startHub(t)
	whole := h.pki.Device("pi-1")
	h.register(whole)
	w := h.online(whole)
	w.subscribe(1, 1, "d/pi-1/sys/tls")
	if pk := expect[*wire.Publish](w); string(pk.Payload) != `{"chain":"leaf"}` || !pk.Retain {
		t.Errorf("got %q, retained %v", pk.Payload, pk.Retain)
	}
	w.disconnect()

	w = h.online(h.device("pi-2"))
	w.subscribe(1, 1, "d/pi-2/sys/tls")
	w.alive() // the PINGRESP comes first: nothing was retained
}

func TestPresenceIsWrittenAsJSONIs(t *testing.T) {
	for _, s := range []protocol.PresenceStatus{
		{Online: true, Reason: protocol.ReasonConnected, Since: time.Now().UTC(), Address: "[::1]:4711"},
		{Reason: protocol.ReasonLost, Since: time.Unix(1792000000, 0).UTC()},
	} {
		want, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := appendPresence(nil, s); string(got) != string(want) {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
