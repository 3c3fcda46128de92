package e2e

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// demo starts `make run` in a folder of the test's. The caller ends it.
func demo(t *testing.T, dir string, variables ...string) *process {
	t.Helper()
	// A make that runs this test must not hand its own job server and flags on.
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "MFLAGS") })
	env = append(env, "DEV_DIR="+dir, "MQTT_ADDR=127.0.0.1:0", "HTTPS_ADDR=127.0.0.1:0", "METRICS_ADDR=127.0.0.1:0")
	p, err := startProcess(repository, filepath.Join(t.TempDir(), "demo.log"), append(env, variables...), "make", "run")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

// message is a line of the live output with a device's message in it.
const message = `(?m)^\d\d:\d\d:\d\d +\d+/s .*d/[a-z]+-\d+/tele/`

// processesOf returns the command lines of the processes that mention dir.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(data), dir) {
			found = append(found, strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return found
}

func signalGroup(t *testing.T, p *process, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(-p.cmd.Process.Pid, signal); err != nil {
		t.Fatal(err)
	}
}

func awaitEnd(t *testing.T, p *process, dir string) {
	t.Helper()
	if _, err := p.await(); err != nil {
		t.Error(err)
	}
	if left := processesOf(t, dir); len(left) > 0 {
		t.Errorf("make run left behind:\n%s\nafter printing\n%s", strings.Join(left, "\n"), p.output())
	}
}

// The folder is one story: made, reused, survived by a kill, found half-made.
func TestMakeRun(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "fleet")

	p := demo(t, dir)
	for _, pattern := range []string{message, "bin/hub device list --dir ", "bin/hub watch ", "bin/hub device revoke "} {
		if err := p.sees(pattern); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.sees(`(?m)d/pi-1/tele/`); err != nil {
		t.Errorf("this machine's own readings: %v", err)
	}
	// Ctrl-C at a terminal goes to make and the script alike.
	signalGroup(t, p, syscall.SIGINT)
	awaitEnd(t, p, dir)

	f := &fleet{t: t, dir: dir}
	root, err := os.ReadFile(f.path("hub", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	p = demo(t, dir)
	if err := p.sees(message); err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(f.path("hub", "ca.crt"))
	if err != nil || string(again) != string(root) || !strings.Contains(p.output(), "Using the fleet in") {
		t.Errorf("the second run did not reuse %s (%v):\n%s", dir, err, p.output())
	}
	// kill -9 of the script: what it started must not outlive it.
	signalGroup(t, p, syscall.SIGKILL)
	<-p.done
	if !until(func() bool { return len(processesOf(t, dir)) == 0 }) {
		t.Fatalf("a killed run left behind:\n%s", strings.Join(processesOf(t, dir), "\n"))
	}

	// A folder that was being made when its run was killed.
	if err := os.Remove(f.path(".made")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(f.path("station")); err != nil {
		t.Fatal(err)
	}
	p = demo(t, dir)
	if err := p.sees(message); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, p, dir)
}

func TestMakeRunNamesATakenPort(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	taken := listener.Addr().String()
	for variable, flag := range map[string]string{"MQTT_ADDR": "--mqtt-addr", "HTTPS_ADDR": "--https-addr", "METRICS_ADDR": "--metrics-addr"} {
		p := demo(t, filepath.Join(t.TempDir(), "fleet"), variable+"="+taken)
		code, err := p.await()
		if err != nil {
			t.Fatal(err)
		}
		want := regexp.MustCompile(`demo: ` + regexp.QuoteMeta(taken) + ` is taken.*` + flag + `.*make run ` + variable + `=`)
		if code == 0 || !want.MatchString(p.output()) {
			t.Errorf("%s taken: exit code %d and\n%s", variable, code, p.output())
		}
	}
}

func TestMakeRunLeavesForeignFilesAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := demo(t, dir)
	code, err := p.await()
	if err != nil || code == 0 || !strings.Contains(p.output(), "DEV_DIR=") {
		t.Errorf("exit code %d, %v, and\n%s", code, err, p.output())
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}
