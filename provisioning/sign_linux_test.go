package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
)

// requests writes that many requests into a folder, as a stick brings them.
func requests(t *testing.T, dir string, n int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		key, err := issuance.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		csr, err := issuance.NewCSR(key, "board")
		if err != nil {
			t.Fatal(err)
		}
		if err := pemfile.WriteCSR(filepath.Join(dir, fmt.Sprintf("%d.csr", i)), csr); err != nil {
			t.Fatal(err)
		}
	}
}

// A stick with two requests, and the station dies at every write: each board has one
// certificate in the end, the one that it had from the first.
func TestSigningKilledAtEveryStepNeverMakesASecondCertificate(t *testing.T) {
	original := bench(t)
	if err := os.WriteFile(filepath.Join(original, "po.csv"), []byte("pattern,count\npi-#,5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "order", "import", "--dir", filepath.Join(original, "S"), filepath.Join(original, "po.csv"))
	requests(t, filepath.Join(original, "stick"), 2)
	killPoints(t, 1, func(t *testing.T, point int) bool {
		dir := copyOf(t, original)
		in := func(name string) string { return filepath.Join(dir, name) }
		args := []string{"sign", "--dir", in("S"), "--order", "po", "--csr", in("stick")}
		killed, _, _ := run(t, point, args...)
		seen := make(journal)
		seen.follow(t, in("S"))
		must(t, args...)
		seen.follow(t, in("S"))
		must(t, "manifest", "--dir", in("S"), "--out", in("1.jws"))
		seen.listed(t, in("root/root.crt"), in("1.jws"))
		for _, name := range []string{"0.crt", "1.crt", "ca.crt"} {
			if _, err := pemfile.ReadCertificates(in("stick/" + name)); err != nil {
				t.Error(err)
			}
		}
		if len(seen) != 2 || t.Failed() {
			t.Fatalf("killed at point %d: %d devices for 2 requests", point, len(seen))
		}
		return killed
	})
}

// The station's key is in the TPM: it issues with it, and not with another.
func TestStationWhoseKeyIsInTheTPMIssues(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	t.Setenv("FLEETHUB_TPM", tpmtest.Start(t).Address())
	must(t, "init", "--dir", in("S"), "--name", "bench-1", "--key", "tpm")
	if out := output(t, "key", "show", "--dir", in("S")); !strings.Contains(out, "is in: TPM") {
		t.Error(out)
	}
	if err := authorize([]string{"-root", in("root"), "-csr", in("S/station.csr"), "-out", in("authority.crt")}); err != nil {
		t.Fatal(err)
	}
	must(t, "accept", "--dir", in("S"), in("authority.crt"))
	must(t, "issue", "--dir", in("S"), "--id", "a", "--out", in("A"))
	must(t, "manifest", "--dir", in("S"), "--out", in("1.jws"))
	if m, err := readManifest(in("1.jws"), in("root/root.crt")); err != nil || len(m.Devices) != 1 {
		t.Errorf("%d devices, %v", len(m.Devices), err)
	}
	for _, args := range [][]string{{"key", "encrypt"}, {"key", "decrypt"}} {
		cmd := program(t, append(args, "--dir", in("S")))
		cmd.Env = append(os.Environ(), "CREDENTIALS_DIRECTORY="+in("none"))
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("%v: %s", args, out)
		}
	}
	t.Setenv("FLEETHUB_TPM", tpmtest.Start(t).Address())
	cmd := program(t, []string{"issue", "--dir", in("S"), "--id", "b", "--out", in("B")})
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "station.key") {
		t.Errorf("another machine's TPM: %v %s", err, out)
	}
}
