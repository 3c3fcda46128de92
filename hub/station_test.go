package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/authority"
)

// inHub runs the command line on the folder of a hub that doesn't run.
func inHub(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetArgs(append(args, "--dir", dir))
	root.SetOut(&out)
	root.SetErr(io.Discard)
	root.SilenceErrors, root.SilenceUsage = true, true
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func initHub(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "hub")
	if out, err := inHub(t, dir, "init"); err != nil {
		t.Fatal(err, out)
	}
	return dir
}

// writeCSR writes a request for a key of its own.
func writeCSR(t *testing.T, file, name string) (keyHash string) {
	t.Helper()
	key, err := issuance.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := issuance.NewCSR(key, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := pemfile.WriteCSR(file, csr); err != nil {
		t.Fatal(err)
	}
	return hashOf(t, file)
}

// hashOf returns the SHA-256 of the key in a request.
func hashOf(t *testing.T, file string) string {
	t.Helper()
	csr, err := authority.ReadCSR(file)
	if err != nil {
		t.Fatal(err)
	}
	return identity.KeyFingerprint(csr.RawSubjectPublicKeyInfo)
}

func TestStationAuthorizeWritesTheDeviceBudget(t *testing.T) {
	dir := initHub(t)
	for name, tt := range map[string]struct {
		args []string
		want int // 0: refused
	}{
		"by default":  {nil, 10_000},
		"of 250":      {[]string{"--max-devices", "250"}, 250},
		"of all":      {[]string{"--max-devices", strconv.Itoa(math.MaxInt32)}, math.MaxInt32},
		"of none":     {[]string{"--max-devices", "0"}, 0},
		"below none":  {[]string{"--max-devices", "-3"}, 0},
		"beyond 2^31": {[]string{"--max-devices", "2147483648"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			file, out := filepath.Join(t.TempDir(), "station.csr"), filepath.Join(t.TempDir(), "authority.pem")
			key := writeCSR(t, file, "bench-"+strconv.Itoa(tt.want))
			text, err := inHub(t, dir, append([]string{"station", "authorize", "--csr", file, "--key-sha256", key, "--out", out, "--output", "json"}, tt.args...)...)
			if tt.want == 0 {
				if command.Code(err) != command.Usage {
					t.Errorf("exit code %d (%v), want %d", command.Code(err), err, command.Usage)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var said authorized
			if err := json.Unmarshal([]byte(text), &said); err != nil || said.MaxDevices != tt.want {
				t.Errorf("it says %d devices, %v", said.MaxDevices, err)
			}
			certs, err := pemfile.ReadCertificates(out)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := issuance.DeviceBudget(certs[0]); err != nil || got != tt.want {
				t.Errorf("the authority is for %d devices, %v", got, err)
			}
		})
	}
}

func TestStationIssueMakesACertificateForManifests(t *testing.T) {
	dir, out := initHub(t), filepath.Join(t.TempDir(), "bench-1")
	if text, err := inHub(t, dir, "station", "issue", "bench-1", "--out", out); err != nil {
		t.Fatal(err, text)
	}
	c, err := mtls.LoadCredentials(out, "station")
	if err != nil {
		t.Fatal(err)
	}
	if c.Identity.Role != identity.RoleStation || c.Identity.ID != "bench-1" {
		t.Errorf("it names %s", c.Identity)
	}
}
