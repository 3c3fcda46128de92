package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Every thread of a running hub lets the kernel wake it up a little late, those that the runtime has started before main
// too; and one for which somebody has chosen how late, as systemd does, keeps that.
func TestThreadsOfTheHubShareWakeUps(t *testing.T) {
	made := newFleet(t)
	slacks := func(f *fleet) map[string]bool {
		f.t.Helper()
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", f.hub.cmd.Process.Pid))
		if err != nil || len(tasks) < 3 {
			f.t.Fatalf("threads of the hub: %q, %v", tasks, err)
		}
		found := make(map[string]bool)
		for _, task := range tasks {
			slack, err := os.ReadFile(filepath.Join("/proc", filepath.Base(task), "timerslack_ns"))
			if os.IsNotExist(err) {
				continue // ended meanwhile
			}
			if err != nil {
				f.t.Fatal(err)
			}
			found[strings.TrimSpace(string(slack))] = true
		}
		return found
	}
	for name, c := range map[string]struct {
		inherited time.Duration
		want      string
	}{
		"by default":        {50 * time.Microsecond, "250000"},
		"somebody's choice": {70 * time.Microsecond, "70000"},
	} {
		t.Run(name, func(t *testing.T) {
			f := made.with(t)
			runtime.LockOSThread() // and never let go: the thread ends with the test
			if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(c.inherited), 0, 0, 0); err != nil {
				t.Fatal(err)
			}
			f.serve()
			if got := slacks(f); len(got) != 1 || !got[c.want] {
				t.Errorf("the hub's threads have slacks of %v ns, not %s", got, c.want)
			}
			command, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", f.hub.cmd.Process.Pid))
			if err != nil || string(command) != "hub\n" {
				t.Errorf("the process is called %q, %v", command, err)
			}
			if code, err := f.hub.stop(); err != nil || code != 0 {
				t.Errorf("the hub stopped with exit code %d, %v:\n%s", code, err, f.hub.output())
			}
		})
	}
}
