package keystore

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// certify issues a device's certificate for the draft's key.
func certify(t *testing.T, fleet *certtest.Fleet, d *Draft) []*x509.Certificate {
	t.Helper()
	key, err := d.SoftwareKey()
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.New(certtest.TrustDomain, identity.RoleDevice, "pi-1")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := fleet.Factory.Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: id, PublicKey: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{leaf, fleet.Factory.Certificate()}
}

func draft(t *testing.T, dir string) *Draft {
	t.Helper()
	d, err := NewDraft(dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	k, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k.Fingerprint()
}

// An Install is interrupted after each of its steps: what opens the folder next has the
// old credentials, or the new ones, and after the mark always the new ones.
func TestInstallIsFinishedByWhoeverComesNext(t *testing.T) {
	fleet := certtest.New(t)
	for steps := range 8 {
		t.Run(fmt.Sprint(steps), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "D")
			d := draft(t, dir)
			if err := d.Install(certify(t, fleet, d), fleet.Bundle()); err != nil {
				t.Fatal(err)
			}
			old := fingerprint(t, dir)
			d = draft(t, dir)
			chain := certify(t, fleet, d)
			next := identity.Fingerprint(chain[0])
			// What Install has done by then.
			move := func(name string) func() error {
				return func() error { return os.Rename(d.path(name), filepath.Join(dir, name)) }
			}
			for i, step := range []func() error{
				func() error { return writeCerts(d.path("device.crt"), chain) },
				func() error { return writeCerts(d.path("ca.crt"), fleet.Bundle()) },
				func() error { return os.WriteFile(d.path(completeFile), nil, 0o600) },
				move("device.key"), move("device.crt"), move("ca.crt"),
				func() error { return os.RemoveAll(d.path("")) },
			}[:min(steps, 7)] {
				if err := step(); err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
			}
			want := old
			if steps >= 3 {
				want = next
			}
			if got := fingerprint(t, dir); got != want {
				t.Errorf("after %d steps the certificate is %s, want %s", steps, got, want)
			}
			if steps < 3 { // the draft's key is still there for the next try
				key, err := draft(t, dir).SoftwareKey()
				if err != nil || !key.Public().(*ecdsa.PublicKey).Equal(chain[0].PublicKey) {
					t.Errorf("another key: %v", err)
				}
			}
		})
	}
}

func writeCerts(path string, certs []*x509.Certificate) error {
	return os.WriteFile(path, pemfile.EncodeCertificates(certs...), 0o644)
}

func TestAgentThatOpensTheFolderDuringAnInstallHasOldOrNewCredentials(t *testing.T) {
	fleet := certtest.New(t)
	dir := filepath.Join(t.TempDir(), "D")
	d := draft(t, dir)
	if err := d.Install(certify(t, fleet, d), fleet.Bundle()); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := Open(dir); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 40 {
		d := draft(t, dir)
		if err := d.Install(certify(t, fleet, d), fleet.Bundle()); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	wait.Wait()
}

func TestCertificateForAnotherKeyIsNotInstalled(t *testing.T) {
	fleet := certtest.New(t)
	dir := filepath.Join(t.TempDir(), "D")
	d := draft(t, dir)
	if _, err := d.SoftwareKey(); err != nil {
		t.Fatal(err)
	}
	other := fleet.Device("pi-1")
	if err := d.Install([]*x509.Certificate{other.Leaf, other.Issuer}, fleet.Bundle()); err == nil {
		t.Error("installed")
	}
	if _, err := Open(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := d.Discard(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.path("")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
