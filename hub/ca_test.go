package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
	"github.com/fleethub/fleethub/hub/authority"
)

// credentials gives the commands passphrases as systemd does.
func credentials(t *testing.T, passphrases map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, passphrase := range passphrases {
		if err := os.WriteFile(filepath.Join(dir, name+cakey.CredentialSuffix), []byte(passphrase), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
}

// mustHub runs the command line, without --dir but what args say, and returns its output.
func mustHub(t *testing.T, dir string, args string) string {
	t.Helper()
	out, err := inHub(t, dir, strings.Fields(args)...)
	if err != nil {
		t.Fatalf("hub %s: %v", args, err)
	}
	return out
}

// refused runs the command line, which must fail with that exit code and text.
func refused(t *testing.T, dir, args string, code int, says string) {
	t.Helper()
	_, err := inHub(t, dir, strings.Fields(args)...)
	if command.Code(err) != code || err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("hub %s: exit code %d (%v), want %d and %q", args, command.Code(err), err, code, says)
	}
}

func kept(t *testing.T, file string, want cakey.Kind) {
	t.Helper()
	if got, err := cakey.KindOf(file); err != nil || got != want {
		t.Errorf("%s is kept in %q (%v), want %q", file, got, err, want)
	}
}

func TestHubIsMadeWithItsKeysWhereItIsTold(t *testing.T) {
	credentials(t, map[string]string{"operational.key": "correct horse battery", "root.key": "battery horse correct"})
	emulator := tpmtest.Start(t)
	t.Setenv("FLEETHUB_ISSUING_KEY__TPM", emulator.Address())
	for name, tt := range map[string]struct {
		flags    string
		ca, root cakey.Kind
	}{
		"by default":       {"", cakey.File, cakey.File},
		"with passphrases": {"--key passphrase --root-key passphrase", cakey.Encrypted, cakey.Encrypted},
		"in the TPM":       {"--key tpm", cakey.TPM, cakey.File},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "hub")
			mustHub(t, dir, "init "+tt.flags)
			kept(t, filepath.Join(dir, "ca", "operational.key"), tt.ca)
			kept(t, filepath.Join(dir, "root", "root.key"), tt.root)
			out := filepath.Join(t.TempDir(), "backend")
			mustHub(t, dir, "service issue backend --out "+out)
			if _, err := mtls.LoadCredentials(out, "service"); err != nil {
				t.Error(err)
			}
			// The successor's key is kept as the former's, and signs.
			mustHub(t, dir, "ca rotate")
			kept(t, filepath.Join(dir, "ca", "operational.key"), tt.ca)
			mustHub(t, dir, "operator issue ann --out "+filepath.Join(t.TempDir(), "ann"))
		})
	}
	refused(t, filepath.Join(t.TempDir(), "hub"), "init --key vault", command.Usage, "--key")
	refused(t, filepath.Join(t.TempDir(), "hub"), "init --root-key vault", command.Usage, "--root-key")
	refused(t, filepath.Join(t.TempDir(), "hub"), "init --key pkcs11:token=a", command.Failure, "token")
	credentials(t, nil)
	refused(t, filepath.Join(t.TempDir(), "hub"), "init --key passphrase", command.Failure, "operational.key.passphrase")
}

func TestIssuingKeyIsEncryptedInPlace(t *testing.T) {
	dir := initHub(t)
	key := filepath.Join(dir, "ca", "operational.key")
	plain, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	mustHub(t, dir, "ca rotate") // so that there are two
	files, err := filepath.Glob(filepath.Join(dir, "ca", "*.key"))
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	if out := mustHub(t, dir, "ca encrypt"); strings.Count(out, "would encrypt") != 2 || !strings.Contains(out, "add --confirm") {
		t.Errorf("the dry run says\n%s", out)
	}
	for _, f := range files {
		kept(t, f, cakey.File)
	}
	credentials(t, map[string]string{"operational.key": "short"})
	refused(t, dir, "ca encrypt --confirm", command.Failure, "12 to")
	credentials(t, map[string]string{"operational.key": "correct horse battery"})
	mustHub(t, dir, "ca encrypt --confirm")
	for _, f := range files {
		kept(t, f, cakey.Encrypted)
	}
	if out := mustHub(t, dir, "ca list"); strings.Count(out, "encrypted file") != 2 {
		t.Errorf("it lists\n%s", out)
	}
	mustHub(t, dir, "service issue backend --out "+filepath.Join(t.TempDir(), "backend"))
	refused(t, dir, "ca encrypt --confirm", command.NotFound, "no key in a file that is plain")
	credentials(t, map[string]string{"operational.key": "not this passphrase"})
	refused(t, dir, "ca decrypt --confirm", command.Failure, "passphrase is wrong")
	credentials(t, map[string]string{"operational.key": "correct horse battery"})
	mustHub(t, dir, "ca decrypt --confirm")
	former, err := filepath.Glob(filepath.Join(dir, "ca", "former-*.key"))
	if err != nil || len(former) != 1 {
		t.Fatal(former, err)
	}
	if again, err := os.ReadFile(former[0]); err != nil || !bytes.Equal(again, plain) {
		t.Errorf("the key is not what it was: %v", err)
	}
}

