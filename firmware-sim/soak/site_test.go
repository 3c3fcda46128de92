package soak

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// The fleet of every test.
const (
	deviceCount = 200
	prefix      = "d-"
)

// smallSegments has the hub reserve its disk in the smallest pieces that it takes: a small disk holds some, and a soak
// goes through many. manyCheckpoints has it write its state anew as often as it does at all.
const (
	smallSegments   = "FLEETHUB_JOURNAL__SEGMENT_SIZE=1048576"
	manyCheckpoints = "FLEETHUB_JOURNAL__CHECKPOINT_AFTER=65536"
)

// serviceNames are the backend applications that the fleet has certificates for.
var serviceNames = []string{
	"always-1", "always-2", "flap-a", "flap-b", "flap-c", "change",
	"crew-1", "crew-2", "crew-3", "command", "auditor", "witness",
}

// site is a hub's folder with devices of one station, made by the real programs, and everybody's credentials.
type site struct {
	bin      string
	template string // a hub's folder in which every device is registered; copied, never served
	devices  []mtls.Credentials
	services map[string]mtls.Credentials
}

// newSite makes a site below dir with the programs in bin.
func newSite(bin, dir string) (*site, error) {
	s := &site{bin: bin, template: filepath.Join(dir, "hub"), services: make(map[string]mtls.Credentials)}
	station, authority := filepath.Join(dir, "station"), filepath.Join(dir, "authority.pem")
	var made struct {
		KeyHash string `json:"key_sha256"`
	}
	out, err := exec.Command(filepath.Join(s.bin, "provisioning"), "init", "--dir", station, "--name", "bench-1", "--output", "json").Output()
	if err == nil {
		err = json.Unmarshal(out, &made)
	}
	if err != nil {
		return nil, fmt.Errorf("provisioning init: %w: %s", err, out)
	}
	for _, c := range [][]string{
		{"hub", "init", "--dir", s.template, "--hostname", "localhost", "--hostname", "127.0.0.1"},
		{"hub", "station", "authorize", "--dir", s.template, "--csr", filepath.Join(station, "station.csr"), "--key-sha256", made.KeyHash, "--out", authority},
		{"provisioning", "accept", "--dir", station, authority},
		{"provisioning", "batch", "--dir", station, "--prefix", prefix, "--count", strconv.Itoa(deviceCount), "--out", filepath.Join(dir, "devices")},
		{"provisioning", "manifest", "--dir", station, "--out", filepath.Join(dir, "manifest")},
	} {
		if err := s.run(c[0], c[1:]...); err != nil {
			return nil, err
		}
	}
	for _, name := range serviceNames {
		folder := filepath.Join(dir, "services", name)
		if err := s.run("hub", "service", "issue", name, "--dir", s.template, "--out", folder); err != nil {
			return nil, err
		}
		var err error
		if s.services[name], err = mtls.LoadCredentials(folder, "service"); err != nil {
			return nil, err
		}
	}
	folders, err := filepath.Glob(filepath.Join(dir, "devices", prefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, f := range folders {
		c, err := mtls.LoadCredentials(f, "device")
		if err != nil {
			return nil, err
		}
		s.devices = append(s.devices, c)
	}
	return s, s.register(filepath.Join(dir, "manifest"), filepath.Join(dir, "log"))
}

// run runs one program to its end.
func (s *site) run(program string, args ...string) error {
	out, err := exec.Command(filepath.Join(s.bin, program), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, out)
	}
	return nil
}

// register has a hub take the manifest into the template, and stops it in good order.
func (s *site) register(manifest, log string) error {
	h := &hub{bin: s.bin, dir: s.template, log: log, environment: []string{smallSegments}}
	if err := h.start(); err != nil {
		return err
	}
	defer h.kill()
	if err := s.run("hub", "manifest", "import", manifest, "--dir", s.template); err != nil {
		return err
	}
	return h.stop()
}

// hubIn returns a hub over a copy of the template in folder dir; the test's end kills it. It does not run yet.
func (s *site) hubIn(t *testing.T, dir string, environment ...string) *hub {
	t.Helper()
	h := &hub{bin: s.bin, dir: filepath.Join(dir, "hub"), log: filepath.Join(t.TempDir(), "log"), environment: environment}
	if out, err := exec.Command("cp", "-a", s.template, h.dir).CombinedOutput(); err != nil {
		t.Fatalf("copy the hub's folder: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		h.kill()
		if t.Failed() {
			text := h.output()
			t.Logf("end of the hub's log:\n%s", text[max(0, len(text)-6000):])
			if keep := os.Getenv("SOAK_KEEP"); keep != "" { // a folder for what a person wants to look at afterwards
				to := filepath.Join(keep, strings.ReplaceAll(t.Name(), "/", "-")+"-"+strconv.FormatInt(time.Now().Unix(), 10))
				_ = os.MkdirAll(keep, 0o700)
				_ = exec.Command("cp", "-a", h.dir, to).Run()
				_ = exec.Command("cp", "-a", h.log, to+".log").Run()
			}
		}
	})
	return h
}

// serve starts a hub over a fresh copy of the template in the test's own folder.
func (s *site) serve(t *testing.T, environment ...string) *hub {
	t.Helper()
	h := s.hubIn(t, t.TempDir(), environment...)
	if err := h.start(); err != nil {
		t.Fatal(err)
	}
	return h
}
