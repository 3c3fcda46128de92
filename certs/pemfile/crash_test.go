package pemfile_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/fleethub/fleethub/certs/pemfile"
)

// childEnv tells this test binary to be a program that writes files, and which.
const childEnv = "PEMFILE_TEST_CHILD"

const exitExists = 9 // a child's exit code for ErrExists

func TestMain(m *testing.M) {
	if job := os.Getenv(childEnv); job != "" {
		os.Exit(runChild(job, os.Args[1:]))
	}
	os.Exit(m.Run())
}

func runChild(job string, args []string) int {
	runtime.LockOSThread() // strace counts the calls of each thread by itself
	var err error
	switch job {
	case "write":
		err = pemfile.Write(args[0], []byte(args[1]), 0o644)
	case "stage":
		err = stageAll(args[0], args[1])
	case "full-disk": // prints the error it must get
		signal.Ignore(syscall.SIGXFSZ)
		limit := syscall.Rlimit{Cur: 4096, Max: 4096}
		err = syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit)
		if err == nil {
			fmt.Println(pemfile.Write(args[0], bytes.Repeat([]byte("new "), 4096), 0o644))
		}
	}
	switch {
	case errors.Is(err, pemfile.ErrExists):
		return exitExists
	case err != nil:
		fmt.Println(err)
		return 1
	}
	return 0
}

// child returns a command that does the job in a process of its own.
func child(t *testing.T, job string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), childEnv+"="+job, "GORACE=atexit_sleep_ms=0") // else the race detector waits a second
	return cmd
}

// killedAt runs a child that is killed, as by kill -9, when it enters its n-th call of a system call, and reports
// whether it lived long enough to get there.
func killedAt(t *testing.T, call string, n int, job string, args ...string) bool {
	t.Helper()
	cmd := child(t, job, args...)
	trace := []string{"strace", "-f", "-qq", "-o", os.DevNull, "-e", "trace=" + call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n)}
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("%v; install the Debian package strace", err)
	}
	cmd.Args = append(trace, cmd.Args...)
	cmd.Path = path
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() == exitExists {
		return false
	}
	// strace ends the way its program did.
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return true
}

// sweep kills a child at the first, second, ... of each of those system calls, until it comes through. kill does the
// job in a fresh folder, checks what is left, and reports whether it was killed.
func sweep(t *testing.T, calls []string, kill func(t *testing.T, call string, n int) bool) {
	for _, call := range calls {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			n := 1
			for kill(t, call, n) {
				n++
			}
			if n == 1 {
				t.Errorf("no child was killed at %s: is it still what the package calls?", call)
			}
			t.Logf("held after kill -9 at %d points", n-1)
		})
	}
}

func TestKilledWriteLeavesTheOldFileOrTheNewOne(t *testing.T) {
	t.Parallel()
	sweep(t, []string{"write", "fchmod", "fsync", "renameat"}, func(t *testing.T, call string, n int) bool {
		path := filepath.Join(t.TempDir(), "a.crt")
		if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
		killed := killedAt(t, call, n, "write", path, "new")
		if data, err := os.ReadFile(path); err != nil || string(data) != "old" && string(data) != "new" {
			t.Errorf("killed at %s %d: the file holds %q, %v", call, n, data, err)
		}
		if err := pemfile.Write(path, []byte("again"), 0o644); err != nil {
			t.Errorf("killed at %s %d, then repeated: %v", call, n, err)
		}
		return killed
	})
}

// At every step of NewStage, the writes and Commit the process dies, at some twice; then it is left alone. What is in the
// folder afterwards is all of one run.
func TestStageKilledAtAnyStepIsSafeToRepeat(t *testing.T) {
	t.Parallel()
	sweep(t, []string{"mkdirat", "write", "fchmod", "fsync", "renameat", "unlinkat"}, func(t *testing.T, call string, n int) bool {
		dir := filepath.Join(t.TempDir(), "new", "fleet")
		killed := killedAt(t, call, n, "stage", dir, "first")
		wantAllOrNothing(t, dir)
		if killed && call == "renameat" { // the steps that show
			killedAt(t, call, n, "stage", dir, "second")
			wantAllOrNothing(t, dir)
		}
		err := stageAll(dir, "third")
		if err != nil && !errors.Is(err, pemfile.ErrExists) {
			t.Errorf("killed at %s %d, then repeated: %v", call, n, err)
		}
		data, readErr := os.ReadFile(filepath.Join(dir, staged[0]))
		run := string(data)
		if readErr != nil || (err == nil) != (run == "third") {
			t.Errorf("killed at %s %d: repeated with %v, and there is the run %q, %v", call, n, err, run, readErr)
		}
		wantAllOf(t, dir, run)
		return killed
	})
}

// wantAllOrNothing fails the test if a killed run left some files in place and others not, without the mark that has
// them follow.
func wantAllOrNothing(t *testing.T, dir string) {
	t.Helper()
	var present []string
	for _, name := range staged {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			present = append(present, name)
		}
	}
	_, err := os.Stat(filepath.Join(dir, ".partial", ".complete"))
	if len(present) > 0 && !slices.Equal(present, staged) && err != nil {
		t.Errorf("of the files only %s are in place, and nothing will bring the others: %v", strings.Join(present, ", "), err)
	}
}

// A stick's file system may have no modes: chmod fails there with EPERM. That must keep
// nobody from writing what the mode shown hides well enough, and must not let a key be shown.
func TestFileSystemWithoutModes(t *testing.T) {
	t.Parallel()
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("%v; install the Debian package strace", err)
	}
	for name, tt := range map[string]struct {
		inject []string
		fails  bool
	}{
		"shows the owner only": {inject: []string{"-e", "trace=fchmod", "-e", "inject=fchmod:error=EPERM"}},
		"fails otherwise":      {inject: []string{"-e", "trace=fchmod", "-e", "inject=fchmod:error=EIO"}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "a.crt")
			cmd := child(t, "write", file, "new")
			cmd.Args = append(append([]string{"strace", "-f", "-qq", "-o", os.DevNull}, tt.inject...), cmd.Args...)
			cmd.Path = path
			out, err := cmd.CombinedOutput()
			if (err != nil) != tt.fails {
				t.Errorf("%v: %s", err, out)
			}
			if data, err := os.ReadFile(file); !tt.fails && (err != nil || string(data) != "new") {
				t.Errorf("written: %q, %v", data, err)
			}
		})
	}
}
