package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fleet is a hub and a factory station made by the real programs, in a folder that goes with the test.
type fleet struct {
	t   *testing.T
	dir string
	at  addresses // of the hub, once it serves
	hub *process
}

// newFleet makes a hub's folder and a station that may issue. The hub doesn't run yet.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: t.TempDir()}
	f.run("hub", "init", "--dir", f.path("hub"), "--hostname", "localhost", "--hostname", "127.0.0.1")
	var made struct {
		KeyHash string `json:"key_sha256"`
	}
	if err := json.Unmarshal([]byte(f.run("provisioning", "init", "--dir", f.path("station"), "--name", "bench-1", "--output", "json")), &made); err != nil {
		t.Fatal(err)
	}
	f.run("hub", "station", "authorize", "--dir", f.path("hub"), "--csr", f.path("station", "station.csr"), "--key-sha256", made.KeyHash, "--out", f.path("station.crt"))
	f.run("provisioning", "accept", "--dir", f.path("station"), f.path("station.crt"))
	return f
}

// with returns the same fleet for a subtest.
func (f *fleet) with(t *testing.T) *fleet {
	c := *f
	c.t = t
	return &c
}

func (f *fleet) path(elem ...string) string {
	return filepath.Join(append([]string{f.dir}, elem...)...)
}

// run runs a program that must succeed, and returns its standard output.
func (f *fleet) run(program string, args ...string) string {
	f.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		f.t.Fatalf("%s: %v\n%s%s", cmd, err, &stdout, &stderr)
	}
	return stdout.String()
}

// issue provisions devices, each into devices/ID.
func (f *fleet) issue(ids ...string) {
	f.t.Helper()
	for _, id := range ids {
		f.run("provisioning", "issue", "--dir", f.path("station"), "--id", id, "--out", f.device(id))
	}
}

// device is the credential folder of a device.
func (f *fleet) device(id string) string { return f.path("devices", id) }

// service issues the certificate of a backend application and returns its credential folder.
func (f *fleet) service(name string) string {
	f.t.Helper()
	f.run("hub", "service", "issue", name, "--dir", f.path("hub"), "--out", f.path("services", name))
	return f.path("services", name)
}

// serve starts the hub on free ports, and waits until it listens.
func (f *fleet) serve() {
	f.t.Helper()
	f.hub = background(f.t, "hub", "serve", "--dir", f.path("hub"),
		"--mqtt-addr", "127.0.0.1:0", "--https-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	at, err := f.hub.listening(f.path("hub"))
	if err != nil {
		f.t.Fatal(err)
	}
	f.at = at
}

// restart stops the hub as systemd would and starts it again.
func (f *fleet) restart() {
	f.t.Helper()
	if code, err := f.hub.stop(); err != nil || code != 0 {
		f.t.Fatalf("hub stopped with exit code %d, %v:\n%s", code, err, f.hub.output())
	}
	f.serve()
}

// register hands the hub the manifest of what was issued since the last one.
func (f *fleet) register() {
	f.t.Helper()
	manifest := f.path("manifest")
	_ = os.Remove(manifest)
	f.run("provisioning", "manifest", "--dir", f.path("station"), "--out", manifest)
	f.run("hub", "manifest", "import", manifest, "--dir", f.path("hub"))
}

// device states and list as `hub device ... --output json` shows them.
type deviceRecord struct {
	ID    string `json:"id"`
	State string `json:"state"`
}

func (f *fleet) show(id string) deviceRecord {
	f.t.Helper()
	var d deviceRecord
	out := f.run("hub", "device", "show", id, "--dir", f.path("hub"), "--output", "json")
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		f.t.Fatalf("hub device show %s: %v\n%s", id, err, out)
	}
	return d
}

// awaitState waits until the hub shows the device in state.
func (f *fleet) awaitState(id, state string) {
	f.t.Helper()
	var last deviceRecord
	if !until(func() bool { last = f.show(id); return last.State == state }) {
		f.t.Fatalf("device %s is %q, not %q, after %v", id, last.State, state, patience)
	}
}

// port is the port of an address that the hub listens on.
func port(address string) string {
	return address[strings.LastIndexByte(address, ':')+1:]
}
