package broker

import (
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// A device that sends its issuer along is told, once it asks, that its leaf is enough; one that sends its leaf only is told
// nothing, and so costs nothing.
func TestDeviceIsToldThatItsLeafIsEnough(t *testing.T) {
	h := startHub(t)
	whole := h.device("pi-1")
	w := h.online(whole)
	w.subscribe(1, 1, "d/pi-1/sys/tls")
	if pk := w.expect(packets.Publish); string(pk.Payload) != `{"chain":"leaf"}` || !pk.FixedHeader.Retain {
		t.Errorf("got %q, retained %v", pk.Payload, pk.FixedHeader.Retain)
	}
	w.disconnect()

	leaf := h.device("pi-2")
	leaf.Certificate.Certificate = leaf.Certificate.Certificate[:1]
	w = h.online(leaf)
	w.subscribe(1, 1, "d/pi-2/sys/tls")
	w.alive() // the PINGRESP comes first: nothing was retained
}
