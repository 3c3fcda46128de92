package mtls_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
)

func TestCredentialsAreLoadedAsWritten(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	written := fleet.Device("board-1", certtest.WithOU("pump"))
	got, err := mtls.LoadCredentials(written.WriteTo(filepath.Join(t.TempDir(), "board-1"), "device"), "device")
	if err != nil {
		t.Fatal(err)
	}
	if got.Identity.String() != "spiffe://fleet.example/device/board-1" || len(got.Identity.OU) != 1 || !got.Leaf.Equal(written.Leaf) ||
		got.Certificate.Leaf != got.Leaf || len(got.Certificate.Certificate) != 2 || !slices.EqualFunc(got.Roots, fleet.Bundle(), (*x509.Certificate).Equal) {
		t.Errorf("loaded %+v", got)
	}
	h := newHub(t, fleet, fleet.Trust(), nil, identity.RoleDevice)
	client := mtls.ClientConfig(mtls.ClientOptions{Certificate: got.Certificate, Roots: got.Roots, ServerName: "127.0.0.1"})
	if o := connect(t, h.config, client); o.clientErr != nil || o.serverErr != nil {
		t.Errorf("with what was loaded: client %v, server %v", o.clientErr, o.serverErr)
	}
}

func TestUnusableCredentialsAreRefusedByFile(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	other := fleet.Device("board-2")
	for _, c := range []struct {
		name    string
		spoil   func(dir string) error
		file    string // that the error must name
		because string
	}{
		{"no key", func(dir string) error { return os.Remove(filepath.Join(dir, "device.key")) }, "device.key", "no such file"},
		{"no certificate", func(dir string) error { return os.Remove(filepath.Join(dir, "device.crt")) }, "device.crt", "no such file"},
		{"no trust bundle", func(dir string) error { return os.Remove(filepath.Join(dir, "ca.crt")) }, "ca.crt", "no such file"},
		{"another's key", func(dir string) error { return pemfile.WriteKey(filepath.Join(dir, "device.key"), other.Key) }, "device.key", "does not belong"},
		{"issuer first", func(dir string) error {
			return pemfile.WriteCertificates(filepath.Join(dir, "device.crt"), other.Issuer, other.Leaf)
		}, "device.crt", "does not belong"},
		{"an issuing CA's own files", func(dir string) error {
			return errors.Join(pemfile.WriteKey(filepath.Join(dir, "device.key"), fleet.FactoryKey), pemfile.WriteCertificates(filepath.Join(dir, "device.crt"), fleet.Factory.Certificate()))
		}, "device.crt", "CA certificate"},
		{"a key that others can read", func(dir string) error { return os.Chmod(filepath.Join(dir, "device.key"), 0o644) }, "device.key", "chmod 600"},
		{"an empty trust bundle", func(dir string) error { return os.WriteFile(filepath.Join(dir, "ca.crt"), nil, 0o644) }, "ca.crt", "not a PEM file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := fleet.Device("board-1").WriteTo(t.TempDir(), "device")
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			got, err := mtls.LoadCredentials(dir, "device")
			if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, c.file)) || !strings.Contains(err.Error(), c.because) {
				t.Errorf("%v; want an error with %s and %q", err, c.file, c.because)
			}
			if got.Leaf != nil || got.Certificate.PrivateKey != nil {
				t.Error("half of the credentials came with the error")
			}
		})
	}
}

func TestReloaderServesTheNewCertificateAndKeepsTheOldOnABadFile(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	first, second := fleet.Server("hub.fleet.example"), fleet.Server("hub.fleet.example")
	dir := first.WriteTo(t.TempDir(), "server")
	certFile, keyFile := filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	reloader, err := mtls.NewReloader(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	config := mtls.ServerConfig(mtls.ServerOptions{Certificate: reloader.Certificate, Verify: func(tls.ConnectionState) error { return nil }})
	client := fleet.Device("board-1").ClientConfig()
	wantServed := func(when string, want certtest.Credential) {
		t.Helper()
		o := connect(t, config, client)
		if o.clientErr != nil || !o.client.PeerCertificates[0].Equal(want.Leaf) {
			t.Errorf("%s: the client met another certificate, %v", when, o.clientErr)
		}
	}
	wantServed("at first", first)
	second.WriteTo(dir, "server")
	wantServed("before the reload", first)
	if err := reloader.Reload(); err != nil {
		t.Fatal(err)
	}
	wantServed("after the reload", second)

	for name, spoil := range map[string]func() error{
		"half a file":    func() error { return os.Truncate(certFile, 100) },
		"no file":        func() error { return os.Remove(certFile) },
		"another's key":  func() error { return pemfile.WriteKey(keyFile, first.Key) },
		"key for others": func() error { return os.Chmod(keyFile, 0o644) },
	} {
		second.WriteTo(dir, "server")
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if err := reloader.Reload(); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: Reload: %v; want an error with the path", name, err)
		}
		wantServed(name, second)
	}
}

func TestReloaderNeedsAPairToBeginWith(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	reloader, err := mtls.NewReloader(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("NewReloader without files: %v", err)
	}
	if cert, err := reloader.Certificate(); err == nil {
		t.Errorf("it serves %v", cert)
	}
}
