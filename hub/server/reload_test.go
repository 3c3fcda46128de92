package server_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/listener"
)

func TestReloadRefusesAServerCertificateNoDeviceWouldTake(t *testing.T) {
	h := hubtest.Start(t)
	device := h.Device("pi-1")
	foreign := certtest.New(t)
	for name, bad := range map[string]certtest.Credential{
		"a device's":             h.Fleet.Device("pi-9"),
		"an operator's":          h.Fleet.Operator("ann"),
		"of another fleet's hub": foreign.Server(),
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(h.Dir, "tls")
			saved := t.TempDir()
			if err := os.CopyFS(saved, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			bad.WriteTo(dir, "server")
			h.Server().Reload()
			mustDial(t, h, device.ClientConfig())
			for _, file := range []string{"server.crt", "server.key"} {
				data, err := os.ReadFile(filepath.Join(saved, file))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			h.Server().Reload()
			mustDial(t, h, device.ClientConfig())
		})
	}
}

func TestReloadTakesUpANewServerCertificateAndDropsNobody(t *testing.T) {
	h := newTwoStations(t)
	next := h.Fleet.Server("new.example")
	next.WriteTo(filepath.Join(h.Dir, "tls"), "server")
	h.Server().Reload()
	c, err := dial(h.MQTTAddr(), h.ofFirst.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !c.ConnectionState().PeerCertificates[0].Equal(next.Leaf) {
		t.Error("the former server certificate is still presented")
	}
	if !h.first.IsConnectionOpen() || !h.other.IsConnectionOpen() || !h.service.IsConnectionOpen() {
		t.Error("somebody was cut off")
	}
}

func TestReloadTakesUpTheLogLevelAndNamesWhatNeedsARestart(t *testing.T) {
	h := hubtest.Start(t)
	file := filepath.Join(h.Dir, "hub.yaml")
	shipped, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h.Server().Reload()
	}
	write(string(shipped))
	if strings.Contains(h.Log(), "need a restart") {
		t.Error("an unchanged file is said to need a restart")
	}
	changed := strings.NewReplacer("level: info", "level: error", "max_packet_size: 262144", "max_packet_size: 99999", "connect_timeout: 10s", "connect_timeout: 9s", "four_eyes_over: 0", "four_eyes_over: 7").Replace(string(shipped))
	write(changed)
	// The level is error now: what follows is silent, until it is info again.
	quiet := h.Log()
	h.Server().Reload()
	if h.Log() != quiet {
		t.Errorf("the log level was not taken up: %s", strings.TrimPrefix(h.Log(), quiet))
	}
	write(strings.Replace(changed, "level: error", "level: warn", 1))
	if !strings.Contains(h.Log(), `keys="mqtt.max_packet_size, mqtt.connect_timeout, operations.four_eyes_over"`) {
		t.Error("the settings that need a restart are not named")
	}
	write("nonsense: [")
	if !strings.Contains(h.Log(), `what=settings`) {
		t.Error("a bad file is not told of")
	}
}

// reloadWith reloads the hub with hub.yaml as shipped but for the pairs old, new.
func reloadWith(t *testing.T, h *hubtest.Hub, pairs ...string) {
	t.Helper()
	file := filepath.Join(h.Dir, "hub.yaml")
	text, err := os.ReadFile(file)
	must(t, err)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(string(text), pairs[i]) {
			t.Fatalf("hub.yaml has no %q", pairs[i])
		}
	}
	must(t, os.WriteFile(file, []byte(strings.NewReplacer(pairs...).Replace(string(text))), 0o600))
	h.Server().Reload()
}

func TestReloadTakesUpTheTLSProfile(t *testing.T) {
	h := hubtest.Start(t)
	config := h.Device("pi-1").ClientConfig()
	config.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}
	curve := func() tls.CurveID {
		t.Helper()
		c, err := dial(h.MQTTAddr(), config)
		must(t, err)
		defer c.Close()
		return c.ConnectionState().CurveID
	}
	if got := curve(); got == tls.X25519MLKEM768 {
		t.Fatalf("the default profile negotiates %s", got)
	}
	reloadWith(t, h, "tls_profile: default", "tls_profile: pq")
	if got := curve(); got != tls.X25519MLKEM768 {
		t.Errorf("after the reload %s is negotiated", got)
	}
	if strings.Contains(h.Log(), "need a restart") {
		t.Error("it is said to need a restart")
	}
	reloadWith(t, h, "tls_profile: pq", "tls_profile: modern")
	if got := curve(); got != tls.X25519MLKEM768 || !strings.Contains(h.Log(), "not reloaded, the former stays in force") {
		t.Errorf("after the reload of a profile that isn't one %s is negotiated", got)
	}
}

func TestReloadTakesUpLimitsAndTheLifetimeOfTickets(t *testing.T) {
	h := hubtest.Start(t)
	device := h.Device("pi-1")
	config := device.ClientConfig()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	resumed := func() bool {
		t.Helper()
		c, err := dial(h.MQTTAddr(), config)
		must(t, err)
		defer c.Close()
		return c.ConnectionState().DidResume
	}
	resumed()
	if !resumed() {
		t.Fatal("no session is resumed")
	}
	h.Advance(2 * time.Minute)
	reloadWith(t, h, "ticket_lifetime: 24h", "ticket_lifetime: 1m")
	if resumed() {
		t.Error("a ticket of two minutes ago is good for one")
	}
	reloadWith(t, h, "device_burst: 0", "device_burst: 1", "device_rate: 0", "device_rate: 1")
	if c, err := dial(h.MQTTAddr(), device.ClientConfig()); err == nil {
		c.Close()
		t.Error("a second full handshake is beyond the new share")
	}
	if !strings.Contains(h.Log(), "reason="+listener.ReasonDeviceLimit) {
		t.Error("the refusal isn't told")
	}
	if strings.Contains(h.Log(), "need a restart") {
		t.Error("they are said to need a restart")
	}
}
