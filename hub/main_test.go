package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/hubtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hub runs the command line on a running hub's folder, as that hub's first operator.
func hub(t *testing.T, h *hubtest.Hub, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetArgs(append(args, "--dir", h.Dir))
	root.SetOut(&out)
	root.SetErr(io.Discard)
	root.SilenceErrors, root.SilenceUsage = true, true
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// says runs the command line and fails unless it succeeds and says each of wants, a
// regular expression.
func says(t *testing.T, h *hubtest.Hub, args string, wants ...string) {
	t.Helper()
	out, err := hub(t, h, strings.Fields(args)...)
	if err != nil {
		t.Errorf("hub %s: %v", args, err)
	}
	for _, want := range wants {
		if !regexp.MustCompile("(?m)" + want).MatchString(out) {
			t.Errorf("hub %s doesn't say %q but\n%s", args, want, out)
		}
	}
}

const patience = 20 * time.Second

func newClient(h *hubtest.Hub, device certtest.Credential) mqtt.Client {
	config := device.ClientConfig()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	return mqtt.NewClient(mqtt.NewClientOptions().AddBroker("ssl://" + h.MQTTAddr()).SetClientID(device.Identity.ID).
		SetProtocolVersion(4).SetTLSConfig(config).SetConnectTimeout(patience).SetAutoReconnect(false))
}

// online connects a device until the end of the test.
func online(t *testing.T, h *hubtest.Hub, device certtest.Credential) mqtt.Client {
	t.Helper()
	client := newClient(h, device)
	if token := client.Connect(); !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatalf("connect: %v", token.Error())
	}
	t.Cleanup(func() { client.Disconnect(100) })
	return client
}

func TestIssuerCommands(t *testing.T) {
	h := hubtest.Start(t)
	bench2 := h.Station("bench-2")
	device := online(t, h, bench2.Device("pi-2"))
	online(t, h, h.Device("pi-1"))
	says(t, h, "issuer list", `^NAME +KIND +DEVICES +ONLINE`, `^bench-1 +factory +1 +1 `, `^bench-2 +factory +1 +1 `, `^hub +\S+ +0 +0 `)
	affected := `^pi-2 +device +(registered|active) +127\.0\.0\.1:\d+$`
	says(t, h, "issuer rehearse-removal bench-2", `^without issuer bench-2 .*: 1 could not connect any more, 1 connection would be cut$`, affected)
	says(t, h, "issuer remove bench-2", affected, `^nothing was changed; add --confirm`)
	if !device.IsConnectionOpen() {
		t.Fatal("a dry run cut a device off")
	}
	says(t, h, "issuer rehearse-removal hub", `can't be removed while the hub runs`)
	says(t, h, "issuer remove bench-2 --reason stolen --confirm", `^issuer bench-2 .* is no longer trusted$`, `^  sessions closed +1, the last at `, `^  disconnected +device/pi-2$`, `issuers/removed/bench-2-[0-9a-f]+\.crt$`)
	says(t, h, "audit list", `issuer\.remove +issuer bench-2 +requested .* stolen`, `issuer\.remove +issuer bench-2 +done .* stolen`)
	for args, code := range map[string]int{"issuer remove bench-2 --confirm": command.NotFound, "issuer rehearse-removal nobody": command.NotFound, "issuer remove hub --confirm": command.Failure} {
		if _, err := hub(t, h, strings.Fields(args)...); command.Code(err) != code {
			t.Errorf("hub %s: exit code %d (%v), want %d", args, command.Code(err), err, code)
		}
	}
	// Undone as the help says.
	moved, err := filepath.Glob(filepath.Join(h.Dir, "issuers", "removed", "bench-2-*.crt"))
	if err != nil || len(moved) != 1 {
		t.Fatalf("%v, %v", moved, err)
	}
	if err := os.Rename(moved[0], bench2.File()); err != nil {
		t.Fatal(err)
	}
	h.Server().Reload()
	says(t, h, "issuer list", `^bench-2 +factory +1 +0 `)
}

func TestTicketsCommands(t *testing.T) {
	h := hubtest.Start(t)
	online(t, h, h.Device("pi-1"))
	says(t, h, "tickets show", `^[0-9a-f]{4} .* seals new tickets$`, `^a ticket is good for 24h0m0s$`, `: 1 compact tickets made, 0 others made, 0 compact accepted, 0 rejected$`)
	says(t, h, "tickets rotate --reason drill", `seals new tickets$`, `opens tickets made with it$`)
	out, err := hub(t, h, "tickets", "rotate", "--drop", "--output", "json")
	var state admin.TicketState
	if parseErr := json.Unmarshal([]byte(out), &state); err != nil || parseErr != nil || len(state.Keys) != 1 || state.Minted != 1 {
		t.Errorf("%v, %v, %+v of %s", err, parseErr, state, out)
	}
	says(t, h, "audit list", `tickets\.rotate +ticket keys +done .* drill$`, `tickets\.drop +ticket keys +done`)
}

func TestDeviceShowHasTheAccountOfItsHandshakes(t *testing.T) {
	h := hubtest.Start(t)
	device := h.Device("pi-1")
	says(t, h, "device show pi-1", `^handshakes +none since the hub started$`)
	online(t, h, device)
	says(t, h, "device show pi-1",
		`^online +from 127\.0\.0\.1:\d+ since .*, TLS 1\.3 TLS_AES_128_GCM_SHA256 \w+, resumed false$`,
		`^handshakes +1 full, 0 resumed, 0 refused since .*; \d+ bytes up, \d+ down$`,
		`^last handshake +.*, full, TLS 1\.3 TLS_AES_128_GCM_SHA256 \w+, \d+ bytes up, \d+ down, `)
	if _, err := hub(t, h, "device", "suspend", "pi-1"); err != nil {
		t.Fatal(err)
	}
	if token := newClient(h, device).Connect(); !token.WaitTimeout(patience) || token.Error() == nil {
		t.Fatal("a suspended device connected")
	}
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		if out, _ := hub(t, h, "device", "show", "pi-1"); strings.Contains(out, "1 refused") {
			break
		}
		if time.Since(began) > patience {
			t.Fatal("the refusal isn't accounted for")
		}
	}
	says(t, h, "device show pi-1", `^last refusal +.*, suspended, from 127\.0\.0\.1:\d+ under this name$`)
}
