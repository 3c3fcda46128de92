package keystore

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/mtls"
)

// childEnv tells this test binary to be an agent that connects twice to the hub at that address, with the credentials
// and the session in the folder it is given.
const childEnv = "KEYSTORE_TEST_HUB"

func TestMain(m *testing.M) {
	if address := os.Getenv(childEnv); address != "" {
		if err := runChild(address, os.Args[1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func runChild(address, dir string) error {
	cred, err := mtls.LoadCredentials(dir, base)
	if err != nil {
		return err
	}
	s := OpenSessions(SessionsConfig{
		Path:    filepath.Join(dir, "tls-session"),
		Binding: Binding{Hub: address, Roots: cred.Roots, Leaf: cred.Leaf},
	})
	for range 2 {
		if _, err := connect(address, cred, tls.VersionTLS13, s, nil); err != nil {
			return err
		}
	}
	return nil
}

// strace runs a child under strace with those options, and returns the child's end.
func strace(t *testing.T, address, dir string, options ...string) *os.ProcessState {
	t.Helper()
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("%v; install the Debian package strace", err)
	}
	cmd := exec.CommandContext(t.Context(), path, append(append([]string{"-f", "-qq"}, options...), os.Args[0], dir)...)
	cmd.Env = append(os.Environ(), childEnv+"="+address, "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	// strace ends the way its program did.
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); err != nil && (!ok || !status.Signaled() || status.Signal() != syscall.SIGKILL) {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return cmd.ProcessState
}

// killedAt runs a child that is killed when it enters its n-th call of a system call, and reports whether it lived long
// enough to get there.
func killedAt(t *testing.T, call string, n int, address, dir string) bool {
	t.Helper()
	return !strace(t, address, dir, "-o", os.DevNull, "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n)).Success()
}

func TestKilledAgentNeverOffersATicketTwice(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"pwrite64", "fchmod", "fsync", "renameat"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			fleet := certtest.New(t)
			h := newHub(t, fleet)
			dir := fleet.Device("pi-1").WriteTo(t.TempDir(), base)
			n := 1
			for ; killedAt(t, call, n, h.address, dir); n++ {
				before, _ := h.tickets()
				if killedAt(t, call, 1000, h.address, dir) {
					t.Fatal("killed again")
				}
				if after, _ := h.tickets(); after == before { // the second connect at the least
					t.Errorf("killed at %s %d, and then not one resumption", call, n)
				}
			}
			if n == 1 {
				t.Errorf("no child was killed at %s: is it still what is called?", call)
			}
			if offered, repeated := h.tickets(); repeated != 0 {
				t.Errorf("of %d tickets offered, %d were offered before", offered, repeated)
			}
		})
	}
}

// The order of the system calls: the file is wiped to the disk, and only then the ClientHello goes out.
func TestWipeIsOnTheDiskBeforeTheClientHello(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	h := newHub(t, fleet)
	dir := fleet.Device("pi-1").WriteTo(t.TempDir(), base)
	trace := filepath.Join(t.TempDir(), "trace")
	strace(t, h.address, dir, "-y", "-o", trace, "-e", "trace=openat,pwrite64,write")
	calls, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	// The second of the child's connects has a ticket. A line begins with the call, whether or not it says how it ended.
	var order []string
	for line := range strings.Lines(string(calls)) {
		switch {
		case strings.Contains(line, "openat(") && strings.Contains(line, `/tls-session"`) && strings.Contains(line, "O_WRONLY"):
			if !strings.Contains(line, "O_DSYNC") {
				t.Errorf("the file isn't opened to be written to the disk: %s", line)
			}
			order = []string{"open"}
		case order == nil:
		case strings.Contains(line, "pwrite64(") && strings.Contains(line, "/tls-session>"):
			order = append(order, "wipe")
		case strings.Contains(line, "write(") && strings.Contains(line, "<socket:"):
			order = append(order, "send")
		}
	}
	if len(order) < 3 || !slices.Equal(order[:3], []string{"open", "wipe", "send"}) {
		t.Errorf("%v; the calls:\n%s", order, calls)
	}
}

// pipe returns the two ends of a loopback connection.
func pipe(t testing.TB) (one, two net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	two, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	one, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return one, two
}
