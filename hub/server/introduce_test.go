package server_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/server"
)

func justInTime(c *server.Config) { c.Admission = "just-in-time" }

// connects reports whether the hub lets the device in, up to its CONNACK, and whether it
// came by a ticket.
func connects(h *hubtest.Hub, c certtest.Credential, config *tls.Config) (in, resumed bool) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", h.MQTTAddr(), config)
	if err != nil {
		return false, false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	id := c.Identity.ID
	fmt.Fprintf(conn, "\x10%c\x00\x04MQTT\x04\x02\x00\x3c\x00%c%s", 12+len(id), len(id), id)
	ack := make([]byte, 4)
	_, err = io.ReadFull(conn, ack)
	return err == nil && ack[3] == 0, conn.ConnectionState().DidResume
}

func stateOf(t *testing.T, h *hubtest.Hub, id string) registry.State {
	t.Helper()
	status, _ := h.Server().Fleet().Status(id)
	return status.State
}

func TestUnknownDeviceIsRefusedUnlessTheHubTakesItDown(t *testing.T) {
	h := hubtest.Start(t)
	d := h.Fleet.Device("pi-1")
	if in, _ := connects(h, d, d.ClientConfig()); in || stateOf(t, h, "pi-1") != "" {
		t.Errorf("let in: %v, %q", in, stateOf(t, h, "pi-1"))
	}
}

func TestNewcomerWaitsForApproval(t *testing.T) {
	h := hubtest.Start(t, justInTime)
	op := h.Operator()
	d := h.Fleet.Device("pi-1")
	config := d.ClientConfig()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	refused := func(when string) {
		t.Helper()
		if in, _ := connects(h, d, config); in || stateOf(t, h, "pi-1") != registry.StateQuarantined {
			t.Fatalf("%s: let in: %v; it is %q", when, in, stateOf(t, h, "pi-1"))
		}
	}
	refused("the first time")
	refused("the second time, with a ticket perhaps")
	why, err := op.Why(t.Context(), "pi-1")
	must(t, err)
	if !strings.Contains(why.Verdict, "waits for approval") || len(why.Events) == 0 || why.Events[0].Reason != string(admission.ReasonQuarantined) {
		t.Errorf("%+v", why)
	}
	own, code := askOwn(t, h, d, time.Now())
	if code != http.StatusOK || !strings.Contains(own.Verdict, "waits for approval") {
		t.Errorf("the device itself hears %d %+v", code, own)
	}
	h.Restart()
	refused("after a restart")
	if got, err := h.Operator().ApproveDevice(t.Context(), "pi-1", "bench 3"); err != nil || got.State != registry.StateRegistered {
		t.Fatalf("%+v, %v", got, err)
	}
	if in, _ := connects(h, d, config); !in {
		t.Fatal("refused after its approval")
	}
	if in, resumed := connects(h, d, config); !in || !resumed {
		t.Errorf("in %v, resumed %v", in, resumed)
	}
	_, err = h.Server().Fleet().Revoke(t.Context(), "pi-1", revocation.KeyCompromise, fleet.Actor{Name: "test"})
	must(t, err)
	if in, _ := connects(h, d, config); in || stateOf(t, h, "pi-1") != registry.StateRevoked {
		t.Error("let in after its revocation")
	}
}

func TestDevicesOfConfiguredStationsConnectAtOnce(t *testing.T) {
	h := hubtest.Start(t, justInTime, func(c *server.Config) { c.JustInTime.Activate = []string{certtest.StationName} })
	other := h.Station("bench-2")
	d, stranger := h.Fleet.Device("pi-1"), h.Fleet.Device("pi-2", certtest.WithIssuer(other.Issuer))
	if in, _ := connects(h, d, d.ClientConfig()); !in {
		t.Error("refused at its first connection")
	}
	other.Device("pi-9") // its manifest has the hub take the station up
	if in, _ := connects(h, stranger, stranger.ClientConfig()); in || stateOf(t, h, "pi-2") != registry.StateQuarantined {
		t.Errorf("another station's: let in: %v, %q", in, stateOf(t, h, "pi-2"))
	}
}

