package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/station"
)

// run starts the program under ptrace, kills it (SIGKILL) as it enters its point-th
// system call that changes a file or folder, and reports whether that killed it. The
// real program is killed, at every step there is, without a line in it for the test.
func run(t *testing.T, point int, args ...string) (killed bool, code int, output string) {
	t.Helper()
	runtime.LockOSThread() // only the thread that started a tracee may trace it
	defer runtime.UnlockOSThread()
	out, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := program(t, args)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Ptrace: true, Setpgid: true, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid // waited for by trace
	defer cmd.Process.Release()
	status := trace(t, pid, point)
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return status.Signaled() && status.Signal() == unix.SIGKILL, status.ExitStatus(), string(text)
}

// trace lets the process run from change to change until it ends, and returns how.
func trace(t *testing.T, pid, point int) unix.WaitStatus {
	t.Helper()
	var status unix.WaitStatus
	wait := func(which int) int {
		for {
			tid, err := unix.Wait4(which, &status, unix.WALL, nil)
			if !errors.Is(err, unix.EINTR) {
				if err != nil {
					t.Fatalf("wait for the traced program: %v", err)
				}
				return tid
			}
		}
	}
	wait(pid) // stopped at its first instruction
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL); err != nil {
		t.Fatalf("trace the program: %v", err)
	}
	changes := 0
	for tid := pid; ; tid = wait(-pid) { // any thread of its process group
		signal := 0
		switch {
		case status.Exited() || status.Signaled():
			if tid == pid {
				return status
			}
			continue
		case status.StopSignal() == unix.SIGTRAP|0x80:
			if changesFiles(tid) {
				if changes++; changes == point {
					if err := unix.Kill(pid, unix.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
			}
		case status.StopSignal() != unix.SIGTRAP && status.StopSignal() != unix.SIGSTOP:
			signal = int(status.StopSignal())
		}
		if err := unix.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
	}
}

// changesFiles reports whether the thread stopped on its way into a system call that
// changes what a disk holds.
func changesFiles(tid int) bool {
	var info struct { // struct ptrace_syscall_info
		op   uint8
		_    [3]byte
		_    uint32
		_, _ uint64
		nr   uint64
		args [6]uint64
	}
	const getSyscallInfo, entry = 0x420e, 1
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 || info.op != entry {
		return false
	}
	switch info.nr {
	case unix.SYS_OPENAT:
		return info.args[2]&unix.O_CREAT != 0
	case unix.SYS_WRITE:
		return info.args[0] > 2 && info.args[2] > 8 // not the runtime's wake-up calls
	case unix.SYS_PWRITE64, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT, unix.SYS_FCHMOD,
		unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNCFS, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE:
		return true
	}
	return false
}

// binary returns the path of the real program, built once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "provisioning-test")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "provisioning")
	build := exec.Command("go", "build", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, output)
	}
	return path, nil
})

func program(t *testing.T, args []string) *exec.Cmd {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(path, args...)
}

// must runs the program to its end, which must be a success.
func must(t *testing.T, args ...string) {
	t.Helper()
	if output, err := program(t, args).CombinedOutput(); err != nil {
		t.Fatalf("provisioning %q: %v: %s", args, err, output)
	}
}

// killPoints calls attempt with every step-th kill point until a run outlives its own.
func killPoints(t *testing.T, step int, attempt func(t *testing.T, point int) (killed bool)) {
	t.Helper()
	points := 0
	for point := 1; attempt(t, point); point += step {
		points++
	}
	if points < 5 {
		t.Fatalf("the program was killed at %d points only, so this tests nothing", points)
	}
	t.Logf("killed at %d points", points)
}

// bench is a folder with a station in S, ready to issue, and the root's in root.
func bench(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if _, err := station.Init(in("S"), "bench-1"); err != nil {
		t.Fatal(err)
	}
	if err := authorize([]string{"-root", in("root"), "-csr", in("S/station.csr"), "-out", in("authority.crt")}); err != nil {
		t.Fatal(err)
	}
	withOpen(t, in("S"), func(s *station.Station) {
		if _, err := s.Accept(in("authority.crt")); err != nil {
			t.Fatal(err)
		}
	})
	return dir
}

