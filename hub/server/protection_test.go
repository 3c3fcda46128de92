package server_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/server"
)

// What was admitted before the demand was made isn't any more: not by a full handshake and
// not by a ticket; and hub why says so.
func TestDemandHoldsForDevicesThatAreConnected(t *testing.T) {
	h := issuing(t)
	b, plain := newBoard(t, h, "pi-5"), h.Device("pi-1")
	unproven, err := renew(t, h, b.Credential, newKey(t))
	must(t, err)
	cache := tls.NewLRUClientSessionCache(4)
	config := unproven.ClientConfig()
	config.ClientSessionCache = cache
	connect := func() (resumed bool, err error) {
		conn, err := dial(h.MQTTAddr(), config)
		if err != nil {
			return false, err
		}
		defer conn.Close()
		return conn.ConnectionState().DidResume, nil
	}
	if _, err := connect(); err != nil {
		t.Fatal(err)
	}
	if resumed, err := connect(); err != nil || !resumed {
		t.Fatalf("resumed %v, %v", resumed, err)
	}
	text, err := os.ReadFile(filepath.Join(h.Dir, server.ConfigFile))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(h.Dir, server.ConfigFile), append(text, "\nkey_protection:\n  pi5: tpm\n"...), 0o600))
	loaded, err := server.LoadConfig(h.Dir, nil)
	must(t, err)
	h.Configure(func(c *server.Config) { c.KeyProtection = loaded.KeyProtection })
	h.Restart()
	if _, err := connect(); err == nil {
		t.Error("its ticket is good still")
	}
	config.ClientSessionCache = nil
	if _, err := connect(); err == nil {
		t.Error("its certificate is good still")
	}
	if !admitted(h, b.Credential) && usable(t, h, "pi-5") > 1 {
		t.Error("the certificate that says that its key is in a TPM is refused")
	}
	if !admitted(h, plain) {
		t.Error("a device of another model is refused")
	}
	answer, err := h.Operator().Why(t.Context(), "pi-5")
	must(t, err)
	if !strings.Contains(answer.Verdict, "must be in a TPM") || len(answer.Events) == 0 || answer.Events[len(answer.Events)-1].Reason == "" {
		t.Errorf("%+v", answer)
	}
}

// A demand that is made while devices are connected, by SIGHUP or by a new model's label, cuts
// those off that don't meet it, and nobody else.
func TestNewDemandCutsThoseOffThatDoNotMeetIt(t *testing.T) {
	for name, demand := range map[string]func(*hubtest.Hub){
		"reload": func(h *hubtest.Hub) {
			path := filepath.Join(h.Dir, server.ConfigFile)
			text, err := os.ReadFile(path)
			must(t, err)
			must(t, os.WriteFile(path, append(text, "\nkey_protection:\n  pi4: tpm\n"...), 0o600))
			h.Server().Reload()
		},
		"label": func(h *hubtest.Hub) {
			h.Configure(func(c *server.Config) { c.KeyProtection = server.KeyProtectionConfig{"pi5": "tpm"} })
			h.Restart()
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := hubtest.Start(t)
			plain, other := h.Device("pi-1"), h.Device("pi-2")
			proved := h.Fleet.Device("pi-5", certtest.WithTPM())
			h.RegisterTPM(proved, strings.Repeat("5a", 32))
			label := func(id, model string) {
				t.Helper()
				_, err := h.Operator().Label(t.Context(), id, admin.LabelRequest{Model: &model})
				must(t, err)
			}
			if name == "label" {
				demand(h)
			} else {
				label("pi-1", "pi4")
			}
			sessions := make(map[string]mqtt.Client)
			for _, d := range []certtest.Credential{plain, other, proved} {
				c, err := connect(t, h.MQTTAddr(), d, nil)
				must(t, err)
				defer c.Disconnect(0)
				sessions[d.Identity.ID] = c
			}
			if name == "label" {
				label("pi-1", "pi5")
			} else {
				demand(h)
			}
			eventually(t, "it is cut off", func() bool { return !sessions["pi-1"].IsConnectionOpen() })
			if admitted(h, plain) {
				t.Error("it comes back")
			}
			for _, id := range []string{"pi-2", "pi-5"} {
				if !sessions[id].IsConnectionOpen() {
					t.Errorf("%s is cut off, too", id)
				}
			}
			answer, err := h.Operator().Why(t.Context(), "pi-1")
			must(t, err)
			if !strings.Contains(answer.Verdict, "must be in a TPM") {
				t.Errorf("%+v", answer)
			}
		})
	}
}

func TestSettingsOfKeyProtectionAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		set  server.KeyProtectionConfig
		want string
	}{
		"none":          {nil, ""},
		"good":          {server.KeyProtectionConfig{"pi5": "tpm", "*": "any"}, ""},
		"another word":  {server.KeyProtectionConfig{"pi5": "TPM"}, "key_protection"},
		"software":      {server.KeyProtectionConfig{"pi5": "software"}, "it is any or tpm"},
		"without model": {server.KeyProtectionConfig{"": "tpm"}, "has no model"},
	} {
		config := server.DefaultConfig(t.TempDir())
		config.KeyProtection = c.set
		if err := config.Check(); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
