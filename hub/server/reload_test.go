package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/hubtest"
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
	changed := strings.NewReplacer("level: info", "level: error", "max_connections: 15000", "max_connections: 99", "tls_profile: default", "tls_profile: pq").Replace(string(shipped))
	write(changed)
	// The level is error now: what follows is silent, until it is info again.
	quiet := h.Log()
	h.Server().Reload()
	if h.Log() != quiet {
		t.Errorf("the log level was not taken up: %s", strings.TrimPrefix(h.Log(), quiet))
	}
	write(strings.Replace(changed, "level: error", "level: warn", 1))
	if !strings.Contains(h.Log(), `keys="mqtt.max_connections, mqtt.tls_profile"`) {
		t.Error("the settings that need a restart are not named")
	}
	write("nonsense: [")
	if !strings.Contains(h.Log(), `what=settings`) {
		t.Error("a bad file is not told of")
	}
}
