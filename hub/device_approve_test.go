package main

import (
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/server"
)

func TestNewcomersAreApprovedOnTheCommandLine(t *testing.T) {
	h := hubtest.Start(t, func(c *server.Config) { c.Admission = "just-in-time" })
	comes := func(id string) certtest.Credential {
		t.Helper()
		d := h.Fleet.Device(id)
		client := newClient(h, d)
		if token := client.Connect(); token.Wait() && token.Error() == nil {
			t.Fatalf("%s is let in", id)
		}
		return d
	}
	first := comes("pi-1")
	for _, id := range []string{"pi-2", "pi-3", "pi-4"} {
		comes(id)
	}
	says(t, h, "device list --select state=quarantined", `^pi-1 +quarantined `, `^pi-4 +quarantined `)
	says(t, h, "device show pi-1", `^state +quarantined$`, `^station +bench-1, in no manifest yet$`, `^key in +unproven$`, `- → quarantined by pi-1`)
	says(t, h, "why pi-1", `waits for approval \(hub device approve pi-1\)`)
	says(t, h, "device approve pi-1 --reason bench-3", `^device pi-1 is registered and may connect$`)
	online(t, h, first)
	refuses(t, h, command.Failure, "can't become registered", "device approve pi-1")
	refuses(t, h, command.NotFound, "no such device", "device approve pi-9")
	says(t, h, "device approve --select state=quarantined,id=pi-2|pi-3", `dry run`, `add --confirm`)
	says(t, h, "device approve --select state=quarantined,id=pi-2|pi-3 --confirm", `2 devices`)
	says(t, h, "device revoke pi-4 --reason unspecified --confirm", `revoked`)
	refuses(t, h, command.Failure, "pi-4 is revoked", "device approve pi-4")
	if h.Server().Fleet().Knows("pi-5") {
		t.Error("a device that never came is known")
	}
}

func TestDeviceShowSaysInWhichTPMTheKeyIs(t *testing.T) {
	h := hubtest.Start(t)
	d := h.Fleet.Device("pi-5", certtest.WithTPM())
	ek := strings.Repeat("5a", 32)
	h.RegisterTPM(d, ek)
	says(t, h, "device show pi-5", `^key in +tpm$`, `^TPM +endorsement key `+ek+`$`)
}
