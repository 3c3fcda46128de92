package server_test

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/server"
)

// connectFrom connects and disconnects from a loopback address of its own.
func connectFrom(t *testing.T, h *hubtest.Hub, c certtest.Credential, ip string, sessions tls.ClientSessionCache) error {
	t.Helper()
	config := c.ClientConfig()
	config.ClientSessionCache = sessions
	client := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("ssl://" + h.MQTTAddr()).SetClientID(c.Identity.ID).SetTLSConfig(config).
		SetConnectTimeout(patience).SetAutoReconnect(false).SetConnectRetry(false).SetDialer(&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: patience}))
	token := client.Connect()
	if !token.WaitTimeout(patience) {
		t.Fatal("no answer to CONNECT")
	}
	if token.Error() == nil {
		client.Disconnect(50)
	}
	return token.Error()
}

// untilAnomaly waits until the operator sees that signal of a device.
func untilAnomaly(t *testing.T, h *hubtest.Hub, id, signal string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		found, err := h.Operator().Anomalies(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range found.Anomalies {
			if a.Signal == signal {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("no anomaly %s of %s: %+v", signal, id, found)
		}
	}
}

// untilScore waits until a device has that score.
func untilScore(t *testing.T, h *hubtest.Hub, id, signal string, want int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		found, err := h.Operator().Anomalies(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if found.Scores[signal] >= want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s of %s is not %d: %+v", signal, id, want, found)
		}
	}
}

func state(h *hubtest.Hub, id string) registry.State {
	s, _ := h.Server().Fleet().Status(id)
	return s.State
}

func untilState(t *testing.T, h *hubtest.Hub, id string, want registry.State) {
	t.Helper()
	for end := time.Now().Add(patience); state(h, id) != want; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s is %s, want %s", id, state(h, id), want)
		}
	}
}

// audited reports whether the audit log has that action about a device by the hub.
func audited(t *testing.T, h *hubtest.Hub, id, action, text string) bool {
	t.Helper()
	page, err := h.Server().Fleet().Audit(t.Context(), registry.AuditQuery{Device: id, Action: action, Actor: "hub", Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range page.Records {
		if strings.Contains(r.Detail+r.Note, text) {
			return true
		}
	}
	return false
}

func TestCopiedKeyIsToldAndSuspendedOnlyIfAsked(t *testing.T) {
	for _, suspend := range []string{"never", "clones"} {
		t.Run(suspend, func(t *testing.T) {
			h := hubtest.Start(t, func(c *server.Config) { c.Misuse.Suspend, c.Misuse.Flapping = suspend, 3 })
			d := h.Device("pi-1")
			for i := range 5 {
				if err := connectFrom(t, h, d, []string{"127.0.0.1", "127.0.0.2"}[i%2], nil); err != nil {
					t.Fatal(err)
				}
				untilScore(t, h, "pi-1", "connections", i+1) // it is taken note of behind the CONNACK, so the next could come first
			}
			untilAnomaly(t, h, "pi-1", "flapping")
			if suspend == "never" {
				for end := time.Now().Add(patience); !audited(t, h, "pi-1", "device.anomaly", "flapping"); time.Sleep(2 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatal("the audit log doesn't have it")
					}
				}
				if s := state(h, "pi-1"); s == registry.StateSuspended {
					t.Error("the device is suspended, and nobody asked for it")
				}
				return
			}
			untilState(t, h, "pi-1", registry.StateSuspended)
			if err := connectFrom(t, h, d, "127.0.0.1", nil); err == nil {
				t.Error("it still connects")
			}
			if !audited(t, h, "pi-1", "device.anomaly", "flapping") || !audited(t, h, "pi-1", "device.suspend", "misuse.suspend") {
				t.Error("the audit log doesn't say why")
			}
			if _, err := h.Operator().Resume(t.Context(), "pi-1", "looked into"); err != nil {
				t.Fatal(err)
			}
			if err := connectFrom(t, h, d, "127.0.0.1", nil); err != nil {
				t.Errorf("after it was resumed: %v", err)
			}
		})
	}
}

// sticky gives the same session again and again, as no client should.
type sticky struct{ kept }

func (s *sticky) Put(key string, state *tls.ClientSessionState) {
	if s.state == nil {
		s.kept.Put(key, state)
	}
}

func TestTicketUsedTwiceIsSeen(t *testing.T) {
	h := hubtest.Start(t, func(c *server.Config) { c.Misuse.TicketReuse = 2 })
	d, good := h.Device("pi-1"), h.Device("pi-2")
	used, fresh := &sticky{}, &kept{}
	for range 5 { // full, first use, and three more
		for c, sessions := range map[*certtest.Credential]tls.ClientSessionCache{&d: used, &good: fresh} {
			if err := connectFrom(t, h, *c, "127.0.0.1", sessions); err != nil {
				t.Fatal(err)
			}
		}
	}
	untilAnomaly(t, h, "pi-1", "ticket-reuse")
	found, err := h.Operator().Anomalies(t.Context(), "pi-2")
	if err != nil || len(found.Anomalies) > 0 || found.Scores["ticket-reuse"] > 0 {
		t.Errorf("a client that uses each ticket once: %+v, %v", found, err)
	}
}

func TestDeniedTopicsAndReconnectsAreAnomalies(t *testing.T) {
	h := hubtest.Start(t, func(c *server.Config) { c.Misuse.Denials, c.Misuse.Connections = 5, 4 })
	d := h.Device("pi-1")
	for range 4 {
		if err := connectFrom(t, h, d, "127.0.0.1", nil); err != nil {
			t.Fatal(err)
		}
	}
	untilAnomaly(t, h, "pi-1", "connections")
	client, err := connect(t, h.MQTTAddr(), h.Device("pi-2"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Disconnect(50)
	for range 5 {
		client.Publish("d/other/tele/x", 0, false, "x")
	}
	untilAnomaly(t, h, "pi-2", "denials")
}
