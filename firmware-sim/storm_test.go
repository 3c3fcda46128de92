package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/firmware-sim/measure"
	"github.com/fleethub/fleethub/hub/hubtest"
)

func TestBadStormHasItsExitCode(t *testing.T) {
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
		{"--hub 127.0.0.1:1 --devices 1 --tickets 2 --creds " + dir, command.Usage, "--tickets"},
		{"--hub 127.0.0.1:1 --devices 1 --tls-profile none --creds " + dir, command.Usage, "--tls-profile"},
		{"--hub 127.0.0.1:1 --devices 2 --creds " + dir, command.BadConfig, "provisioning batch"},
		{"--hub 127.0.0.1:1 --devices 1 --creds " + dir + "/nowhere", command.NotFound, "provisioning batch"},
		{"--hub 127.0.0.1:1 --devices 1 --creds " + dir, command.Unreachable, "127.0.0.1:1"},
	} {
		_, err := execute(t, "storm", tt.args)
		if code := command.Code(err); code != tt.code || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("storm %s: exit code %d, want %d: %v", tt.args, code, tt.code, err)
		}
	}
}

func execute(t *testing.T, name, args string) ([]byte, error) {
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(new(bytes.Buffer))
	root.SetArgs(append([]string{name}, strings.Fields(args)...))
	root.SilenceErrors, root.SilenceUsage = true, true
	err := root.ExecuteContext(t.Context())
	return out.Bytes(), err
}

func TestStormTellsWhoIsInAndWhoIsNot(t *testing.T) {
	h := hubtest.Start(t)
	dir := t.TempDir()
	for _, id := range []string{"sim-1", "sim-2"} {
		h.Device(id).WriteTo(filepath.Join(dir, id), "device")
	}
	h.Fleet.Device("sim-3").WriteTo(filepath.Join(dir, "sim-3"), "device") // nobody told the hub
	for devices, want := range map[string]int{"2": command.OK, "3": command.Failure} {
		out, err := execute(t, "storm", "--output json --tickets 1 --devices "+devices+" --hub "+h.MQTTAddr()+" --creds "+dir)
		if code := command.Code(err); code != want {
			t.Errorf("%s devices: exit code %d, want %d: %v", devices, code, want, err)
		}
		var s measure.Storm
		if err := json.Unmarshal(out, &s); err != nil || s.Connected != 2 || s.Resumed != 1 || s.Full != 1 || s.Attempts.Max != 1 {
			t.Errorf("%s devices: %s: %v", devices, out, err)
		}
	}
}
