package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/device-agent/agent"
	"github.com/fleethub/fleethub/device-agent/keystore"
	"github.com/fleethub/fleethub/device-agent/link"
)

func TestStatusSaysWhatAPersonAsks(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	base := agent.Report{Device: "pi-1", Identity: "spiffe://fleet.example/device/pi-1", Fingerprint: "abcd", Issuer: "bench-1", NotBefore: now, NotAfter: now.AddDate(10, 0, 0)}
	connected := agent.Snapshot{Written: now, PID: 7, Started: now, Link: link.Status{
		State: link.StateConnected, Since: now, Hub: "hub:8883", Attempts: 5, Full: 1, Resumed: 3,
		Handshake:  &link.Handshake{Protocol: "TLS 1.3", Suite: "TLS_AES_128_GCM_SHA256", Curve: "CurveP256", Resumed: true, Bytes: link.Traffic{Up: 412, Down: 371}},
		Handshakes: link.Traffic{Up: 2001, Down: 3002}, Traffic: link.Traffic{Up: 4003, Down: 5004},
		Profile: mtls.ProfileConstrained, Chain: link.ChainLeaf,
	}, Tickets: &keystore.SessionStats{Protection: keystore.ProtectionSealed, Ready: true, Since: now}}
	refused := agent.Snapshot{Written: now, Link: link.Status{
		State: link.StateWaiting, NextAttempt: now.Add(time.Minute), Hub: "hub:8883",
		LastFailure: &link.Failure{Kind: link.KindRefused, Reason: "the hub refused", Advice: "ask it", At: now},
		LastRefusal: &link.Failure{Kind: link.KindRefused, Reason: "the hub refused", Advice: "ask it", At: now},
		Chain:       link.ChainFull,
	}, Tickets: &keystore.SessionStats{Protection: keystore.ProtectionMemory, Problem: "the TPM seals no TLS sessions"}}
	plain := agent.Snapshot{Written: now, Tickets: &keystore.SessionStats{Protection: keystore.ProtectionFile}}
	tests := []struct {
		name   string
		change func(r *agent.Report)
		says   []string
	}{
		{"never ran", func(*agent.Report) {}, []string{"pi-1 (spiffe://fleet.example/device/pi-1)", "abcd", "issued by bench-1, valid 2026-03-01T12:00:00Z to 2036-03-01T12:00:00Z", "NOT RUNNING; none has run"}},
		{"connected", func(r *agent.Report) { r.Running, r.Last = true, &connected }, []string{"running since", "process 7", "hub:8883", "connected since", "1 full, 3 resumed, of 5 attempts; 2001 bytes up, 3002 down", "4003 bytes up, 5004 down",
			"TLS 1.3 TLS_AES_128_GCM_SHA256 CurveP256, resumed, 412 bytes up, 371 down", "profile constrained; a full handshake presents the leaf certificate alone",
			"ready for the next connect since 2026-03-01T12:00:00Z, saved, sealed by the TPM", "none since the start"}},
		{"stopped", func(r *agent.Report) { r.Last = &connected }, []string{"NOT RUNNING; what follows is as of"}},
		{"refused", func(r *agent.Report) { r.Running, r.Last = true, &refused }, []string{"next attempt at 2026-03-01T12:01:00Z", "last refusal", "the hub refused: ask it", "presents the whole certificate chain",
			"none for the next connect, not saved: in memory only", "the TPM seals no TLS sessions"}},
		{"before the first attempt", func(r *agent.Report) { r.Running, r.Last = true, &plain }, []string{"presents nothing so far", "saved in a file like the key's"}},
		{"just started", func(r *agent.Report) { r.Running = true }, []string{"running; it has written no status yet"}},
		{"damaged", func(r *agent.Report) { r.Unreadable = "status.json is damaged" }, []string{"status.json is damaged"}},
		{"expired", func(r *agent.Report) { r.Problem = "it expired" }, []string{"it expired"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := base
			tt.change(&r)
			var b bytes.Buffer
			if err := writeReport(&b, r, now); err != nil {
				t.Fatal(err)
			}
			for _, part := range tt.says {
				if !strings.Contains(b.String(), part) {
					t.Errorf("doesn't say %q:\n%s", part, b.String())
				}
			}
		})
	}
}

func TestBadInputHasItsExitCode(t *testing.T) {
	dir := certtest.New(t).Device("pi-1").WriteTo(t.TempDir(), "device")
	for _, tt := range []struct {
		args string
		code int
	}{
		{"run --dir " + dir + " --hub nonsense", command.Usage},
		{"run --dir " + dir + " --hub hub:8883 --interval 1ms", command.Usage},
		{"run --dir " + dir + " --hub hub:8883 --refused-retry 0s", command.Usage},
		{"run --dir " + dir + " --hub hub:8883 --tpm on", command.Usage},
		{"run --dir " + dir + " --hub hub:8883 --tls-profile modern", command.Usage},
		{"run --dir " + dir + "/nowhere --hub hub:8883", command.NotFound},
		{"run --dir " + dir + "/ca.crt --hub hub:8883", command.BadConfig},
		{"status --dir " + dir + "/nowhere", command.NotFound},
		{"status --dir " + dir, command.OK},
		{"status --output json --dir " + dir, command.OK},
	} {
		root := newRoot()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(strings.Fields(tt.args))
		if code := command.Code(root.Execute()); code != tt.code {
			t.Errorf("device-agent %s: exit code %d, want %d", tt.args, code, tt.code)
		}
	}
}
