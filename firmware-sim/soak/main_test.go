// Package soak holds no program: it is the judge of the hub. Its tests run the real hub binary under load, pull the plug
// again and again (SIGKILL, and a power cut of the file system it writes to), and hold what every client saw against a
// ledger that the hub cannot reach. Others starve it of disk, memory, descriptors and time, or send it nonsense, and look
// whether anybody else noticed.
//
// The clients are this package's own: frames and session model (what an MQTT client must keep and send again) share no
// code with the hub, so that one mistake can't hide in both.
//
// Environment: SOAK_KILLS (plugs pulled per soak; 10), SOAK_CONNECTS (malformed CONNECTs; 1,500), SOAK_STOP (how long the
// hub is stopped; 4s), SOAK_FUZZ (how long the read path is fuzzed; 5s), SOAK_SEED (of what is random; the time),
// SOAK_BIN (a folder with built hub and provisioning to judge; they are built), SOAK_KEEP (where a failed test leaves the
// hub's folder and log; nowhere). `make soak` sets the first three to what the hub has to stand.
//
// It needs root: file systems are mounted, in a mount namespace of the test's own that ends with it whatever happens.
package soak

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// inNamespace, in the environment, says that this process already has a mount namespace of its own.
const inNamespace = "SOAK_NAMESPACE"

// shared is the fleet that TestMain makes and every test copies.
var shared *site

func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) == "" {
		os.Exit(again())
	}
	code, err := makeSiteAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		code = 1
	}
	os.Exit(code)
}

// again runs this program once more in a mount namespace of its own: what is mounted there is gone when it ends, even if
// it is killed.
func again() (code int) {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		return 1
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak: a mount namespace is needed, so run the tests as root:", err)
		return 1
	}
	return 0
}

// makeSiteAndRun builds the programs, makes the fleet and runs the tests.
func makeSiteAndRun(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "fleethub-soak-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	bin := os.Getenv("SOAK_BIN")
	if bin == "" {
		bin = filepath.Join(dir, "bin")
		build := exec.Command("go", "build", "-trimpath", "-o", bin+"/", "./hub", "./provisioning")
		build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("build the programs: %w\n%s", err, out)
		}
	}
	if shared, err = newSite(bin, dir); err != nil {
		return 0, err
	}
	code = m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			return 0, err
		}
	}
	return code, nil
}

// count returns a whole number from the environment.
func count(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is not a whole number above 0", name, text)
	}
	return n
}

// duration returns a duration from the environment.
func duration(t *testing.T, name string, otherwise time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		t.Fatalf("%s=%q is not a duration such as 30s", name, text)
	}
	return d
}