func TestWhoIsTakenDown(t *testing.T) {
	h := hubtest.Start(t, justInTime, func(c *server.Config) { c.JustInTime.Waiting = 1 })
	for name, d := range map[string]certtest.Credential{
		"another fleet's": h.Fleet.Foreign().Device("pi-1"),
		"by the hub's CA": h.Fleet.Device("pi-1", certtest.WithIssuer(h.Fleet.Operational)),
		"a service":       h.Fleet.Service("pi-1"),
		"an operator":     h.Fleet.Operator("pi-1"),
	} {
		config := d.ClientConfig()
		config.RootCAs = h.Fleet.Device("x").ClientConfig().RootCAs
		connects(h, d, config)
		if got := stateOf(t, h, "pi-1"); got != "" {
			t.Errorf("%s: it is %s", name, got)
		}
	}
	first, second := h.Fleet.Device("pi-1"), h.Fleet.Device("pi-2")
	connects(h, first, first.ClientConfig())
	connects(h, second, second.ClientConfig())
	if stateOf(t, h, "pi-1") != registry.StateQuarantined || stateOf(t, h, "pi-2") != "" {
		t.Errorf("%q and %q, one may wait", stateOf(t, h, "pi-1"), stateOf(t, h, "pi-2"))
	}
	why, err := h.Operator().Why(t.Context(), "pi-2")
	must(t, err)
	if len(why.Events) == 0 || why.Events[0].Reason != fleet.RefusedForQuarantine {
		t.Errorf("%+v", why)
	}
}

// A hundred boards come for the first time at once, some of them twice: each has one record.
func TestNewcomersComeAtOnce(t *testing.T) {
	h := hubtest.Start(t, justInTime, func(c *server.Config) { c.JustInTime.Waiting = 60 })
	devices := make([]certtest.Credential, 50)
	var all sync.WaitGroup
	for i := range devices {
		devices[i] = h.Fleet.Device("pi-" + string(rune('a'+i%26)) + string(rune('a'+i/26)))
		for range 2 {
			all.Go(func() { connects(h, devices[i], devices[i].ClientConfig()) })
		}
	}
	all.Wait()
	for _, d := range devices { // whoever found no place comes again
		connects(h, d, d.ClientConfig())
		if got := stateOf(t, h, d.Identity.ID); got != registry.StateQuarantined {
			t.Errorf("%s is %q", d.Identity.ID, got)
		}
	}
	if n := h.Server().Fleet().Count()[registry.StateQuarantined]; n != 50 {
		t.Errorf("%d wait", n)
	}
}

func TestAdmissionIsReloaded(t *testing.T) {
	h := hubtest.Start(t)
	d := h.Fleet.Device("pi-1")
	path := filepath.Join(h.Dir, server.ConfigFile)
	text, err := os.ReadFile(path)
	must(t, err)
	for _, mode := range []string{"just-in-time", "registered"} {
		must(t, os.WriteFile(path, []byte(strings.Replace(string(text), "admission: registered", "admission: "+mode, 1)), 0o600))
		h.Server().Reload()
		if connects(h, d, d.ClientConfig()); mode == "just-in-time" && stateOf(t, h, "pi-1") != registry.StateQuarantined {
			t.Errorf("%s: pi-1 is %q", mode, stateOf(t, h, "pi-1"))
		}
		d = h.Fleet.Device("pi-2")
	}
	if got := stateOf(t, h, "pi-2"); got != "" {
		t.Errorf("pi-2 is %s", got)
	}
	if strings.Contains(h.Log(), "need a restart") {
		t.Error("the hub says that it needs a restart for that")
	}
}

func TestSettingsOfAdmissionAreChecked(t *testing.T) {
	for name, change := range map[string]func(*server.Config){
		"another word":   func(c *server.Config) { c.Admission = "everybody" },
		"none":           func(c *server.Config) { c.Admission = "" },
		"nobody waits":   func(c *server.Config) { c.JustInTime.Waiting = 0 },
		"too many":       func(c *server.Config) { c.JustInTime.Waiting = 1 << 20 },
		"no station":     func(c *server.Config) { c.JustInTime.Activate = []string{"bench 1"} },
		"an empty name":  func(c *server.Config) { c.JustInTime.Activate = []string{""} },
		"a good setting": nil,
	} {
		config := server.DefaultConfig(t.TempDir())
		justInTime(&config)
		if change != nil {
			change(&config)
		}
		if err := config.Check(); (err == nil) != (change == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
