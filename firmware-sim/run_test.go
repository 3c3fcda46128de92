package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/firmware-sim/measure"
	"github.com/fleethub/fleethub/firmware-sim/scenario"
	"github.com/fleethub/fleethub/firmware-sim/swarm"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBadInputHasItsExitCodeAndRemedy(t *testing.T) {
	fleet := certtest.New(t)
	dir := t.TempDir()
	fleet.Device("sim-1").WriteTo(filepath.Join(dir, "sim-1"), "device")
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"--hub nonsense --devices 1 --creds " + dir, command.Usage, "--hub"},
		{"--hub 127.0.0.1:1 --devices 0 --creds " + dir, command.Usage, "--devices"},
		{"--hub 127.0.0.1:1 --devices 1 --size 0 --creds " + dir, command.Usage, "--size"},
		{"--hub 127.0.0.1:1 --devices 1 --duration -1s --creds " + dir, command.Usage, "--duration"},
		{"--hub 127.0.0.1:1 --devices 1 --tls-profile none --creds " + dir, command.Usage, "--tls-profile"},
		{"--hub 127.0.0.1:1 --devices 2 --creds " + dir, command.BadConfig, "provisioning batch"},
		{"--hub 127.0.0.1:1 --devices 1 --creds " + dir + "/nowhere", command.NotFound, "provisioning batch"},
		{"--hub 127.0.0.1:1 --devices 1 --creds " + dir, command.Unreachable, "127.0.0.1:1"},
	} {
		root := newRoot()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(append([]string{"run"}, strings.Fields(tt.args)...))
		root.SilenceErrors, root.SilenceUsage = true, true
		err := root.ExecuteContext(t.Context())
		if code := command.Code(err); code != tt.code || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("run %s: exit code %d, want %d: %v", tt.args, code, tt.code, err)
		}
	}
}

func TestWithoutATerminalProgressIsALine(t *testing.T) {
	var r measure.Recorder
	r.Up.Add(2)
	r.Sent.Add(9)
	r.Acked.Add(8)
	r.Error("lost", "x")
	var out bytes.Buffer
	p := newProgress(&out, scenario.Scenario{Devices: 3}, &r)
	p.phase(swarm.PhasePublishing)
	if want := "publishing: 2 of 3 devices connected, 9 messages sent, 8 acknowledged, 1 errors"; p.line() != want {
		t.Errorf("line is %q, want %q", p.line(), want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.run(ctx)
	if out.Len() != 0 {
		t.Errorf("wrote %q within no time", out.String())
	}
}

func TestBarsEndWithTheRun(t *testing.T) {
	var r measure.Recorder
	var out bytes.Buffer
	for _, duration := range []time.Duration{0, time.Second} {
		p := newProgress(&out, scenario.Scenario{Devices: 3, Rate: 1, Duration: duration}, &r)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		p.bars(ctx) // hangs if a bar that isn't full is waited for
	}
}
