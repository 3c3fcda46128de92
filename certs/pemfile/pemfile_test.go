package pemfile_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/pemfile"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCertificate(t *testing.T, key crypto.Signer, name string) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// wantOnly fails the test if dir holds anything but those names: no temporary file is left.
func wantOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("%s holds %q, want %q", dir, got, names)
	}
}

func wantMode(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != mode {
		t.Errorf("%s has mode %v, want %v", path, info.Mode(), mode)
	}
}

func TestKeysAndCertificatesReadBackAsWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keyFile, certFile := filepath.Join(dir, "a.key"), filepath.Join(dir, "a.crt")
	key := newKey(t)
	first, second := newCertificate(t, key, "first"), newCertificate(t, key, "second")
	if err := errors.Join(pemfile.WriteKey(keyFile, key), pemfile.WriteCertificates(certFile, first, second)); err != nil {
		t.Fatal(err)
	}
	wantMode(t, keyFile, 0o600)
	wantMode(t, certFile, 0o644)
	wantOnly(t, dir, "a.crt", "a.key")
	if got, err := pemfile.ReadKey(keyFile); err != nil || !key.Equal(got) {
		t.Errorf("ReadKey = %T, %v; want the key that was written", got, err)
	}
	certs, err := pemfile.ReadCertificates(certFile)
	if err != nil || len(certs) != 2 || !certs[0].Equal(first) || !certs[1].Equal(second) {
		t.Errorf("ReadCertificates = %d certificates, %v; want the two in their order", len(certs), err)
	}
}

func TestRequestReadsBackAsWritten(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.csr")
	if err := pemfile.WriteCSR(path, []byte("whatever it holds")); err != nil {
		t.Fatal(err)
	}
	wantMode(t, path, 0o644)
	if got, err := pemfile.ReadCSR(path); err != nil || string(got) != "whatever it holds" {
		t.Errorf("ReadCSR = %q, %v", got, err)
	}
}

func TestReadKeyTakesWhatOpensslWrites(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"PKCS 8":                        {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
		"SEC 1":                         {"ecparam", "-name", "prime256v1", "-genkey", "-noout"},
		"SEC 1 after its EC PARAMETERS": {"ecparam", "-name", "secp384r1", "-genkey"},
	} {
		path := filepath.Join(t.TempDir(), "a.key")
		if out, err := exec.Command("openssl", append(args, "-out", path)...).CombinedOutput(); err != nil {
			t.Fatalf("openssl: %v\n%s", err, out)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := pemfile.ReadKey(path); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeyThatOthersCanReachIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.key")
	if err := pemfile.WriteKey(path, newKey(t)); err != nil {
		t.Fatal(err)
	}
	for mode, good := range map[fs.FileMode]bool{
		0o600: true, 0o400: true, 0o700: true,
		0o640: false, 0o620: false, 0o610: false, 0o604: false, 0o602: false, 0o601: false, 0o644: false, 0o777: false,
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := pemfile.ReadKey(path)
		if (err == nil) != good {
			t.Errorf("mode %04o: %v", mode, err)
		}
		if err != nil && (!strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "chmod 600")) {
			t.Errorf("mode %04o: %q doesn't say which file and what to do", mode, err)
		}
	}
}

func TestWriteReplacesALooseModeByItsOwn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.key")
	if err := os.WriteFile(path, []byte("old"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := pemfile.WriteKey(path, newKey(t)); err != nil {
		t.Fatal(err)
	}
	wantMode(t, path, 0o600)
}

func TestWriteReplacesALinkAndNotWhatItPointsTo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	target, link := filepath.Join(dir, "elsewhere"), filepath.Join(dir, "a.crt")
	if err := errors.Join(os.WriteFile(target, []byte("precious"), 0o600), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	if err := pemfile.Write(link, []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(target); err != nil || string(data) != "precious" {
		t.Errorf("the link's target holds %q, %v", data, err)
	}
	wantMode(t, link, 0o644)
}

func TestFilesThatHoldSomethingElseAreRefusedByName(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	keyPEM, err := pemfile.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, csrPEM := pemfile.EncodeCertificates(newCertificate(t, key, "a")), pemfile.EncodeCSR([]byte("csr"))
	block := func(kind, contents string) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte(contents)})
	}
	pkcs8 := func(key any, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return block("PRIVATE KEY", string(der))
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	edPEM := pkcs8(edKey, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	rsaPEM := pkcs8(rsaKey, err)
	readKey := func(path string) error { _, err := pemfile.ReadKey(path); return err }
	readCerts := func(path string) error { _, err := pemfile.ReadCertificates(path); return err }
	readCSR := func(path string) error { _, err := pemfile.ReadCSR(path); return err }
	for _, c := range []struct {
		name    string
		read    func(string) error
		data    []byte
		because string
	}{
		{"empty file", readKey, nil, "not a PEM file"},
		{"DER certificate", readCerts, newCertificate(t, key, "a").Raw, "not a PEM file"},
		{"text", readCSR, []byte("hello\n"), "not a PEM file"},
		{"zeros, as after a power cut without fsync", readKey, make([]byte, 300), "not a PEM file"},
		{"certificate for a key", readKey, certPEM, `no PEM block "PRIVATE KEY"`},
		{"key for a certificate", readCerts, keyPEM, `no PEM block "CERTIFICATE"`},
		{"certificate for a request", readCSR, certPEM, `no PEM block "CERTIFICATE REQUEST"`},
		{"request for a certificate", readCerts, csrPEM, `no PEM block "CERTIFICATE"`},
		{"encrypted key", readKey, block("ENCRYPTED PRIVATE KEY", "x"), `no PEM block "PRIVATE KEY"`},
		{"key block of noise", readKey, block("PRIVATE KEY", "noise"), "no usable private key"},
		{"EC key block of noise", readKey, block("EC PRIVATE KEY", "noise"), "no usable private key"},
		{"Ed25519 key", readKey, edPEM, "ECDSA key on P-256 or P-384 is required"},
		{"RSA key", readKey, rsaPEM, "ECDSA key on P-256 or P-384 is required"},
		{"key cut short", readKey, keyPEM[:len(keyPEM)/2], "not a PEM file"},
		{"second certificate malformed", readCerts, append(bytes.Clone(certPEM), block("CERTIFICATE", "noise")...), "certificate 2"},
		{"second certificate cut short", readCerts, append(bytes.Clone(certPEM), certPEM[:len(certPEM)/2]...), "damaged"},
		{"first certificate not base64", readCerts, append(bytes.Replace(certPEM, []byte("M"), []byte("\x00"), 1), certPEM...), "damaged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "file.pem")
			if err := os.WriteFile(path, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			err := c.read(path)
			if err == nil || !strings.Contains(err.Error(), c.because) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v; want one with the path and %q", err, c.because)
			}
		})
	}
}

func TestTextAroundThePEMBlocksIsSkipped(t *testing.T) {
	t.Parallel()
	cert := newCertificate(t, newKey(t), "a")
	path := filepath.Join(t.TempDir(), "a.crt")
	data := append([]byte("Certificate:\n    Data: as openssl x509 -text writes it\n"), pemfile.EncodeCertificates(cert)...)
	if err := os.WriteFile(path, append(data, "and a note\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if certs, err := pemfile.ReadCertificates(path); err != nil || len(certs) != 1 {
		t.Errorf("ReadCertificates = %d, %v", len(certs), err)
	}
}

func TestHugeFileIsRefusedWithoutReadingItWhole(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "huge.pem")
	cert := pemfile.EncodeCertificates(newCertificate(t, newKey(t), "a"))
	if err := errors.Join(os.WriteFile(path, cert, 0o644), os.Truncate(path, 1<<40)); err != nil {
		t.Fatal(err)
	}
	if _, err := pemfile.ReadCertificates(path); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a file of 1 TiB: %v", err)
	}
}

