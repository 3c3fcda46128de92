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
// those that passes fails the run as well, so that the lists stay true.
//
// The suites race with themselves: they give the hub half a second, publish before the
// subscriber's SUBACK, or send a DISCONNECT, or not, where they mean to vanish. So what
// fails is tried again, and counts if it has failed every time.

// suite is a public suite's expected result.
type suite struct {
	name   string
	total  int
	failed []string
	run    func(*testing.T, *shim) (total int, failed []string)
}

const (
	attempts      = 3
	suitePatience = 6 * time.Minute // some of their tests wait without end
)

// check runs a suite against a hub of its own.
func (s suite) check(t *testing.T) {
	t.Run(s.name, func(t *testing.T) {
		h := start(t, open)
		shim := startShim(t, h.MQTTAddr(), h.named("interop"))
		var unexpected []string
		for attempt := range attempts {
			total, failed := s.run(t, shim)
			var now []string
			for _, name := range failed {
				if !slices.Contains(s.failed, name) {
					now = append(now, name)
				}
			}
			if total == s.total {
				for _, name := range s.failed {
					if !slices.Contains(failed, name) {
						t.Errorf("%s passed: strike it from the exceptions", name)
					}
				}
				if attempt > 0 && len(unexpected) > 0 {
					now = slices.DeleteFunc(now, func(name string) bool { return !slices.Contains(unexpected, name) })
				}
				if unexpected = now; len(unexpected) == 0 {
					return
				}
			}
			t.Logf("attempt %d: %d tests, want %d; failed unexpectedly: %v", attempt+1, total, s.total, now)
		}
		t.Errorf("failed in each of %d attempts, or the suite never ran to its end: %v", attempts, unexpected)
	})
}

// file returns what an environment variable names.
func file(t *testing.T, variable string) string {
	t.Helper()
	name := os.Getenv(variable)
	if _, err := os.Stat(name); err != nil {
		t.Fatalf("%s: %v: run scripts/interop.sh", variable, err)
	}
	return name
}

// run returns what a suite prints.
func run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), suitePatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.WaitDelay = patience
	out, err := cmd.CombinedOutput() // its exit status says no more than the lines that we count
	t.Logf("%s\n%s\n%v", cmd, out, err)
	return string(out)
}

// TestPaho runs the suites of Eclipse Paho, whose folder is INTEROP_PAHO.
func TestPaho(t *testing.T) {
	folder := file(t, "INTEROP_PAHO")
	paho := func(script string) func(*testing.T, *shim) (int, []string) {
		return func(t *testing.T, s *shim) (total int, failed []string) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(folder)); err != nil {
				t.Fatal(err)
			}
			// The scripts have a flag for the port, which one of them then stumbles over.
			path := filepath.Join(dir, script)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.NewReplacer("port = 1883", "port = "+strconv.Itoa(s.port()), "unittest.main()", `unittest.main(argv=["suite", "-v"])`).Replace(string(text))
			if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			out := run(t, dir, "python3", path)
			if ran := regexp.MustCompile(`(?m)^Ran (\d+) tests`).FindStringSubmatch(out); ran != nil {
				total, _ = strconv.Atoi(ran[1])
			}
			for _, f := range regexp.MustCompile(`(?m)^(?:FAIL|ERROR): (\w+) \(`).FindAllStringSubmatch(out, -1) {
				failed = append(failed, f[1])
			}
			return total, failed
		}
	}
	suite{"client_test.py", 10, []string{"test_zero_length_clientid"}, paho("client_test.py")}.check(t)
	suite{"client_test5.py", 27, []string{"test_assigned_clientid", "test_server_keep_alive", "test_subscribe_failure"}, paho("client_test5.py")}.check(t)
}

// TestTestmqtt runs testmqtt, whose program is INTEROP_TESTMQTT.
func TestTestmqtt(t *testing.T) {
	program := file(t, "INTEROP_TESTMQTT")
	testmqtt := func(version string) func(*testing.T, *shim) (int, []string) {
		return func(t *testing.T, s *shim) (total int, failed []string) {
			out := run(t, ".", program, "conformance", "--verbose", "--version", version, "--broker", "tcp://127.0.0.1:"+strconv.Itoa(s.port()))
			for _, r := range regexp.MustCompile(`(?m)(PASS|FAIL) (.+?) \[`).FindAllStringSubmatch(out, -1) {
				total++
				if r[1] == "FAIL" {
					failed = append(failed, r[2])
				}
			}
			return total, failed
		}
	}
	suite{"3.1.1", 77, []string{"Zero-Length Client ID with Clean Session"}, testmqtt("3")}.check(t)
	suite{"5.0", 139, []string{"Zero-Length Client ID with Clean Start"}, testmqtt("5")}.check(t)
}
