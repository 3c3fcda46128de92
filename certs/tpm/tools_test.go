package tpm

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
)

// tool runs a program of the TCG's software stack on the emulator.
func tool(t *testing.T, e *tpmtest.Emulator, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+e.TCTI(), "TPM2OPENSSL_TCTI="+e.TCTI(), "TSS2_LOG=all+error")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v; it needs the Debian packages tpm2-tools and tpm2-openssl\n%s", name, args, err, out)
	}
	return string(out)
}

// files writes our key's file and a message beside it.
func files(t *testing.T, k *Key) (key, message, signature string) {
	t.Helper()
	dir := t.TempDir()
	key, message, signature = filepath.Join(dir, "device.key"), filepath.Join(dir, "message"), filepath.Join(dir, "signature")
	if err := k.Write(key); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(message, []byte("message"), 0o600); err != nil {
		t.Fatal(err)
	}
	return key, message, signature
}

func wantSigned(t *testing.T, k *Key, path string) {
	t.Helper()
	signature, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	if !ecdsa.VerifyASN1(k.public, digest[:], signature) {
		t.Errorf("the signature %x is wrong", signature)
	}
}

func TestOpenSSLProviderLoadsOurKeys(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	provider := []string{"-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2"}
	for _, pin := range []string{"", "1234"} {
		var k *Key
		args := []string{"dgst", "-sha256"}
		if pin == "" {
			k = mustCreateKey(t, d, nil)
		} else {
			k = mustCreateKey(t, d, []byte(pin))
			args = append(args, "-passin", "pass:"+pin)
		}
		key, message, signature := files(t, k)
		tool(t, e, "openssl", append(append(args, "-sign", key, "-out", signature), append(provider, message)...)...)
		wantSigned(t, k, signature)
	}
}

func TestTPM2ToolsLoadOurKeys(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	k := mustCreateKey(t, d, nil)
	key, message, signature := files(t, k)
	context := filepath.Join(t.TempDir(), "key.ctx")
	tool(t, e, "tpm2_load", "-r", key, "-c", context)
	tool(t, e, "tpm2_sign", "-c", context, "-g", "sha256", "-s", "ecdsa", "-f", "plain", "-o", signature, message)
	wantSigned(t, k, signature)
	tool(t, e, "tpm2_flushcontext", "-t")
}

func TestWeLoadKeysThatOpenSSLMade(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	mustCreateKey(t, d, nil) // makes the storage key
	path := filepath.Join(t.TempDir(), "openssl.key")
	tool(t, e, "openssl", "genpkey", "-provider", "tpm2", "-algorithm", "EC", "-pkeyopt", "group:P-256", "-pkeyopt", "parent:0x81000001", "-out", path)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := d.ReadKey(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSigns(t, k)
}

func TestEndorsementHashIsWhatThePublicToolsSay(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	dir := t.TempDir()
	tool(t, e, "tpm2_createek", "-G", "ecc", "-c", filepath.Join(dir, "ek.ctx"), "-u", filepath.Join(dir, "ek.pem"), "-f", "pem")
	tool(t, e, "tpm2_flushcontext", "-t")
	data, err := os.ReadFile(filepath.Join(dir, "ek.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatal("tpm2_createek wrote no PEM")
	}
	if _, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		t.Fatal(err)
	}
	ek, err := d.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	if (Endorsement{Public: block.Bytes}).Hash() != ek.Hash() || ek.Certificate != nil {
		t.Errorf("ours is %s, a certificate: %t", ek.Hash(), ek.Certificate != nil)
	}
}
