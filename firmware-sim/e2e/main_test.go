// Package e2e holds no program: its tests drive the four real binaries, as a person at a terminal and a foreign MQTT
// client would, and check the house rules that no compiler knows (who may import whom, links that resolve, commands that
// the documents quote).
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// modulePath is what every import path of ours starts with.
const modulePath = "github.com/fleethub/fleethub"

// binaries is the folder of the four programs, built by TestMain and the same for every test.
var binaries string

// repository is the root of the checkout, as an absolute path.
var repository string

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// buildAndRun builds the programs as `make build` does, runs the tests with them on the PATH and removes them.
func buildAndRun(m *testing.M) (code int, err error) {
	if repository, err = filepath.Abs("../.."); err != nil {
		return 0, err
	}
	if binaries, err = os.MkdirTemp("", "fleethub-bin-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(binaries)
	build := exec.Command("go", "build", "-trimpath", "-o", binaries+"/",
		"./hub", "./provisioning", "./device-agent", "./firmware-sim")
	build.Dir = repository
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	if err := os.Setenv("PATH", binaries+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
		return 0, err
	}
	return m.Run(), nil
}
