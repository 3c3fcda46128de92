package soak

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// patience bounds every wait for something that happens within a second on a quiet machine.
	patience = 60 * time.Second
	// poll is how often a condition outside this process is looked at again.
	poll = 10 * time.Millisecond
)

// until calls done until it returns true, and reports whether it did within patience.
func until(done func() bool) bool { return within(patience, done) }

// within is until with another patience.
func within(limit time.Duration, done func() bool) bool {
	deadline := time.Now().Add(limit)
	for !done() {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(poll)
	}
	return true
}

// endpoint is what a running hub writes to run/hub.json.
type endpoint struct {
	PID     int    `json:"pid"`
	MQTT    string `json:"mqtt"`
	HTTPS   string `json:"https"`
	Metrics string `json:"metrics"`
}

// hub is the real program over one folder. It may be killed and started again; from its second start on it listens where
// it did. Only one goroutine starts and ends it; the addresses don't change once it has listened.
type hub struct {
	bin, dir, log string
	environment   []string

	at   endpoint
	cmd  *exec.Cmd
	done chan struct{} // closed by the goroutine that waits for the program, once it has ended
}

// start runs the hub and waits until it listens.
func (h *hub) start() error {
	out, err := os.OpenFile(h.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	mqtt, https, metrics := h.at.MQTT, h.at.HTTPS, h.at.Metrics
	if mqtt == "" {
		mqtt, https, metrics = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	}
	cmd := exec.Command(filepath.Join(h.bin, "hub"), "serve", "--dir", h.dir, "--mqtt-addr", mqtt, "--https-addr", https, "--metrics-addr", metrics)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), h.environment...), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	h.cmd, h.done = cmd, make(chan struct{})
	go func(done chan struct{}) {
		defer close(done)
		_ = cmd.Wait() // the outcome is in cmd.ProcessState
	}(h.done)
	listens := until(func() bool { return h.ended() || h.readEndpoint() })
	switch {
	case h.ended():
		return fmt.Errorf("hub ended (%v) before it listened:\n%s", cmd.ProcessState, h.output())
	case !listens:
		return fmt.Errorf("hub did not listen within %v:\n%s", patience, h.output())
	}
	return nil
}

// readEndpoint takes the addresses from run/hub.json, unless the file is a killed hub's.
func (h *hub) readEndpoint() bool {
	data, err := os.ReadFile(filepath.Join(h.dir, "run", "hub.json"))
	var at endpoint
	if err != nil || json.Unmarshal(data, &at) != nil || at.PID != h.cmd.Process.Pid {
		return false
	}
	h.at = at
	return true
}

// ended reports whether the program is gone.
func (h *hub) ended() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// kill ends the hub at once, as kill -9 does, and returns when it is gone.
func (h *hub) kill() {
	if h.cmd == nil {
		return
	}
	if !h.ended() {
		_ = h.cmd.Process.Signal(syscall.SIGKILL)
	}
	<-h.done
}

// stop ends the hub as systemd would.
func (h *hub) stop() error {
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-h.done:
	case <-time.After(patience):
		return fmt.Errorf("hub still runs %v after SIGTERM:\n%s", patience, h.output())
	}
	if code := h.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("hub ended with %d after SIGTERM:\n%s", code, h.output())
	}
	return nil
}

// output returns what the hub has printed so far, all its starts together.
func (h *hub) output() string {
	data, err := os.ReadFile(h.log)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// lines returns the hub's log lines of at least WARN that hold every one of the words.
func (h *hub) lines(words ...string) []string {
	var found []string
next:
	for line := range strings.Lines(h.output()) {
		if !strings.Contains(line, "level=WARN") && !strings.Contains(line, "level=ERROR") {
			continue
		}
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found
}

// ready reports whether /readyz says so.
func (h *hub) ready() bool {
	status, _, err := h.get("/readyz")
	return err == nil && status == http.StatusOK
}

// get fetches a page of the monitoring door over a connection of its own.
func (h *hub) get(path string) (status int, body string, err error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + h.at.Metrics + path)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	return response.StatusCode, string(data), err
}

// metric returns the sum of a metric's samples, whatever their labels, and whether it exists.
func (h *hub) metric(name string) (sum float64, ok bool) {
	_, body, err := h.get("/metrics")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(body) {
		rest, found := strings.CutPrefix(strings.TrimSpace(line), name)
		if !found || (rest[0] != ' ' && rest[0] != '{') {
			continue
		}
		value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err == nil {
			sum, ok = sum+value, true
		}
	}
	return sum, ok
}

// resident returns the hub's resident memory in bytes.
func (h *hub) resident() int64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", h.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "VmRSS:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

// descriptors returns how many file descriptors the hub has open.
func (h *hub) descriptors() int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	return len(list)
}

// limitDescriptors sets the hub's soft limit of open files and returns the former one.
func (h *hub) limitDescriptors(soft uint64) (before uint64, err error) {
	var old unix.Rlimit
	if err := unix.Prlimit(h.cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		return 0, err
	}
	next := unix.Rlimit{Cur: soft, Max: old.Max}
	return old.Cur, unix.Prlimit(h.cmd.Process.Pid, unix.RLIMIT_NOFILE, &next, nil)
}
