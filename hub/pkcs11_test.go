//go:build pkcs11

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/mtls"
)

// The root and the hub's issuing CA are keys in SoftHSM2; the hub's successor, too.
func TestHubIsMadeWithItsKeysInAnHSM(t *testing.T) {
	const module = "/usr/lib/softhsm/libsofthsm2.so" // Debian packages softhsm2 and opensc
	store := t.TempDir()
	config := filepath.Join(store, "softhsm2.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, "directories.tokendir = %s\nlog.level = ERROR\n", store), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", config)
	tool := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
	}
	tool("softhsm2-util", "--init-token", "--free", "--label", "fleet", "--so-pin", "12345678", "--pin", "87654321")
	for i, label := range []string{"root", "hub", "hub-2"} {
		tool("pkcs11-tool", "--module", module, "--token-label", "fleet", "--login", "--pin", "87654321",
			"--keypairgen", "--key-type", "EC:prime256v1", "--label", label, "--id", fmt.Sprintf("0%d", i+1), "--usage-sign")
	}
	uri := func(object string) string { return "pkcs11:token=fleet;object=" + object + "?module-path=" + module }
	credentials(t, map[string]string{"root.key": "87654321", "operational.key": "87654321"})
	dir := filepath.Join(t.TempDir(), "hub")
	mustHub(t, dir, "init --root-key "+uri("root")+" --key "+uri("hub"))
	kept(t, filepath.Join(dir, "root", "root.key"), cakey.HSM)
	kept(t, filepath.Join(dir, "ca", "operational.key"), cakey.HSM)
	refused(t, dir, "ca rotate", 2, "--key pkcs11:URI")
	mustHub(t, dir, "ca rotate --key "+uri("hub-2"))
	out := filepath.Join(t.TempDir(), "backend")
	mustHub(t, dir, "service issue backend --out "+out)
	if c, err := mtls.LoadCredentials(out, "service"); err != nil || c.Leaf.Issuer.CommonName != "hub-2" {
		t.Errorf("%v %v", c, err)
	}
	refused(t, dir, "ca encrypt --confirm", 4, "no key in a file that is plain")
}
