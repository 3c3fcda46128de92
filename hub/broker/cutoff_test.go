package broker

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/wire"
)

// deaf connects a device that asks never to be missed, has more sent to it than the
// sockets hold, and reads none of it.
func (h *testHub) deaf(id string, options ...option) *peer {
	h.t.Helper()
	service := h.online(h.pki.Service("backend"))
	device := h.online(h.device(id), append(options, keepAlive(0))...)
	device.subscribe(1, 0, "d/"+id+"/cmd/#")
	must(h.t, device.conn.NetConn().(*net.TCPConn).SetReadBuffer(4096))
	payload := strings.Repeat("x", 60_000)
	for i := 1; i <= 100; i++ {
		service.publish("d/"+id+"/cmd/fill/1", payload, 1, uint16(i))
		service.ack(wire.TypePuback)
	}
	if _, live := h.Live(id); !live {
		h.t.Fatalf("%s is gone already", id)
	}
	return device
}

// TestDeviceThatStoppedReadingIsCutInTime, though it has no keep-alive and nothing can be
// written to it: a second is promised.
func TestDeviceThatStoppedReadingIsCutInTime(t *testing.T) {
	for _, state := range []registry.State{registry.StateRevoked, registry.StateSuspended} {
		for name, version := range map[string]option{"3.1.1": func(*wire.Connect) {}, "5.0": v5} {
			t.Run(fmt.Sprintf("%s %s", state, name), func(t *testing.T) {
				h := startHub(t, func(_ *Config, l *listener.Config) { l.WriteTimeout = time.Hour })
				h.deaf("pi-1", version)
				h.devices.set("pi-1", func(s *registry.Status) { s.State = state })
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if got := h.DisconnectMany(ctx, []string{"pi-1"}, string(state))[0]; got.Sessions != 1 || got.Open != 0 || got.At.IsZero() {
					t.Errorf("after a second: %+v", got)
				}
				h.gone("pi-1")
			})
		}
	}
}

// TestManyAreCutOffThoughOneHasStoppedReading: more than are closed without a pause.
func TestManyAreCutOffThoughOneHasStoppedReading(t *testing.T) {
	h := startHub(t, func(_ *Config, l *listener.Config) { l.WriteTimeout = time.Hour })
	h.deaf("pi-0")
	ids, others := []string{"pi-0", "never-connected"}, []*peer{}
	for i := 1; i < closedAtOnce+30; i++ {
		id := fmt.Sprintf("pi-%d", i)
		ids, others = append(ids, id), append(others, h.online(h.device(id), persistent))
	}
	bystander := h.online(h.device("pi-stays"))
	for _, id := range ids {
		h.devices.set(id, func(s *registry.Status) { s.State = registry.StateRevoked })
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i, got := range h.DisconnectMany(ctx, ids, protocol.ReasonRevoked) {
		want := 1
		if ids[i] == "never-connected" {
			want = 0
		}
		if got.ID != ids[i] || got.Sessions != want || got.Open != 0 {
			t.Errorf("%s: %+v", ids[i], got)
		}
	}
	for _, w := range others {
		w.closed()
	}
	for _, id := range ids {
		if h.sessions.find(sessionKey(identity.RoleDevice, id)) != nil {
			t.Errorf("the session of %s is still there", id)
		}
	}
	bystander.alive()
}

// TestNothingPassesACondemnedConnection: where many are cut off, each is condemned at once
// and closed when its turn comes. In between, nothing of it is taken and nothing is sent.
func TestNothingPassesACondemnedConnection(t *testing.T) {
	h := startHub(t)
	service := h.online(h.pki.Service("backend"))
	service.subscribe(1, 1, "d/+/tele/#")
	device := h.online(h.device("pi-1"), v5)
	device.subscribe(1, 1, "d/pi-1/cmd/#")
	s := h.sessions.find(sessionKey(identity.RoleDevice, "pi-1"))
	c := s.reader.Load()
	c.condemn(protocol.ReasonRevoked)
	service.publish("d/pi-1/cmd/late/1", "for nobody", 1, 1)
	service.ack(wire.TypePuback)
	device.publish("d/pi-1/tele/x", "too late", 1, 1)
	for _, pk := range device.closed() {
		if pk, ok := pk.(*wire.Disconnect); !ok {
			t.Errorf("the device got %+v", pk)
		}
	}
	h.gone("pi-1")
	other := h.online(h.device("pi-2"))
	other.publish("d/pi-2/tele/x", "in time", 1, 1)
	if pk := expect[*wire.Publish](service); string(pk.Payload) != "in time" {
		t.Errorf("%q was accepted", pk.Payload)
	}
}

// TestManyAreClosedThoughNobodyWaitsAnyMore: the order holds, whoever gave it.
func TestManyAreClosedThoughNobodyWaitsAnyMore(t *testing.T) {
	h := startHub(t)
	var ids []string
	for i := range closedAtOnce + 20 {
		ids = append(ids, fmt.Sprintf("pi-%d", i))
		h.online(h.device(ids[i]))
	}
	for _, id := range ids {
		h.devices.set(id, func(s *registry.Status) { s.State = registry.StateRevoked })
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.DisconnectMany(ctx, ids, protocol.ReasonRevoked)
	until(t, "all are gone", func() bool { return h.Stats().Devices == 0 })
}

// TestExpiredCertificatesAreLookedForWithinAMinute: what TestConnectionEndsWithItsCertificate
// shows of a shorter time.
func TestExpiredCertificatesAreLookedForWithinAMinute(t *testing.T) {
	if every := startHub(t).config.ExpirySweep; every <= 0 || every > time.Minute {
		t.Errorf("every %v", every)
	}
}