// None of them may hold a program up, above all not a pipe that nobody writes to.
func TestWhatIsNoRegularFileIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, pipe, "/dev/zero", "/dev/null"} {
		if _, err := pemfile.ReadKey(path); err == nil || !strings.Contains(err.Error(), path+" is not a regular file") {
			t.Errorf("ReadKey(%s): %v", path, err)
		}
	}
	missing := filepath.Join(dir, "missing")
	if _, err := pemfile.ReadKey(missing); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("ReadKey of a missing file: %v", err)
	}
}

func TestFailedWriteKeepsTheOldFile(t *testing.T) {
	t.Parallel()
	t.Run("full disk", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		path := filepath.Join(dir, "a.crt")
		if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := child(t, "full-disk", path).CombinedOutput()
		if err != nil || !strings.Contains(string(out), path) || !strings.Contains(string(out), "file too large") {
			t.Errorf("writing beyond the limit: %v, %s", err, out)
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != "old" {
			t.Errorf("the file holds %.20q, %v", data, err)
		}
		wantOnly(t, dir, "a.crt")
	})
	t.Run("a folder in its place", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		path := filepath.Join(dir, "a.crt")
		if err := os.MkdirAll(filepath.Join(path, "inside"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := pemfile.Write(path, []byte("new"), 0o644); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Write over a folder: %v", err)
		}
		wantOnly(t, dir, "a.crt")
		wantOnly(t, path, "inside")
	})
	t.Run("no such folder", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "missing", "a.crt")
		if err := pemfile.Write(path, []byte("new"), 0o644); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("Write below a missing folder: %v", err)
		}
	})
	t.Run("a key that can't be encoded", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "a.key")
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := pemfile.WriteKey(path, opaque{newKey(t)}); err == nil {
			t.Error("a key in a TPM was written to a file")
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != "old" {
			t.Errorf("the file holds %.20q, %v", data, err)
		}
	})
}

// opaque is a signer whose key can't be had, as one in a TPM.
type opaque struct{ crypto.Signer }
