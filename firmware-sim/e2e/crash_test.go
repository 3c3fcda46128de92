package e2e

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// changes are the system calls by which a program changes what a power cut would leave behind.
var changes = []string{"openat", "mkdirat", "write", "pwrite64", "fsync", "fdatasync", "syncfs", "ftruncate", "fchmod", "renameat", "linkat", "unlinkat"}

// killedAt returns a command that is killed, as by kill -9, when it enters its n-th call of syscall.
func killedAt(syscall string, n int, program string, args ...string) *exec.Cmd {
	strace := []string{"-f", "-qq", "-o", os.DevNull, "-e", "trace=" + syscall,
		"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", syscall, n), program}
	return exec.Command("strace", append(strace, args...)...)
}

// wasKilled reports whether a command that killedAt made met its end; it fails the test for any other failure.
func wasKilled(t *testing.T, cmd *exec.Cmd) bool {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	// strace ends the way its program did.
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return true
}

// sweep runs a command again and again, in a folder that prepare makes, and kills it at the first, second, ... of each of
// the calls by which it changes the disk, until it comes through. After every kill, after is told to repeat and verify.
func sweep(t *testing.T, prepare func(dir string) (program string, args []string), after func(t *testing.T, dir, point string)) {
	kills := 0
	for _, call := range changes {
		for n := 1; ; n++ {
			dir := filepath.Join(t.TempDir(), "crash")
			program, args := prepare(dir)
			if !wasKilled(t, killedAt(call, n, program, args...)) {
				break
			}
			kills++
			after(t, dir, fmt.Sprintf("%s %d", call, n))
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	if kills == 0 {
		t.Fatal("the command was never killed: does it still write files by the calls in changes?")
	}
	t.Logf("held after kill -9 at %d points", kills)
}

// repeat runs a command again after its first run was killed. It must succeed; or say that the first had finished, and
// then the caller's checks tell whether that is true.
func repeat(t *testing.T, point, program string, args ...string) {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "already") {
		t.Errorf("killed at %s, then repeated: %v\n%s", point, err, out)
	}
}

func checkPair(t *testing.T, point, dir, base string) {
	t.Helper()
	key, err := pemfile.ReadKey(filepath.Join(dir, base+".key"))
	if err != nil {
		t.Errorf("after %s: %v", point, err)
		return
	}
	chain, err := pemfile.ReadCertificates(filepath.Join(dir, base+".crt"))
	if err != nil {
		t.Errorf("after %s: %v", point, err)
		return
	}
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(chain[0].PublicKey) {
		t.Errorf("after %s: %s/%s.crt is not the certificate of its key", point, dir, base)
	}
}

// checkNoLeftovers fails for hidden or temporary files: what a killed run left, the repeated one clears away.
func checkNoLeftovers(t *testing.T, point, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if name := filepath.Base(path); err == nil && path != dir && (strings.HasPrefix(name, ".") || strings.Contains(name, "tmp")) {
			t.Errorf("after %s: leftover %s", point, path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// copyFolder copies a folder with its permissions, on which the programs insist.
func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
}

func TestKilledInitIsSafeToRepeat(t *testing.T) {
	t.Parallel()
	init := func(dir string) (string, []string) { return "hub", []string{"init", "--dir", dir} }
	sweep(t, init, func(t *testing.T, dir, point string) {
		program, args := init(dir)
		repeat(t, point, program, args...)
		for _, pair := range [][2]string{{"root", "root"}, {"ca", "operational"}, {"tls", "server"}, {"operator", "operator"}} {
			checkPair(t, point, filepath.Join(dir, pair[0]), pair[1])
		}
		checkNoLeftovers(t, point, dir)
		// The pieces belong together: the root of one run must not lie beside the issuer of another.
		checkChain(t, point, filepath.Join(dir, "root", "root.crt"), filepath.Join(dir, "operator", "operator.crt"))
	})
}

// checkChain fails unless the chain in a certificate file leads to the root in another.
func checkChain(t *testing.T, point, rootFile, chainFile string) {
	t.Helper()
	root, err := pemfile.ReadCertificates(rootFile)
	if err != nil {
		t.Errorf("after %s: %v", point, err)
		return
	}
	chain, err := pemfile.ReadCertificates(chainFile)
	if err != nil {
		t.Errorf("after %s: %v", point, err)
		return
	}
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	options.Roots.AddCert(root[0])
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(options); err != nil {
		t.Errorf("after %s: %s: %v", point, chainFile, err)
	}
}

func TestKilledIssueNeverMintsASecondCertificate(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	roots, err := pemfile.ReadCertificates(f.path("hub", "root", "root.crt"))
	if err != nil {
		t.Fatal(err)
	}
	issue := func(dir string) (string, []string) {
		copyFolder(t, f.path("station"), filepath.Join(dir, "station"))
		return "provisioning", []string{"issue", "--dir", filepath.Join(dir, "station"), "--id", "pi-1", "--out", filepath.Join(dir, "pi-1")}
	}
	sweep(t, issue, func(t *testing.T, dir, point string) {
		repeat(t, point, "provisioning", "issue", "--dir", filepath.Join(dir, "station"), "--id", "pi-1", "--out", filepath.Join(dir, "pi-1"))
		checkPair(t, point, filepath.Join(dir, "pi-1"), "device")
		checkNoLeftovers(t, point, filepath.Join(dir, "pi-1"))
		repeat(t, point, "provisioning", "manifest", "--dir", filepath.Join(dir, "station"), "--out", filepath.Join(dir, "manifest"))
		data, err := os.ReadFile(filepath.Join(dir, "manifest"))
		if err != nil {
			t.Errorf("after %s: %v", point, err)
			return
		}
		m, _, err := manifest.Open(data, roots, time.Now())
		if err != nil {
			t.Errorf("after %s: %v", point, err)
			return
		}
		chain, err := pemfile.ReadCertificates(filepath.Join(dir, "pi-1", "device.crt"))
		if err != nil {
			t.Error(err)
			return
		}
		if len(m.Devices) != 1 || string(m.Devices[0].Certificate) != string(chain[0].Raw) {
			t.Errorf("after %s: the manifest lists %d certificates, and not just the one in device.crt", point, len(m.Devices))
		}
	})
}

// TestKilledImportIsSafeToRepeat pulls the plug of the hub itself, at every point at which its store changes.
func TestKilledImportIsSafeToRepeat(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	const count = 40
	f.run("provisioning", "batch", "--dir", f.path("station"), "--prefix", "sim-", "--count", fmt.Sprint(count), "--out", f.path("sim"))
	f.run("provisioning", "manifest", "--dir", f.path("station"), "--out", f.path("manifest"))

	for _, call := range []string{"fdatasync", "pwrite64"} {
		for n := 1; n <= 40; n++ {
			c := &fleet{t: t, dir: t.TempDir()}
			copyFolder(t, f.path("hub"), c.path("hub"))
			survived := c.importUntilKilled(call, n, f.path("manifest"))
			c.serve()
			listed := strings.Count(c.run("hub", "device", "list", "--dir", c.path("hub")), "sim-")
			if listed != 0 && listed != count {
				t.Errorf("killed at %s %d: %d of %d devices are registered; an import is all or nothing", call, n, listed, count)
			}
			c.run("hub", "manifest", "import", f.path("manifest"), "--dir", c.path("hub"))
			if listed := strings.Count(c.run("hub", "device", "list", "--dir", c.path("hub")), "sim-"); listed != count {
				t.Errorf("killed at %s %d, then repeated: %d devices are registered, not %d", call, n, listed, count)
			}
			c.hub.kill()
			if survived {
				break
			}
		}
	}
}

// importUntilKilled imports a manifest into a hub that is killed at its n-th call of syscall, and reports whether it
// came through alive.
func (f *fleet) importUntilKilled(syscall string, n int, manifest string) (survived bool) {
	f.t.Helper()
	cmd := killedAt(syscall, n, "hub", "serve", "--dir", f.path("hub"),
		"--mqtt-addr", "127.0.0.1:0", "--https-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	hub := background(f.t, cmd.Path, cmd.Args[1:]...)
	client := exec.Command("hub", "manifest", "import", manifest, "--dir", f.path("hub"))
	imported := until(func() bool {
		select {
		case <-hub.done:
			return true
		default:
		}
		if _, err := os.Stat(f.path("hub", "run", "hub.json")); err != nil {
			return false
		}
		client = exec.Command("hub", "manifest", "import", manifest, "--dir", f.path("hub"))
		return client.Run() == nil
	})
	if !imported {
		f.t.Fatalf("import before %s %d neither ended nor was killed:\n%s", syscall, n, hub.output())
	}
	select {
	case <-hub.done:
		return false
	default:
	}
	hub.kill()
	return true
}