// The root's key never comes near the hub: files go to and fro.
func TestHubOfARootOnAStick(t *testing.T) {
	credentials(t, map[string]string{"root.key": "battery horse correct"})
	work := t.TempDir()
	in := func(name string) string { return filepath.Join(work, name) }
	stick, dir := in("stick"), in("hub")
	onStick := func(args string) string { t.Helper(); return mustHub(t, stick, args) }

	onStick("root init --trust-domain fleet.example")
	kept(t, filepath.Join(stick, "root.key"), cakey.Encrypted)
	refused(t, stick, "root init --trust-domain fleet.example", command.Failure, "never overwritten")

	// A folder that waits for its CA is a hub's, but for that.
	mustHub(t, dir, "init --root "+filepath.Join(stick, "root.crt")+" --hostname hub.example --operator ann")
	if _, err := os.Stat(filepath.Join(dir, "root")); err == nil {
		t.Error("the hub has a folder root/")
	}
	refused(t, dir, "service issue backend --out "+in("backend"), command.Failure, "no issuing CA yet")
	request := filepath.Join(dir, "ca", "next.csr")
	onStick("root sign --kind operational --csr " + request + " --key-sha256 " + hashOf(t, request) + " --out " + in("hub.crt"))
	refused(t, dir, "station accept "+in("hub.crt"), command.Failure, "factory is required")
	mustHub(t, dir, "ca install "+in("hub.crt"))
	mustHub(t, dir, "ca install "+in("hub.crt")) // once more is as good as once
	operator, err := mtls.LoadCredentials(filepath.Join(dir, "operator"), "operator")
	if err != nil || operator.Identity.ID != "ann" || !slices.Equal(operator.Identity.OU, []string{"admin"}) {
		t.Errorf("the first operator: %v %v", operator, err)
	}
	server, err := pemfile.ReadCertificates(filepath.Join(dir, "tls", "server.crt"))
	if err != nil || !slices.Contains(server[0].DNSNames, "hub.example") {
		t.Errorf("the server certificate: %v %v", server[0].DNSNames, err)
	}

	// A station, likewise.
	station := filepath.Join(work, "bench-1.csr")
	key := writeCSR(t, station, "bench-1")
	refused(t, stick, "root sign --kind factory --max-devices 0 --csr "+station+" --out "+in("bench-1.crt"), command.Usage, "max-devices")
	refused(t, stick, "root sign --kind operational --max-devices 5 --csr "+station+" --out "+in("bench-1.crt"), command.Usage, "max-devices")
	refused(t, stick, "root sign --kind sub --csr "+station+" --out "+in("bench-1.crt"), command.Usage, "--kind")
	onStick("root sign --kind factory --max-devices 12 --valid 30d --csr " + station + " --key-sha256 " + key[:16] + " --out " + in("bench-1.crt"))
	refused(t, stick, "root sign --kind factory --csr "+station+" --out "+in("bench-1.crt"), command.Failure, "not overwritten")
	handed, err := pemfile.ReadCertificates(in("bench-1.crt"))
	if err != nil || len(handed) != 3 || handed[2].Subject.CommonName != "hub" {
		t.Errorf("the station gets %d certificates, want its own, the root's and the hub's (%v)", len(handed), err)
	}
	mustHub(t, dir, "station accept "+in("bench-1.crt"))
	if known, err := pemfile.ReadCertificates(filepath.Join(dir, "issuers", "bench-1.crt")); err != nil || !known[0].Equal(handed[0]) {
		t.Errorf("the hub knows the station as %v, %v", known, err)
	}
	refused(t, dir, "station accept "+in("nothing.crt"), command.NotFound, "hub root sign")
	refused(t, initHub(t), "station accept "+in("bench-1.crt"), command.Failure, "by no root")

	var list rootList
	if err := json.Unmarshal([]byte(onStick("root list --output json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Signed) != 2 || list.Signed[0].Kind != "operational" || list.Signed[1].Name != "bench-1" || list.Signed[1].MaxDevices != 12 {
		t.Errorf("the record has %+v", list.Signed)
	}

	// The next CA goes the same way, and the root's folder serves as --root, too.
	out := mustHub(t, dir, "ca rotate")
	if !regexp.MustCompile(`request of hub-2 in .*next\.csr`).MatchString(out) {
		t.Errorf("it says\n%s", out)
	}
	onStick("root sign --kind operational --csr " + request + " --key-sha256 " + hashOf(t, request) + " --out " + in("hub-2.crt"))
	mustHub(t, dir, "ca install "+in("hub-2.crt"))
	mustHub(t, dir, "ca rotate --root "+stick)
	if out := mustHub(t, dir, "ca list"); !regexp.MustCompile(`(?m)^hub-3 +issuing(.|\n)*^hub(-2)? +former(.|\n)*^hub(-2)? +former`).MatchString(out) {
		t.Errorf("it lists\n%s", out)
	}
	credentials(t, map[string]string{"root.key": "not this passphrase"})
	refused(t, dir, "ca rotate --root "+stick, command.Failure, "passphrase is wrong")
	if _, err := os.Stat(request); err == nil {
		t.Error("a root that doesn't open leaves a request")
	}
}

func TestInitAtARootOfAnotherNameIsRefused(t *testing.T) {
	stick := filepath.Join(t.TempDir(), "stick")
	mustHub(t, stick, "root init --trust-domain fleet.example --key file")
	dir := filepath.Join(t.TempDir(), "hub")
	root := filepath.Join(stick, "root.crt")
	refused(t, dir, "init --trust-domain other.example --root "+root, command.Usage, "is of fleet.example")
	refused(t, dir, "init --root "+root+".missing", command.NotFound, "hub root init")
	station := filepath.Join(t.TempDir(), "s.csr")
	key := writeCSR(t, station, "bench-1")
	factory := filepath.Join(t.TempDir(), "s.crt")
	mustHub(t, stick, "root sign --kind factory --csr "+station+" --key-sha256 "+key+" --out "+factory)
	refused(t, dir, "init --root "+factory, command.Failure, "a root is required")
	if _, err := os.Stat(dir); err == nil {
		t.Error("a refused init left a folder")
	}
}

// A first install that was killed is completed by doing it again.
func TestInterruptedFirstInstallIsCompleted(t *testing.T) {
	work := t.TempDir()
	stick, dir, crt := filepath.Join(work, "stick"), filepath.Join(work, "hub"), filepath.Join(work, "hub.crt")
	mustHub(t, stick, "root init --trust-domain fleet.example --key file")
	mustHub(t, dir, "init --root "+filepath.Join(stick, "root.crt"))
	request := filepath.Join(dir, "ca", "next.csr")
	mustHub(t, stick, "root sign --kind operational --csr "+request+" --key-sha256 "+hashOf(t, request)+" --out "+crt)
	cert, err := pemfile.ReadCertificates(crt)
	if err != nil {
		t.Fatal(err)
	}
	// Killed as soon as the CA was in place.
	if err := pemfile.WriteCertificates(filepath.Join(dir, "ca", "next.crt"), cert[0]); err != nil {
		t.Fatal(err)
	}
	mustHub(t, dir, "ca list") // any command
	if _, err := authority.In(dir, cakey.Opener{}).Issuer(); err != nil {
		t.Fatal(err)
	}
	mustHub(t, dir, "ca install "+crt)
	if _, err := mtls.LoadCredentials(filepath.Join(dir, "operator"), "operator"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ca", "init.json")); err == nil {
		t.Error("the first install is still to be done")
	}
}
