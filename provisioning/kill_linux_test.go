package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/station"
)

// killPoints calls attempt with every step-th kill point until a run outlives its own.
func killPoints(t *testing.T, step int, attempt func(t *testing.T, point int) (killed bool)) {
	t.Helper()
	points := 0
	for point := 1; attempt(t, point); point += step {
		points++
	}
	if points < 5 {
		t.Fatalf("the program was killed at %d points only, so this tests nothing", points)
	}
	t.Logf("killed at %d points", points)
}

// bench is a folder with a station in S, ready to issue, and the root's in root.
func bench(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if _, err := station.Init(in("S"), "bench-1"); err != nil {
		t.Fatal(err)
	}
	if err := authorize([]string{"-root", in("root"), "-csr", in("S/station.csr"), "-out", in("authority.crt")}); err != nil {
		t.Fatal(err)
	}
	withOpen(t, in("S"), func(s *station.Station) {
		if _, err := s.Accept(in("authority.crt")); err != nil {
			t.Fatal(err)
		}
	})
	return dir
}

// copyOf returns a copy of a bench, to be killed in.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"S/station.key", "root/root.key"} { // CopyFS widens modes
		if err := os.Chmod(filepath.Join(to, key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func withOpen(t *testing.T, dir string, do func(*station.Station)) {
	t.Helper()
	s, err := station.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	do(s)
}

// journal is what must never change for an ID once it is in the ledger.
type journal map[string]struct {
	serial      string
	certificate [sha256.Size]byte // of the DER; zero until issued
}

// follow reads the ledger and fails if an ID has another serial number or certificate
// than it had, or two IDs have the same.
func (j journal) follow(t *testing.T, dir string) {
	t.Helper()
	owners := make(map[string]string)
	withOpen(t, dir, func(s *station.Station) {
		var records []ledger.Record
		if err := s.Ledger().Devices(func(r ledger.Record) error { records = append(records, r); return nil }); err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			_, der, err := s.Ledger().Device(r.ID)
			if err != nil {
				t.Fatal(err)
			}
			seen := j[r.ID]
			if seen.serial != "" && seen.serial != r.Serial {
				t.Errorf("%s had serial number %s and now has %s", r.ID, seen.serial, r.Serial)
			}
			if other, taken := owners[r.Serial]; taken {
				t.Errorf("%s and %s have the same serial number", r.ID, other)
			}
			owners[r.Serial], seen.serial = r.ID, r.Serial
			if der != nil {
				sum := sha256.Sum256(der)
				if seen.certificate != [sha256.Size]byte{} && seen.certificate != sum {
					t.Errorf("%s has got a second certificate", r.ID)
				}
				seen.certificate = sum
			}
			j[r.ID] = seen
		}
	})
	for id := range j {
		found := false
		for _, owner := range owners {
			found = found || owner == id
		}
		if !found {
			t.Errorf("%s is no longer in the ledger", id)
		}
	}
}

// delivered fails unless the folder has the complete credentials of the ID, with the
// certificate that the ledger has for it.
func (j journal) delivered(t *testing.T, dir, id string) {
	t.Helper()
	c, err := mtls.LoadCredentials(dir, "device")
	if err != nil {
		t.Fatal(err)
	}
	if c.Identity.ID != id || sha256.Sum256(c.Leaf.Raw) != j[id].certificate {
		t.Errorf("%s holds a certificate for %s that is not the ledger's for %s", dir, c.Identity.ID, id)
	}
	leftovers, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(leftovers) > 0 {
		t.Errorf("%s has leftovers: %v %v", dir, leftovers, err)
	}
}

// listed fails unless the manifests are numbered from 1 and name every certificate of
// the ledger exactly once.
func (j journal) listed(t *testing.T, root string, files ...string) {
	t.Helper()
	named := make(map[[sha256.Size]byte]bool)
	for i, file := range files {
		m, err := readManifest(file, root)
		if err != nil {
			t.Fatal(err)
		}
		if m.Number != uint64(i+1) {
			t.Errorf("%s has number %d", file, m.Number)
		}
		for _, e := range m.Devices {
			sum := sha256.Sum256(e.Certificate)
			if named[sum] {
				t.Errorf("a certificate is named twice, for the second time in manifest %d", m.Number)
			}
			named[sum] = true
		}
	}
	for id, entry := range j {
		if !named[entry.certificate] {
			t.Errorf("%s is in no manifest", id)
		}
	}
	if len(named) != len(j) {
		t.Errorf("the manifests name %d certificates, the ledger has %d", len(named), len(j))
	}
}

func TestInitKilledAtEveryStepIsSafeToRepeat(t *testing.T) {
	killPoints(t, 1, func(t *testing.T, point int) bool {
		dir := filepath.Join(t.TempDir(), "S")
		args := []string{"init", "--dir", dir, "--name", "bench-1"}
		killed, code, output := run(t, point, args...)
		if !killed {
			if code != 0 {
				t.Fatal(output)
			}
			return false
		}
		// Made by the killed run or by this one, but whole in either case.
		if output, err := program(t, args).CombinedOutput(); err != nil && !bytes.Contains(output, []byte("holds a station already")) {
			t.Fatalf("point %d: %v: %s", point, err, output)
		}
		withOpen(t, dir, func(s *station.Station) {
			if s.Name() != "bench-1" {
				t.Errorf("point %d: the station is named %q", point, s.Name())
			}
		})
		if err := authorize([]string{"-root", filepath.Join(dir, "../root"), "-csr", filepath.Join(dir, "station.csr"), "-out", filepath.Join(dir, "../a.crt")}); err != nil {
			t.Fatalf("point %d: %v", point, err)
		}
		must(t, "accept", "--dir", dir, filepath.Join(dir, "../a.crt"))
		return true
	})
}

func TestRenewalKilledAtEveryStepLeavesOldOrNewAuthority(t *testing.T) {
	original := bench(t)
	killPoints(t, 1, func(t *testing.T, point int) bool {
		dir := copyOf(t, original)
		renewed := filepath.Join(dir, "renewed.crt")
		if err := authorize([]string{"-root", filepath.Join(dir, "root"), "-csr", filepath.Join(dir, "S/station.csr"), "-out", renewed}); err != nil {
			t.Fatal(err)
		}
		killed, _, _ := run(t, point, "accept", "--dir", filepath.Join(dir, "S"), renewed)
		withOpen(t, filepath.Join(dir, "S"), func(s *station.Station) {
			if _, err := s.Issue(station.DeviceOrder{ID: "a", Out: filepath.Join(dir, "D")}); err != nil {
				t.Errorf("point %d: %v", point, err)
			}
		})
		must(t, "accept", "--dir", filepath.Join(dir, "S"), renewed)
		return killed
	})
}

func TestIssueKilledAtEveryStepNeverMakesASecondCertificate(t *testing.T) {
	original := bench(t)
	killPoints(t, 1, func(t *testing.T, point int) bool {
		dir := copyOf(t, original)
		in := func(name string) string { return filepath.Join(dir, name) }
		args := []string{"issue", "--dir", in("S"), "--id", "a", "--out", in("deep/D"), "--ou", "x"}
		killed, _, _ := run(t, point, args...)
		seen := make(journal)
		seen.follow(t, in("S"))
		must(t, args...)
		seen.follow(t, in("S"))
		seen.delivered(t, in("deep/D"), "a")
		must(t, "manifest", "--dir", in("S"), "--out", in("1.jws"))
		seen.listed(t, in("root/root.crt"), in("1.jws"))
		if t.Failed() {
			t.Fatalf("killed at point %d", point)
		}
		return killed
	})
}

func TestManifestKilledAtEveryStepLosesAndRepeatsNoDevice(t *testing.T) {
	original := bench(t)
	must(t, "issue", "--dir", filepath.Join(original, "S"), "--id", "a", "--out", filepath.Join(original, "A"))
	killPoints(t, 1, func(t *testing.T, point int) bool {
		dir := copyOf(t, original)
		in := func(name string) string { return filepath.Join(dir, name) }
		killed, _, _ := run(t, point, "manifest", "--dir", in("S"), "--out", in("1.jws"))
		var early manifest.Manifest
		if _, err := os.Stat(in("1.jws")); err == nil {
			if early, err = readManifest(in("1.jws"), in("root/root.crt")); err != nil {
				t.Errorf("a manifest is in its place but not whole: %v", err)
			}
		}
		// A device that comes between the two tries waits for the next manifest, unless
		// the first try had not yet fixed its own.
		must(t, "issue", "--dir", in("S"), "--id", "b", "--out", in("B"))
		must(t, "manifest", "--dir", in("S"), "--out", in("folder.jws"))
		first := in("folder.jws")
		if m, err := readManifest(first, in("root/root.crt")); err == nil && m.Number == 2 {
			first = in("1.jws")
		}
		seen := make(journal)
		seen.follow(t, in("S"))
		files := []string{first}
		if first == in("1.jws") {
			files = append(files, in("folder.jws"))
		} else {
			must(t, "manifest", "--dir", in("S"), "--out", in("2.jws"))
			if _, err := os.Stat(in("2.jws")); err == nil {
				files = append(files, in("2.jws"))
			}
		}
		seen.listed(t, in("root/root.crt"), files...)
		if again, err := readManifest(first, in("root/root.crt")); early.Number != 0 && (err != nil || fmt.Sprint(again) != fmt.Sprint(early)) {
			t.Errorf("manifest 1 was %v and is %v %v", early, again, err)
		}
		if t.Failed() {
			t.Fatalf("killed at point %d", point)
		}
		return killed
	})
}

// A batch large enough for its group-wise flushes, killed at many points, is finished
// by its repetition with the IDs it began with.
func TestBatchKilledAtAnyStepIsFinishedByRepetition(t *testing.T) {
	original := bench(t)
	const devices = 20
	killPoints(t, 9, func(t *testing.T, point int) bool {
		dir := copyOf(t, original)
		in := func(name string) string { return filepath.Join(dir, name) }
		args := []string{"batch", "--dir", in("S"), "--prefix", "sim-", "--count", fmt.Sprint(devices), "--out", in("fleet")}
		killed, _, _ := run(t, point, args...)
		seen := make(journal)
		seen.follow(t, in("S"))
		must(t, args...)
		finished(t, seen, dir, devices)
		if t.Failed() {
			t.Fatalf("killed at point %d", point)
		}
		return killed
	})
}

// finished fails unless the batch in dir/fleet is complete and only once.
func finished(t *testing.T, seen journal, dir string, devices int) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	seen.follow(t, in("S"))
	if len(seen) != devices {
		t.Errorf("the batch of %d made %d devices", devices, len(seen))
	}
	for i := range devices {
		id := fmt.Sprintf("sim-%05d", i+1)
		seen.delivered(t, in("fleet/"+id), id)
	}
	must(t, "manifest", "--dir", in("S"), "--out", in("1.jws"))
	seen.listed(t, in("root/root.crt"), in("1.jws"))
}

// The same batch killed over and over at random points, across several groups.
func TestBatchKilledManyTimesIssuesEveryDeviceOnce(t *testing.T) {
	const devices, kills = 1100, 24
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := bench(t)
	args := []string{"batch", "--dir", filepath.Join(dir, "S"), "--prefix", "sim-", "--count", fmt.Sprint(devices), "--out", filepath.Join(dir, "fleet")}
	seen := make(journal)
	done := 0
	for range kills {
		if killed, code, output := run(t, 1+random.IntN(2500), args...); !killed {
			if code != 0 {
				t.Fatal(output)
			}
			break
		}
		seen.follow(t, filepath.Join(dir, "S"))
		done++
	}
	t.Logf("killed %d times", done)
	must(t, args...)
	finished(t, seen, dir, devices)
}
