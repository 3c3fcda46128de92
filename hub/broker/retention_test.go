package broker

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/hub/registry"
)

func TestOneDeviceCantFillTheMemoryByRetaining(t *testing.T) {
	h := startHub(t)
	w := h.online(h.device("pi-1"))
	retain := func(topic, payload string) {
		t.Helper()
		must(t, w.send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1, Retain: true}, PacketID: 1, TopicName: topic, Payload: []byte(payload),
		}))
		w.expect(packets.Puback)
	}
	count := func() (n int) {
		for topic := range h.mqtt.Topics.Retained.GetAll() {
			if strings.HasPrefix(topic, "d/pi-1/") {
				n++
			}
		}
		return n
	}
	for i := range maxRetainedTopics + 50 {
		retain(fmt.Sprintf("d/pi-1/tele/%d", i), "x")
	}
	if n := count(); n != maxRetainedTopics {
		t.Errorf("%d topics are retained, want %d", n, maxRetainedTopics)
	}
	retain("d/pi-1/tele/0", "")
	retain("d/pi-1/tele/new", "x")
	if n := count(); n != maxRetainedTopics {
		t.Errorf("after one made room for another %d topics are retained", n)
	}
	big := strings.Repeat("x", 200<<10)
	for i := range 20 {
		retain(fmt.Sprintf("d/pi-1/tele/%d", i+1), big)
	}
	bytes := 0
	for topic, pk := range h.mqtt.Topics.Retained.GetAll() {
		if strings.HasPrefix(topic, "d/pi-1/") {
			bytes += len(pk.Payload)
		}
	}
	if bytes > maxRetainedBytes {
		t.Errorf("%d bytes are retained, at most %d may be", bytes, maxRetainedBytes)
	}
	if got := h.Stats().NotRetained; got != 50+15 {
		t.Errorf("%d messages were counted as not retained, want 65", got)
	}

	h.cutOff("pi-1", registry.StateRevoked)
	if n := count(); n != 0 {
		t.Errorf("%d topics of the revoked device are still retained", n)
	}
}