// copyOf returns a copy of a bench, to be killed in.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"S/station.key", "root/root.key"} { // CopyFS widens modes
		if err := os.Chmod(filepath.Join(to, key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func withOpen(t *testing.T, dir string, do func(*station.Station)) {
	t.Helper()
	s, err := station.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	do(s)
}

// journal is what must never change for an ID once it is in the ledger.
type journal map[string]struct {
	serial      string
	certificate [sha256.Size]byte // of the DER; zero until issued
}

// follow reads the ledger and fails if an ID has another serial number or certificate
// than it had, or two IDs have the same.
func (j journal) follow(t *testing.T, dir string) {
	t.Helper()
	owners := make(map[string]string)
	withOpen(t, dir, func(s *station.Station) {
		var records []ledger.Record
		if err := s.Ledger().Devices(func(r ledger.Record) error { records = append(records, r); return nil }); err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			_, der, err := s.Ledger().Device(r.ID)
			if err != nil {
				t.Fatal(err)
			}
			seen := j[r.ID]
			if seen.serial != "" && seen.serial != r.Serial {
				t.Errorf("%s had serial number %s and now has %s", r.ID, seen.serial, r.Serial)
			}
			if other, taken := owners[r.Serial]; taken {
				t.Errorf("%s and %s have the same serial number", r.ID, other)
			}
			owners[r.Serial], seen.serial = r.ID, r.Serial
			if der != nil {
				sum := sha256.Sum256(der)
				if seen.certificate != [sha256.Size]byte{} && seen.certificate != sum {
					t.Errorf("%s has got a second certificate", r.ID)
				}
				seen.certificate = sum
			}
			j[r.ID] = seen
		}
	})
	for id := range j {
		found := false
		for _, owner := range owners {
			found = found || owner == id
		}
		if !found {
			t.Errorf("%s is no longer in the ledger", id)
		}
	}
}

// delivered fails unless the folder has the complete credentials of the ID, with the
// certificate that the ledger has for it.
func (j journal) delivered(t *testing.T, dir, id string) {
	t.Helper()
	c, err := mtls.LoadCredentials(dir, "device")
	if err != nil {
		t.Fatal(err)
	}
	if c.Identity.ID != id || sha256.Sum256(c.Leaf.Raw) != j[id].certificate {
		t.Errorf("%s holds a certificate for %s that is not the ledger's for %s", dir, c.Identity.ID, id)
	}
	leftovers, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(leftovers) > 0 {
		t.Errorf("%s has leftovers: %v %v", dir, leftovers, err)
	}
}

// listed fails unless the manifests are numbered from 1 and name every certificate of
// the ledger exactly once.
func (j journal) listed(t *testing.T, root string, files ...string) {
	t.Helper()
	named := make(map[[sha256.Size]byte]bool)
	for i, file := range files {
		m, err := readManifest(file, root)
		if err != nil {
			t.Fatal(err)
		}
		if m.Number != uint64(i+1) {
			t.Errorf("%s has number %d", file, m.Number)
		}
		for _, e := range m.Devices {
			sum := sha256.Sum256(e.Certificate)
			if named[sum] {
				t.Errorf("a certificate is named twice, for the second time in manifest %d", m.Number)
			}
			named[sum] = true
		}
	}
	for id, entry := range j {
		if !named[entry.certificate] {
			t.Errorf("%s is in no manifest", id)
		}
	}
	if len(named) != len(j) {
		t.Errorf("the manifests name %d certificates, the ledger has %d", len(named), len(j))
	}
}

func TestInitKilledAtEveryStepIsSafeToRepeat(t *testing.T) {
	killPoints(t, 1, func(t *testing.T, point int) bool {
		dir := filepath.Join(t.TempDir(), "S")
		args := []string{"init", "--dir", dir, "--name", "bench-1"}
		killed, code, output := run(t, point, args...)
		if !killed {
			if code != 0 {
				t.Fatal(output)
			}
			return false
		}
		// Made by the killed run or by this one, but whole in either case.
		if output, err := program(t, args).CombinedOutput(); err != nil && !bytes.Contains(output, []byte("holds a station already")) {
			t.Fatalf("point %d: %v: %s", point, err, output)
		}
		withOpen(t, dir, func(s *station.Station) {
			if s.Name() != "bench-1" {
				t.Errorf("point %d: the station is named %q", point, s.Name())
			}
		})
		if err := authorize([]string{"-root", filepath.Join(dir, "../root"), "-csr", filepath.Join(dir, "station.csr"), "-out", filepath.Join(dir, "../a.crt")}); err != nil {
			t.Fatalf("point %d: %v", point, err)
		}
		must(t, "accept", "--dir", dir, filepath.Join(dir, "../a.crt"))
		return true
	})
}

func TestRenewalKilledAtEveryStepLeavesOldOrNewAuthority(t *testing.T) {
	original := bench(t)
	killPoints(t, 1, func(t *testing.T, point int) bool {
		dir := copyOf(t, original)
		renewed := filepath.Join(dir, "renewed.crt")
		if err := authorize([]string{"-root", filepath.Join(dir, "root"), "-csr", filepath.Join(dir, "S/station.csr"), "-out", renewed}); err != nil {
			t.Fatal(err)
		}
		killed, _, _ := run(t, point, "accept", "--dir", filepath.Join(dir, "S"), renewed)
		withOpen(t, filepath.Join(dir, "S"), func(s *station.Station) {
			if _, err := s.Issue(station.Order{ID: "a", Out: filepath.Join(dir, "D")}); err != nil {
				t.Errorf("point %d: %v", point, err)
			}
		})
		must(t, "accept", "--dir", filepath.Join(dir, "S"), renewed)
		return killed
	})
}

func TestIssueKilledAtEveryStepNeverMakesASecondCertificate(t *testing.T) {
	original := bench(t)
	killPoints(t, 1, func(t *testing.T, point int) bool {
		dir := copyOf(t, original)
		in := func(name string) string { return filepath.Join(dir, name) }
		args := []string{"issue", "--dir", in("S"), "--id", "a", "--out", in("deep/D"), "--ou", "x"}
		killed, _, _ := run(t, point, args...)
		seen := make(journal)
		seen.follow(t, in("S"))
		must(t, args...)
		seen.follow(t, in("S"))
		seen.delivered(t, in("deep/D"), "a")
		must(t, "manifest", "--dir", in("S"), "--out", in("1.jws"))
		seen.listed(t, in("root/root.crt"), in("1.jws"))
		if t.Failed() {
			t.Fatalf("killed at point %d", point)
		}
		return killed
	})
}

func TestManifestKilledAtEveryStepLosesAndRepeatsNoDevice(t *testing.T) {
	original := bench(t)
	must(t, "issue", "--dir", filepath.Join(original, "S"), "--id", "a", "--out", filepath.Join(original, "A"))
	killPoints(t, 1, func(t *testing.T, point int) bool {
		dir := copyOf(t, original)
		in := func(name string) string { return filepath.Join(dir, name) }
		killed, _, _ := run(t, point, "manifest", "--dir", in("S"), "--out", in("1.jws"))
		var early manifest.Manifest
		if _, err := os.Stat(in("1.jws")); err == nil {
			if early, err = readManifest(in("1.jws"), in("root/root.crt")); err != nil {
				t.Errorf("a manifest is in its place but not whole: %v", err)
			}
		}
		// A device that comes between the two tries waits for the next manifest, unless
		// the first try had not yet fixed its own.
		must(t, "issue", "--dir", in("S"), "--id", "b", "--out", in("B"))
		must(t, "manifest", "--dir", in("S"), "--out", in("folder.jws"))
		first := in("folder.jws")
		if m, err := readManifest(first, in("root/root.crt")); err == nil && m.Number == 2 {
			first = in("1.jws")
		}
		seen := make(journal)
		seen.follow(t, in("S"))
		files := []string{first}
		if first == in("1.jws") {
			files = append(files, in("folder.jws"))
		} else {
			must(t, "manifest", "--dir", in("S"), "--out", in("2.jws"))
			if _, err := os.Stat(in("2.jws")); err == nil {
				files = append(files, in("2.jws"))
			}
		}
		seen.listed(t, in("root/root.crt"), files...)
		if again, err := readManifest(first, in("root/root.crt")); early.Number != 0 && (err != nil || fmt.Sprint(again) != fmt.Sprint(early)) {
			t.Errorf("manifest 1 was %v and is %v %v", early, again, err)
		}
		if t.Failed() {
			t.Fatalf("killed at point %d", point)
		}
		return killed
	})
}

// A batch large enough for its group-wise flushes, killed at many points, is finished
// by its repetition with the IDs it began with.
func TestBatchKilledAtAnyStepIsFinishedByRepetition(t *testing.T) {
	original := bench(t)
	const devices = 20
	killPoints(t, 9, func(t *testing.T, point int) bool {
		dir := copyOf(t, original)
		in := func(name string) string { return filepath.Join(dir, name) }
		args := []string{"batch", "--dir", in("S"), "--prefix", "sim-", "--count", fmt.Sprint(devices), "--out", in("fleet")}
		killed, _, _ := run(t, point, args...)
		seen := make(journal)
		seen.follow(t, in("S"))
		must(t, args...)
		finished(t, seen, dir, devices)
		if t.Failed() {
			t.Fatalf("killed at point %d", point)
		}
		return killed
	})
}

// finished fails unless the batch in dir/fleet is complete and only once.
func finished(t *testing.T, seen journal, dir string, devices int) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	seen.follow(t, in("S"))
	if len(seen) != devices {
		t.Errorf("the batch of %d made %d devices", devices, len(seen))
	}
	for i := range devices {
		id := fmt.Sprintf("sim-%05d", i+1)
		seen.delivered(t, in("fleet/"+id), id)
	}
	must(t, "manifest", "--dir", in("S"), "--out", in("1.jws"))
	seen.listed(t, in("root/root.crt"), in("1.jws"))
}

// The same batch killed over and over at random points, across several groups.
func TestBatchKilledManyTimesIssuesEveryDeviceOnce(t *testing.T) {
	const devices, kills = 1100, 24
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := bench(t)
	args := []string{"batch", "--dir", filepath.Join(dir, "S"), "--prefix", "sim-", "--count", fmt.Sprint(devices), "--out", filepath.Join(dir, "fleet")}
	seen := make(journal)
	done := 0
	for range kills {
		if killed, code, output := run(t, 1+random.IntN(2500), args...); !killed {
			if code != 0 {
				t.Fatal(output)
			}
			break
		}
		seen.follow(t, filepath.Join(dir, "S"))
		done++
	}
	t.Logf("killed %d times", done)
	must(t, args...)
	finished(t, seen, dir, devices)
}
