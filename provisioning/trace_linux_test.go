package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
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
	path := filepath.Join(buildDir(), "provisioning")
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
