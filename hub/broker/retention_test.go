package broker

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/hub/wire"

	"github.com/fleethub/fleethub/hub/registry"
)

func TestOneDeviceCantFillTheMemoryByRetaining(t *testing.T) {
	h := startHub(t)
	w := h.online(h.device("pi-1"))
	retain := func(topic, payload string) {
		t.Helper()
		must(t, w.send(&wire.Publish{QoS: 1, Retain: true, ID: 1, Topic: topic, Payload: []byte(payload)}))
		w.ack(wire.TypePuback)
	}
	count := func() (n int) {
		return len(h.retained.Match("d/pi-1/#"))
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
	for _, topic := range h.retained.Match("d/pi-1/#") {
		m, _ := h.retained.Get(topic)
		bytes += len(m.Payload)
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

func TestOwnersThatDontExistCantFillTheMemory(t *testing.T) {
	var r retention
	const each = 900 << 10
	n := 0
	for ; r.admit(fmt.Sprintf("d/nobody-%d/twin/desired", n), each); n++ {
		if n > maxRetainedTotal/each {
			t.Fatalf("%d owners retain %d bytes each", n, each)
		}
	}
	if r.admit("d/pi-1/twin/desired", each) {
		t.Error("there was room for another")
	}
	if !r.admit("d/nobody-0/twin/desired", each) {
		t.Error("a value could not be replaced by one of its size")
	}
	r.admit("d/nobody-0/twin/desired", 0)
	r.forget("d/nobody-1/")
	if !r.admit("d/pi-1/twin/desired", each) || !r.admit("d/pi-2/twin/desired", each) || r.admit("d/pi-3/twin/desired", each) {
		t.Error("two made room for two")
	}
	for i := range n {
		r.forget(fmt.Sprintf("d/nobody-%d/", i))
	}
	r.forget("d/pi-1/")
	r.forget("d/pi-2/")
	if r.total != 0 {
		t.Errorf("%d bytes are counted and nothing is retained", r.total)
	}
}
