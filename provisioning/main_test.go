package main

import (
	"bytes"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// TestMain lets the test binary also be the program, and the two tools at the hub's end
// that the scripts need.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")) // the scripts run many short programs
	testscript.Main(leakChecked{m}, map[string]func(){
		"provisioning":  main,
		"authorize":     func() { exitOn(authorize(os.Args[1:])) },
		"open-manifest": func() { exitOn(openManifest(os.Args[1:])) },
	})
}

type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	defer os.RemoveAll(buildDir())
	code := l.m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// buildDir is this test process's folder for what it builds.
func buildDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("provisioning-test-%d", os.Getpid()))
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error { e.Setenv("GORACE", os.Getenv("GORACE")); return nil },
	})
}

// authorize signs a station's CSR as `hub station authorize` does, with a root that it
// makes where there is none. The flags also have it sign what a hub wouldn't.
func authorize(args []string) error {
	flags := flag.NewFlagSet("authorize", flag.ContinueOnError)
	dir := flags.String("root", "root", "folder of the root")
	csrFile := flags.String("csr", "S/station.csr", "")
	out := flags.String("out", "", "")
	domain := flags.String("domain", "fleet.example", "")
	name := flags.String("name", "", "instead of the CSR's")
	kind := identity.KindFactory
	flags.BoolFunc("operational", "an operational issuing CA", func(string) error { kind = identity.KindOperational; return nil })
	valid := flags.Duration("valid", 90*24*time.Hour, "")
	ago := flags.Duration("ago", 0, "how long ago it is signed")
	if err := flags.Parse(args); err != nil {
		return err
	}
	root, err := throwawayRoot(*dir, *domain)
	if err != nil {
		return err
	}
	der, err := pemfile.ReadCSR(*csrFile)
	if err != nil {
		return err
	}
	csr, err := issuance.ParseCSR(der)
	if err != nil {
		return err
	}
	if *name == "" {
		*name = csr.Subject.CommonName
	}
	ca, err := root.At(func() time.Time { return time.Now().Add(-*ago) }).IssueCA(issuance.CARequest{
		Kind: kind, Name: *name, TrustDomain: *domain, PublicKey: csr.PublicKey, Valid: *valid,
	})
	if err != nil {
		return err
	}
	return pemfile.WriteCertificates(*out, ca, root.Certificate())
}

// throwawayRoot is ten years old and good for fifteen more.
func throwawayRoot(dir, domain string) (*issuance.Issuer, error) {
	keyPath, certPath := filepath.Join(dir, "root.key"), filepath.Join(dir, "root.crt")
	key, err := pemfile.ReadKey(keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = issuance.NewKey(); err != nil {
			return nil, err
		}
		cert, err := issuance.NewRoot(domain, key, 0, func() time.Time { return time.Now().AddDate(-10, 0, 0) })
		if err != nil {
			return nil, err
		}
		if err := errors.Join(os.MkdirAll(dir, 0o700), pemfile.WriteKey(keyPath, key), pemfile.WriteCertificates(certPath, cert)); err != nil {
			return nil, err
		}
		return issuance.NewIssuer(cert, key, nil)
	}
	if err != nil {
		return nil, err
	}
	certs, err := pemfile.ReadCertificates(certPath)
	if err != nil {
		return nil, err
	}
	return issuance.NewIssuer(certs[0], key, nil)
}

// openManifest verifies a manifest as the hub does and prints its number and devices.
func openManifest(args []string) error {
	m, err := readManifest(args[0], args[1])
	if err != nil {
		return err
	}
	fmt.Printf("manifest %d of %s in %s\n", m.Number, m.Station, m.TrustDomain)
	for _, e := range m.Devices {
		cert, err := x509.ParseCertificate(e.Certificate)
		if err != nil {
			return err
		}
		fmt.Printf("%s %s %s %q %q\n", cert.Subject.CommonName, identity.SerialString(cert.SerialNumber), e.Protection, e.Model, cert.Subject.OrganizationalUnit)
	}
	return nil
}

func readManifest(file, rootFile string) (manifest.Manifest, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return manifest.Manifest{}, err
	}
	roots, err := pemfile.ReadCertificates(rootFile)
	if err != nil {
		return manifest.Manifest{}, err
	}
	m, _, err := manifest.Open(bytes.TrimSpace(data), roots, time.Now())
	return m, err
}
