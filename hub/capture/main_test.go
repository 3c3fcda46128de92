package capture

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience ends what hangs; what is well takes a fraction of it.
const patience = 60 * time.Second

// record has tshark record what do does on loopback, between these TCP ports and anybody, and returns the file.
func record(t *testing.T, name string, ports []int, do func()) string {
	t.Helper()
	// A last connection, to a port of its own, tells that tshark has seen all that was before it.
	last := listen(t)
	filter := make([]string, 0, len(ports)+1)
	for _, port := range append(ports, portOf(last)) {
		filter = append(filter, fmt.Sprintf("tcp port %d", port))
	}
	file := filepath.Join(t.TempDir(), name)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tshark := exec.CommandContext(ctx, "tshark", "-i", "lo", "-w", file, "-P", "-l", "-T", "fields", "-e", "tcp.dstport", "-f", strings.Join(filter, " or "))
	tshark.Cancel = func() error { return tshark.Process.Signal(os.Interrupt) }
	tshark.WaitDelay = patience
	ready, seen := make(chan struct{}), make(chan struct{})
	stderr := &watcher{want: "Capture started", found: ready}
	tshark.Stderr = stderr
	tshark.Stdout = &watcher{want: fmt.Sprint(portOf(last)), found: seen}
	if err := tshark.Start(); err != nil {
		t.Fatalf("these tests need tshark (Debian package tshark): %v", err)
	}
	wait := func(what string, c chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-ctx.Done():
			cancel()
			tshark.Wait()
			t.Fatalf("tshark did not %s: %s", what, stderr)
		}
	}
	wait("begin to capture", ready)
	do()
	conn, err := net.Dial("tcp", last.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	wait("see the last connection", seen)
	cancel() // a SIGINT, at which it completes its file
	tshark.Wait()
	return file
}

// watcher is an output that tells when it has a text in one line.
type watcher struct {
	want  string
	found chan struct{}

	mu   sync.Mutex // guards all below: exec copies, the test prints
	all  strings.Builder
	done bool
}

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all.Write(p)
	if !w.done && strings.Contains(w.all.String(), w.want) {
		w.done = true
		close(w.found)
	}
	return len(p), nil
}

func (w *watcher) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// read explains a file that must be a good one.
func read(t *testing.T, file string) *Capture {
	t.Helper()
	c, err := ReadFile(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// explanation is the text of one connection, with every run of blanks as one, for tests to look for lines in.
func explanation(conn *Connection) string {
	var b strings.Builder
	conn.write(&b)
	var folded strings.Builder
	for lines := bufio.NewScanner(strings.NewReader(b.String())); lines.Scan(); {
		folded.WriteString(strings.Join(strings.Fields(lines.Text()), " "))
		folded.WriteByte(' ')
	}
	return folded.String()
}

// stepNames lists the steps of TLS in order: arrow and name.
func stepNames(conn *Connection) []string {
	var names []string
	for _, s := range conn.Steps {
		if strings.HasPrefix(s.Name, "TCP") {
			continue
		}
		arrow := "→ "
		if s.From == Server {
			arrow = "← "
		}
		names = append(names, arrow+s.Name)
	}
	return names
}
