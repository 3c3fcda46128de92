package broker

import (
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// A device that sends its issuer along is told, once it asks, that its leaf is enough; one that sends its leaf only is told
// nothing, and so costs nothing.
func TestDeviceIsToldThatItsLeafIsEnough(t *testing.T) {
	h := startHub(t)
	whole := h.pki.Device("pi-1")
	h.register(whole)
	w := h.online(whole)
	w.subscribe(1, 1, "d/pi-1/sys/tls")
	if pk := w.expect(packets.Publish); string(pk.Payload) != `{"chain":"leaf"}` || !pk.FixedHeader.Retain {
		t.Errorf("got %q, retained %v", pk.Payload, pk.FixedHeader.Retain)
	}
	w.disconnect()

	w = h.online(h.device("pi-2"))
	w.subscribe(1, 1, "d/pi-2/sys/tls")
	w.alive() // the PINGRESP comes first: nothing was retained
}
