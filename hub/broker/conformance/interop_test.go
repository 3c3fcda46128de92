//go:build interop

package conformance

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Public suites, which scripts/interop.sh fetches and names by environment variables.
// Each has tests that must fail, because the specification allows what the hub does
// and the suite expects something else; hub/wire/CONFORMANCE.md has the reasons. One of
// those that passes fails the test as well, so that the lists stay true.

// suiteFile returns what an environment variable names.
func suiteFile(t *testing.T, variable string) string {
	t.Helper()
	name := os.Getenv(variable)
	if _, err := os.Stat(name); err != nil {
		t.Fatalf("%s: %v: run scripts/interop.sh", variable, err)
	}
	return name
}

// suitePatience is how long a suite may take: some of their tests wait without end.
const suitePatience = 6 * time.Minute

// run returns what a suite prints.
func run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), suitePatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = patience
	cmd.Dir = dir
	out, err := cmd.CombinedOutput() // its exit status says no more than the lines that we count
	t.Logf("%s\n%s\n%v", cmd, out, err)
	return string(out)
}

// judge compares what failed with what must.
func judge(t *testing.T, total, wantTotal int, failed, wantFailed []string) {
	t.Helper()
	if total != wantTotal {
		t.Errorf("the suite ran %d tests, want %d", total, wantTotal)
	}
	for _, name := range failed {
		if !slices.Contains(wantFailed, name) {
			t.Errorf("%s failed", name)
		}
	}
	for _, name := range wantFailed {
		if !slices.Contains(failed, name) {
			t.Errorf("%s passed: strike it from the exceptions", name)
		}
	}
}

// TestPaho runs the suites of Eclipse Paho, whose folder is INTEROP_PAHO.
func TestPaho(t *testing.T) {
	suite := suiteFile(t, "INTEROP_PAHO")
	for _, paho := range []struct {
		script string
		total  int
		failed []string
	}{
		{"client_test.py", 10, []string{"test_dollar_topics", "test_zero_length_clientid"}},
		{"client_test5.py", 27, []string{"test_assigned_clientid", "test_server_keep_alive", "test_subscribe_failure"}},
	} {
		t.Run(paho.script, func(t *testing.T) {
			h := start(t, open)
			s := startShim(t, h.MQTTAddr(), h.named("interop"), "test/nosubscribe")
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(suite)); err != nil {
				t.Fatal(err)
			}
			// The scripts have a flag for the port, which one of them then stumbles over.
			path := filepath.Join(dir, paho.script)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.NewReplacer("port = 1883", "port = "+strconv.Itoa(s.port()), "unittest.main()", `unittest.main(argv=["suite", "-v"])`).Replace(string(text))
			if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			out := run(t, dir, "python3", path)
			total := 0
			if ran := regexp.MustCompile(`(?m)^Ran (\d+) tests`).FindStringSubmatch(out); ran != nil {
				total, _ = strconv.Atoi(ran[1])
			}
			var failed []string
			for _, f := range regexp.MustCompile(`(?m)^(?:FAIL|ERROR): (\w+) \(`).FindAllStringSubmatch(out, -1) {
				failed = append(failed, f[1])
			}
			judge(t, total, paho.total, failed, paho.failed)
		})
	}
}

// TestTestmqtt runs testmqtt, whose program is INTEROP_TESTMQTT.
func TestTestmqtt(t *testing.T) {
	program := suiteFile(t, "INTEROP_TESTMQTT")
	for _, suite := range []struct {
		version string
		total   int
		failed  []string
	}{
		{"3", 77, []string{"Zero-Length Client ID with Clean Session"}},
		{"5", 139, []string{"Zero-Length Client ID with Clean Start"}},
	} {
		t.Run(suite.version, func(t *testing.T) {
			h := start(t, open)
			s := startShim(t, h.MQTTAddr(), h.named("interop"))
			out := run(t, ".", program, "conformance", "--verbose", "--version", suite.version, "--broker", "tcp://127.0.0.1:"+strconv.Itoa(s.port()))
			results := regexp.MustCompile(`(?m)(PASS|FAIL) (.+?) \[`).FindAllStringSubmatch(out, -1)
			var failed []string
			for _, r := range results {
				if r[1] == "FAIL" {
					failed = append(failed, r[2])
				}
			}
			judge(t, len(results), suite.total, failed, suite.failed)
		})
	}
}
