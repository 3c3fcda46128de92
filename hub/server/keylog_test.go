package server_test

import (
	"bytes"
	"crypto/tls"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/fleethub/fleethub/hub/server"
)

// keyLogVariable is written like this so that a search for it finds keylog.go alone.
const keyLogVariable = "SSLKEYLOG" + "FILE"

// buildHub builds the program and returns its path.
func buildHub(t *testing.T, flags ...string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "hub")
	cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"build", "-o", program}, flags...), "github.com/fleethub/fleethub/hub")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// A hub that anybody runs can't write TLS secrets: the environment variable that
// Wireshark's friends know isn't even in it.
func TestDefaultBuildHasNoTraceOfAKeyLog(t *testing.T) {
	binary, err := os.ReadFile(buildHub(t))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(binary, []byte(keyLogVariable)) {
		t.Errorf("the default build has %s in it", keyLogVariable)
	}
}

// A build that was asked for writes them, and says so where nobody can miss it.
func TestTaggedBuildWritesAKeyLogAndWarns(t *testing.T) {
	program := buildHub(t, "-tags=keylog")
	dir := filepath.Join(t.TempDir(), "hub")
	if out, err := exec.CommandContext(t.Context(), program, "init", "--dir", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file := filepath.Join(t.TempDir(), "keys")
	var log bytes.Buffer // read once the process has ended
	hub := exec.CommandContext(t.Context(), program, "serve", "--dir", dir, "--mqtt-addr=127.0.0.1:0", "--https-addr=127.0.0.1:0", "--metrics-addr=127.0.0.1:0")
	hub.Env, hub.Stderr = append(os.Environ(), keyLogVariable+"="+file), &log
	if err := hub.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the hub runs", func() bool { _, running, err := server.ReadEndpoint(dir); return running && err == nil })
	endpoint, _, err := server.ReadEndpoint(dir)
	if err != nil {
		t.Fatal(err)
	}
	// Secrets exist from the ServerHello on, whoever says hello.
	if c, err := tls.Dial("tcp", endpoint.MQTT, &tls.Config{InsecureSkipVerify: true}); err == nil {
		c.Close()
	}
	eventually(t, "a secret is written", func() bool {
		keys, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(keys), "SERVER_HANDSHAKE_TRAFFIC_SECRET ")
	})
	if err := hub.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := hub.Wait(); err != nil {
		t.Errorf("%v\n%s", err, &log)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, mode %v", err, info.Mode())
	}
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "TLS SECRETS OF EVERY DEVICE CONNECTION") {
		t.Errorf("nothing in the log warns of it:\n%s", &log)
	}
}
