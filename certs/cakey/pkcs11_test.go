//go:build pkcs11

package cakey

import (
	"crypto"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/issuance"
)

const module = "/usr/lib/softhsm/libsofthsm2.so" // Debian packages softhsm2 and opensc

// A key that pkcs11-tool made in SoftHSM2 signs for us, with its PIN only.
func TestKeyInAnHSMIssuesCertificates(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, "directories.tokendir = %s\nlog.level = ERROR\n", dir), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", config)
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
	}
	run("softhsm2-util", "--init-token", "--free", "--label", "fleet-ca", "--so-pin", "12345678", "--pin", "87654321")
	run("pkcs11-tool", "--module", module, "--token-label", "fleet-ca", "--login", "--pin", "87654321",
		"--keypairgen", "--key-type", "EC:prime256v1", "--label", "station", "--id", "01", "--usage-sign")
	uri := "pkcs11:token=fleet-ca;object=station?module-path=" + module + "\n"
	path := write(t, []byte(uri), 0o600)
	for name, broken := range map[string]string{"another key": strings.Replace(uri, "station", "other", 1), "another token": strings.Replace(uri, "fleet-ca", "none", 1)} {
		if _, err := with("87654321").Open(write(t, []byte(broken), 0o600)); err == nil {
			t.Error(name)
		}
	}
	if _, err := with("11111111").Open(path); err == nil {
		t.Error("a wrong PIN opens the key")
	}
	key, err := with("87654321").Open(path)
	if err != nil {
		t.Fatal(err)
	}
	signs(t, key, key.Public())
	if _, err := issuance.NewRoot("fleet.example", key, 0, nil); err != nil {
		t.Error(err)
	}
	if kind, err := KindOf(path); err != nil || kind != HSM {
		t.Errorf("%s %v", kind, err)
	}
	var _ crypto.Signer = key
}
