package authority_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/authority"
)

// childEnv tells this test binary to be a program that installs the CA in that file.
const childEnv = "AUTHORITY_TEST_CHILD"

func TestMain(m *testing.M) {
	if file := os.Getenv(childEnv); file != "" {
		runtime.LockOSThread() // strace counts the calls of each thread by itself
		if err := install(os.Args[1], file); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func install(dir, file string) error {
	certs, err := pemfile.ReadCertificates(file)
	if err != nil {
		return err
	}
	return authority.In(dir, cakey.Opener{}).Install(certs[0], certtest.TrustDomain, time.Now())
}

// killedAt runs an installation that is killed, as by kill -9, when it enters its n-th call
// of a system call, and reports whether it lived long enough to get there.
func killedAt(t *testing.T, call string, n int, dir, file string) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], dir)
	cmd.Env = append(os.Environ(), childEnv+"="+file, "GORACE=atexit_sleep_ms=0")
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("%v; install the Debian package strace", err)
	}
	cmd.Args = append([]string{"strace", "-f", "-qq", "-o", os.DevNull, "-e", "trace=" + call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n)}, cmd.Args...)
	cmd.Path = path
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return true
}

// Wherever the plug is pulled, the hub signs by one of the two CAs, what it signs is
// trusted, and doing it again completes the change.
func TestKilledInstallationIsCompleted(t *testing.T) {
	for _, call := range []string{"renameat", "linkat", "unlinkat", "fsync"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			n := 1
			for ; ; n++ {
				h := newHub(t)
				former, next := h.Operational.Certificate(), h.ask("hub-2")
				file := filepath.Join(t.TempDir(), "hub-2.crt")
				must(t, pemfile.WriteCertificates(file, next))
				killed := killedAt(t, call, n, h.dir, file)
				when := fmt.Sprintf("killed at %s %d", call, n)
				issuer, err := h.Issuer()
				if err != nil {
					t.Fatalf("%s: %v", when, err)
				}
				all, err := h.List()
				must(t, err)
				trusted := false
				for _, ca := range all {
					trusted = trusted || ca.State.Trusted() && ca.Certificate.Equal(issuer.Certificate())
				}
				if !trusted {
					t.Errorf("%s: it signs by a CA that isn't trusted", when)
				}
				must(t, install(h.dir, file))
				h.changed(former, next, when)
				if !killed {
					break
				}
			}
			if n == 1 {
				t.Errorf("no installation was killed at %s: is it still what the package calls?", call)
			}
		})
	}
}
