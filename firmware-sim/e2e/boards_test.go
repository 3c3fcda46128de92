package e2e

import (
	"debug/elf"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestAgentForTheBoards builds what `make cross` ships, and runs the foreign ones on emulated processors.
func TestAgentForTheBoards(t *testing.T) {
	t.Parallel()
	dist := t.TempDir()
	cross := exec.Command("make", "cross", "DIST="+dist)
	cross.Dir = repository
	if out, err := cross.CombinedOutput(); err != nil {
		t.Fatalf("make cross: %v\n%s", err, out)
	}
	agent := func(target string) string { return filepath.Join(dist, "device-agent-linux-"+target) }

	for _, target := range []string{"amd64", "arm64", "armv7", "armv6"} {
		t.Run("static and stripped "+target, func(t *testing.T) { checkStatic(t, agent(target)) })
	}

	f := newFleet(t)
	emulated := []struct{ target, id, emulator, cpu string }{
		{"arm64", "pi-4", "qemu-aarch64-static", "cortex-a72"},
		{"armv6", "pi-zero", "qemu-arm-static", "arm1176"},
	}
	for _, board := range emulated {
		f.issue(board.id)
	}
	dashboard := serviceFiles(f.service("dashboard"))
	f.serve()
	f.register()
	for _, board := range emulated {
		t.Run("runs on "+board.cpu, func(t *testing.T) {
			f := f.with(t)
			reader := f.mosquittoSub(dashboard, "mqttv5", "dashboard:"+board.id, "-t", "d/"+board.id+"/tele/#")
			device := background(t, board.emulator, "-cpu", board.cpu, agent(board.target),
				"run", "--dir", f.device(board.id), "--hub", "127.0.0.1:"+port(f.at.MQTT), "--interval", "1s")
			if err := reader.sees(`(?m)^d/` + board.id + `/tele/\S+ \{.*"seq"`); err != nil {
				t.Errorf("%v\nthe agent said:\n%s", err, device.output())
			}
			f.awaitState(board.id, "active")
			if code, err := device.stop(); err != nil || code != 0 {
				t.Errorf("agent stopped with %d, %v:\n%s", code, err, device.output())
			}
		})
	}
}

// checkStatic fails for a binary that needs a loader or a library of the board, or that carries its symbols along.
func checkStatic(t *testing.T, path string) {
	binary, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	for _, segment := range binary.Progs {
		if segment.Type == elf.PT_INTERP {
			t.Error("needs a dynamic loader")
		}
	}
	if libraries, err := binary.ImportedLibraries(); err == nil && len(libraries) > 0 {
		t.Errorf("needs %v", libraries)
	}
	for _, name := range []string{".symtab", ".debug_info", ".zdebug_info"} {
		if binary.Section(name) != nil {
			t.Errorf("has %s: not stripped", name)
		}
	}
}
