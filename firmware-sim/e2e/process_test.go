package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"
)

const (
	// patience bounds every wait for something that happens within a second on a quiet machine.
	patience = 60 * time.Second
	// poll is how often a condition outside this process is looked at again.
	poll = 20 * time.Millisecond
)

// until calls done until it returns true, and reports whether it did within patience.
func until(done func() bool) bool {
	deadline := time.Now().Add(patience)
	for !done() {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(poll)
	}
	return true
}

// process is a program running in the background. What it prints, on either stream, goes to the file log.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed by the goroutine that waits for the program, once it has ended
}

// startProcess starts a program in folder dir. It leads a process group of its own. The caller must kill or await it.
func startProcess(dir, log string, env []string, program string, args ...string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // the outcome is in cmd.ProcessState
	}()
	return p, nil
}

// background starts a program for the length of a test.
func background(t *testing.T, program string, args ...string) *process {
	t.Helper()
	p, err := startProcess("", filepath.Join(t.TempDir(), "log"), nil, program, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

// kill ends the program and its children at once, and returns when it is gone.
func (p *process) kill() {
	select {
	case <-p.done: // its number may belong to another process by now
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
	<-p.done
}

// await returns the exit code of a program that ends by itself, or -1 if a signal ended it.
func (p *process) await() (code int, err error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-time.After(patience):
		return 0, fmt.Errorf("%s still runs after %v; it printed:\n%s", p.cmd, patience, p.output())
	}
}

// stop sends SIGTERM and returns the exit code.
func (p *process) stop() (code int, err error) {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, err
	}
	return p.await()
}

// output returns what the program has printed so far.
func (p *process) output() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// sees waits until the program has printed something that matches pattern.
func (p *process) sees(pattern string) error {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	ended := false
	if until(func() bool {
		select {
		case <-p.done:
			ended = true
		default:
		}
		return re.MatchString(p.output()) || ended
	}) && re.MatchString(p.output()) {
		return nil
	}
	if ended {
		return fmt.Errorf("%s ended with %v and without printing %q, but:\n%s", p.cmd, p.cmd.ProcessState, pattern, p.output())
	}
	return fmt.Errorf("%s did not print %q within %v, but:\n%s", p.cmd, pattern, patience, p.output())
}

// addresses is what a running hub writes to run/hub.json.
type addresses struct {
	PID     int    `json:"pid"`
	MQTT    string `json:"mqtt"`
	HTTPS   string `json:"https"`
	Metrics string `json:"metrics"`
}

// listening waits until the hub process p, which serves dir, has written where it listens.
func (p *process) listening(dir string) (addresses, error) {
	var at addresses
	ended := false
	if !until(func() bool {
		select {
		case <-p.done:
			ended = true
			return true
		default:
		}
		data, err := os.ReadFile(filepath.Join(dir, "run", "hub.json"))
		if err != nil {
			return false
		}
		at = addresses{}
		// The file of a killed hub may still lie there: only the one with our process's number counts.
		return json.Unmarshal(data, &at) == nil && at.PID == p.cmd.Process.Pid
	}) {
		return at, fmt.Errorf("hub wrote no run/hub.json within %v, but printed:\n%s", patience, p.output())
	}
	if ended {
		return at, fmt.Errorf("hub ended (%v) before it listened:\n%s", p.cmd.ProcessState, p.output())
	}
	return at, nil
}
