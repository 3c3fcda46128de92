package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/server"
)

// write puts a file into a folder and returns its path.
func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// fails runs the command line and fails unless it exits with that code and says that.
func fails(t *testing.T, h *hubtest.Hub, code int, want string, args ...string) {
	t.Helper()
	_, err := hub(t, h, args...)
	if command.Code(err) != code || err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("hub %s: exit code %d, want %d; %v, want %q", strings.Join(args, " "), command.Code(err), code, err, want)
	}
}

func TestPolicyReloadTakesFromConnectedClientsWhatTheFileNoLongerAllows(t *testing.T) {
	h := hubtest.Start(t)
	says(t, h, "policy show", `^\d+ rules in force since `, `^from built-in$`)
	device := online(t, h, h.Device("pi-1"))
	got := make(chan string, 10)
	if token := device.Subscribe("d/pi-1/cmd/#", 0, func(_ mqtt.Client, m mqtt.Message) { got <- m.Topic() }); !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatal(token.Error())
	}
	file := write(t, h.Dir, server.PolicyFile, string(policy.Shipped())+"\n  - {rule: no-commands, role: device, deny: subscribe, topics: 'd/${id}/cmd/#'}\n")
	says(t, h, "policy reload --reason drill", `^from `+file+`$`, `^the rules are changed; of 1 session, 1 subscription removed from connected clients, 0 from stored ones$`, `^  device/pi-1  d/pi-1/cmd/#$`)
	says(t, h, "audit list", `policy\.reload +policy +done .*drill`)
	says(t, h, "policy explain pi-1 subscribe d/pi-1/cmd/#", `^DENIED: device pi-1, subscribe "d/pi-1/cmd/#"$`, `can match what rule \d+ \(no-commands\) denies`, `protection software`, `^  the device is (registered|active);`)
	says(t, h, "policy explain backend receive $SYS/broker/uptime --role service", `^allowed: service backend`, `certificate isn't known`)
	if !device.IsConnectionOpen() {
		t.Error("the device was cut off")
	}

	// A mistake, and a file that is gone, change nothing and are told.
	write(t, h.Dir, server.PolicyFile, "version: 1\nrules: [{rule: x}]\n")
	fails(t, h, command.Failure, "allow or deny", "policy", "reload")
	says(t, h, "policy show", `^the file as it was at the last reload is NOT in force: .*allow or deny`)
	says(t, h, "audit list", `policy\.reload +policy +refused`)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	h.Server().Reload()
	says(t, h, "policy show", `is gone: put it back`)
	says(t, h, "policy explain pi-1 subscribe d/pi-1/cmd/#", `^DENIED`)

	// And at a signal, it comes back.
	write(t, h.Dir, server.PolicyFile, string(policy.Shipped()))
	h.Server().Reload()
	says(t, h, "policy explain pi-1 subscribe d/pi-1/cmd/#", `^allowed`)
	before, _ := hub(t, h, "audit", "list")
	h.Server().Reload()
	if after, _ := hub(t, h, "audit", "list"); strings.Count(after, "policy.reload") != strings.Count(before, "policy.reload") {
		t.Error("a reload of what is in force is in the audit log")
	}
	fails(t, h, command.NotFound, "nobody", "policy", "explain", "nobody", "publish", "a")
	fails(t, h, command.Usage, "read", "policy", "explain", "pi-1", "read", "a")
	fails(t, h, command.Usage, "--model", "policy", "explain", "pi-1", "publish", "a", "--model", "pi4")
}

func TestAHubWithABadPolicyDoesntStart(t *testing.T) {
	h := hubtest.Start(t)
	config, err := server.LoadConfig(h.Dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	config.Policy.File = "rules.yaml"
	if _, _, err := server.ReadPolicy(config); err == nil || !strings.Contains(err.Error(), "rules.yaml") {
		t.Errorf("a file that is named and isn't there: %v", err)
	}
	write(t, h.Dir, "rules.yaml", "version: 1\nrules: [nonsense]\n")
	if _, err := server.New(config, os.Stderr); command.Code(err) != command.BadConfig || !strings.Contains(err.Error(), "rules.yaml") {
		t.Errorf("exit code %d, %v", command.Code(err), err)
	}
}

func TestPolicyFilesAreCheckedAndTestedWithoutAHub(t *testing.T) {
	h := hubtest.Start(t)
	dir := t.TempDir()
	run := func(args ...string) (string, error) {
		t.Helper()
		root := newRoot()
		var out strings.Builder
		root.SetArgs(args)
		root.SetOut(&out)
		root.SetErr(&strings.Builder{})
		root.SilenceErrors, root.SilenceUsage = true, true
		err := root.ExecuteContext(t.Context())
		return out.String(), err
	}
	rules := write(t, dir, "policy.yaml", `version: 1
rules:
- {rule: all, role: device, allow: subscribe, topics: 'd/+/cmd/#'}
- {rule: tpm, role: device, allow: publish, when: {protection: tpm, ou: pump}, topics: 'd/${id}/tele/${label.line}'}
`)
	if out, err := run("policy", "check", rules); err != nil || !strings.Contains(out, "good, 2 rules") || !strings.Contains(out, "warning: rule 1") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := run("policy", "check", write(t, dir, "bad.yaml", "version: 1\nrules: [{rule: a}]\n")); command.Code(err) != command.BadConfig {
		t.Errorf("%v", err)
	}
	if _, err := run("policy", "check", filepath.Join(dir, "none.yaml")); command.Code(err) != command.NotFound {
		t.Errorf("%v", err)
	}
	good := write(t, dir, "good.yaml", "tests:\n- {who: {role: device, id: a, ou: pump, protection: tpm, label: {line: b}}, by: tpm, allowed: {publish: d/a/tele/b}}\n")
	if out, err := run("policy", "test", good, "--policy", rules); err != nil || !strings.Contains(out, "1 decision by "+rules+", 0 not as expected") {
		t.Errorf("%v: %s", err, out)
	}
	out, err := run("policy", "test", good, "--dir", h.Dir)
	if command.Code(err) != command.Failure || !strings.Contains(out, `expected allowed by tpm, is denied`) && !strings.Contains(out, "expected allowed by tpm, is allowed") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = run("policy", "explain", "a", "publish", "d/a/tele/b", "--policy", rules, "--ou", "pump", "--protection", "tpm", "--label", "line=b")
	if err != nil || !strings.Contains(out, "allowed: device a") || !strings.Contains(out, "rule 2 (tpm) allows it") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = run("policy", "explain", "a", "publish", "d/a/tele/b", "--policy", rules, "--protection", "software")
	if err != nil || !strings.Contains(out, "DENIED") {
		t.Errorf("%v: %s", err, out)
	}
	made := filepath.Join(dir, "hub")
	if _, err := run("init", "--dir", made); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(made, server.PolicyFile)); err != nil || string(data) != string(policy.Shipped()) {
		t.Errorf("hub init wrote another policy: %v", err)
	}
}
