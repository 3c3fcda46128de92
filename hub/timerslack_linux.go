package main

import (
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is how late a thread of the hub may be woken up from a sleep. While a Go
// program is busy, a thread of its runtime wakes up every 20 µs, and as late as it may:
// with Linux's 50 µs that is 8 % of what a resumed connect costs.
const timerSlack = 250 * time.Microsecond

// linuxSlack is what a thread has of whom nobody said otherwise.
const linuxSlack = 50 * time.Microsecond

// coalesceTimers gives all threads of the process that slack. A thread has its creator's,
// and the runtime's own is there before main is, so the program begins once more, in the
// same process. Where somebody has chosen already, as systemd does with TimerSlackNSec=,
// that stays. If the kernel refuses, the hub runs as it is.
func coalesceTimers() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || slack != int(linuxSlack) || unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) != nil {
		return
	}
	if self, err := os.Executable(); err == nil {
		_ = unix.Exec(self, os.Args, os.Environ())
	}
}
