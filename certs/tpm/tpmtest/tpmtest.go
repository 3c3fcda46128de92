// Package tpmtest runs a software TPM for a test, as net/http/httptest runs a server:
// a real swtpm of its own, started, with its state in a temporary folder. A missing
// swtpm fails the test.
package tpmtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Network is how a test reaches its emulator.
type Network string

// The networks swtpm listens on.
const (
	Unix Network = "unix"
	TCP  Network = "tcp"
)

// Emulator is one running swtpm: one TPM, distinct from every other's.
type Emulator struct {
	t       testing.TB
	network Network
	state   string // folder with what a TPM keeps without power
	socket  string // path or host:port
	process *exec.Cmd
	ended   chan struct{} // closed when the process is gone
	log     string
}

// startTimeout is generous: the machine may be busy with other tests.
const startTimeout = time.Minute

// Start returns a running TPM with no owner, reached over a Unix socket. The test's
// end stops it.
func Start(t testing.TB) *Emulator {
	t.Helper()
	return StartOn(t, Unix)
}

// StartOn is Start with a choice of the network.
func StartOn(t testing.TB, network Network) *Emulator {
	t.Helper()
	return startWith(t, network, t.TempDir())
}

// startWith starts an emulator with what is in the folder state.
func startWith(t testing.TB, network Network, state string) *Emulator {
	t.Helper()
	e := &Emulator{t: t, network: network, state: state}
	e.log = filepath.Join(e.state, "swtpm.log")
	if network == Unix {
		dir, err := os.MkdirTemp("", "swtpm") // short: a socket's path has 107 bytes at most
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		e.socket = filepath.Join(dir, "tpm.sock")
	}
	e.start()
	t.Cleanup(e.stop)
	return e
}

// Address is what tpm.Open takes.
func (e *Emulator) Address() string {
	return string(e.network) + "://" + e.socket
}

// TCTI is what TPM2TOOLS_TCTI and TPM2OPENSSL_TCTI take to reach an emulator on a Unix
// socket.
func (e *Emulator) TCTI() string { return "swtpm:path=" + e.socket }

// Restart cuts the TPM's power and switches it on again, at the same address: what it
// keeps without power stays, everything loaded is gone.
func (e *Emulator) Restart() {
	e.t.Helper()
	e.stop()
	e.start()
}

// Stop cuts the power. The address answers nobody until Restart.
func (e *Emulator) Stop() {
	e.t.Helper()
	e.stop()
}

func (e *Emulator) start() {
	e.t.Helper()
	path, err := exec.LookPath("swtpm")
	if err != nil {
		e.t.Fatalf("%v; install the Debian package swtpm", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	fresh := e.socket == ""
	for ctx.Err() == nil {
		e.run(path)
		if e.answers(ctx) {
			return
		}
		e.stop() // it has ended: somebody else took its port
		if fresh {
			e.socket = ""
		}
	}
	log, _ := os.ReadFile(e.log)
	e.t.Fatalf("swtpm didn't start within %v; its log:\n%s", startTimeout, log)
}

func (e *Emulator) run(path string) {
	e.t.Helper()
	server := "type=unixio,path=" + e.socket
	if e.network == TCP {
		if e.socket == "" {
			e.socket = freeAddress(e.t)
		}
		host, port, err := net.SplitHostPort(e.socket)
		if err != nil {
			e.t.Fatal(err)
		}
		server = fmt.Sprintf("type=tcp,bindaddr=%s,port=%s", host, port)
	}
	args := []string{"socket", "--tpm2", "--tpmstate", "dir=" + e.state, "--server", server,
		"--flags", "not-need-init,startup-clear", "--log", "file=" + e.log}
	if e.network == Unix {
		args = append(args, "--ctrl", "type=unixio,path="+e.socket+".ctrl") // which the TCG's software stack wants
	}
	e.process = exec.Command(path, args...)
	if err := e.process.Start(); err != nil {
		e.t.Fatal(err)
	}
	process, ended := e.process, make(chan struct{})
	e.ended = ended
	go func() { // ends with the process, which stop sees to
		defer close(ended)
		_ = process.Wait() // it is killed, so it never exits well
	}()
}

// answers reports whether the emulator takes connections, or false once it has ended.
func (e *Emulator) answers(ctx context.Context) bool {
	retry := time.NewTicker(5 * time.Millisecond)
	defer retry.Stop()
	for {
		if c, err := net.DialTimeout(string(e.network), e.socket, time.Second); err == nil {
			_ = c.Close()
			return true
		}
		select {
		case <-retry.C:
		case <-e.ended:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (e *Emulator) stop() {
	_ = e.process.Process.Kill() // it may have ended
	<-e.ended
	if e.network == Unix {
		_ = os.Remove(e.socket + ".ctrl")
		_ = os.Remove(e.socket) // else the dead process's file is in the next one's way
	}
}

// freeAddress returns a loopback port that was free a moment ago.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
