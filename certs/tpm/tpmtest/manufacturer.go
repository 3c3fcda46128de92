package tpmtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Manufacturer makes TPMs with EK certificates: swtpm_setup with swtpm's local CA, each
// Manufacturer with keys of its own. Its TPMs have an RSA-2048 and a P-384 endorsement
// key, both persistent, with a certificate each that begins when it is made.
type Manufacturer struct {
	t   testing.TB
	dir string

	Root, Intermediate *x509.Certificate // the second signs EK certificates
}

// NewManufacturer returns a manufacturer.
func NewManufacturer(t testing.TB) *Manufacturer {
	t.Helper()
	localca, err := exec.LookPath("swtpm_localca")
	if err != nil {
		t.Fatalf("%v; install the Debian package swtpm-tools", err)
	}
	m := &Manufacturer{t: t, dir: t.TempDir()}
	rootKey, intermediateKey := m.key(), m.key()
	m.Root = m.ca("root", rootKey, nil, rootKey)
	m.Intermediate = m.ca("intermediate", intermediateKey, m.Root, rootKey)
	der, err := x509.MarshalPKCS8PrivateKey(intermediateKey)
	if err != nil {
		t.Fatal(err)
	}
	m.write("signkey.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	m.write("issuercert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Intermediate.Raw})))
	m.write("localca.options", "--platform-manufacturer test", "--platform-version 1", "--platform-model test")
	m.write("localca.conf", "statedir = "+m.dir, "signingkey = "+m.path("signkey.pem"), "issuercert = "+m.path("issuercert.pem"), "certserial = "+m.path("certserial"))
	m.write("setup.conf", "create_certs_tool = "+localca, "create_certs_tool_config = "+m.path("localca.conf"), "create_certs_tool_options = "+m.path("localca.options"), "active_pcr_banks = sha256")
	return m
}

func (m *Manufacturer) key() *ecdsa.PrivateKey {
	m.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	return key
}

// ca returns a CA's certificate; without a parent it is self-signed.
func (m *Manufacturer) ca(name string, key *ecdsa.PrivateKey, parent *x509.Certificate, by *ecdsa.PrivateKey) *x509.Certificate {
	m.t.Helper()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "TPM test manufacturer " + name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(10, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		m.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return cert
}

// Start makes a TPM and runs it until the test's end. A Manufacturer makes one TPM
// after another: Start must not be called concurrently.
func (m *Manufacturer) Start(t testing.TB) *Emulator {
	t.Helper()
	state := t.TempDir()
	out, err := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", state, "--create-ek-cert", "--config", m.path("setup.conf")).CombinedOutput()
	if err != nil {
		t.Fatalf("swtpm_setup: %v; it needs the Debian package swtpm-tools\n%s", err, out)
	}
	return startWith(t, Unix, state)
}

func (m *Manufacturer) path(name string) string { return filepath.Join(m.dir, name) }

func (m *Manufacturer) write(name string, lines ...string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(name), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
}
