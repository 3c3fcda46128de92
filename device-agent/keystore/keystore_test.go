package keystore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
)

func TestOpenReadsWhatTheStationWrote(t *testing.T) {
	device := certtest.New(t).Device("pi-1")
	k, err := Open(device.WriteTo(t.TempDir(), "device"))
	if err != nil {
		t.Fatal(err)
	}
	if k.Identity().ID != "pi-1" || k.Fingerprint() != identity.Fingerprint(device.Leaf) || k.Issuer() != device.Issuer.Subject.CommonName {
		t.Errorf("%s, %s, issued by %q", k.Identity(), k.Fingerprint(), k.Issuer())
	}
	if err := k.CheckValidity(time.Now()); err != nil {
		t.Error(err)
	}
	if n := len(k.Credentials().Certificate.Certificate); n != 2 {
		t.Errorf("chain of %d certificates, want the leaf and its issuer", n)
	}
}

func TestOpenNamesTheFileAndTheRemedy(t *testing.T) {
	fleet := certtest.New(t)
	write := func(t *testing.T, path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name   string
		spoil  func(t *testing.T, dir string) string // returns the folder to open
		says   []string
		absent bool // the error is fs.ErrNotExist
	}{
		{"no folder", func(_ *testing.T, dir string) string { return filepath.Join(dir, "nowhere") }, []string{"nowhere", "provisioning issue"}, true},
		{"a file", func(_ *testing.T, dir string) string { return filepath.Join(dir, "ca.crt") }, []string{"is a file", "--dir"}, false},
		{"no key", func(_ *testing.T, dir string) string { os.Remove(filepath.Join(dir, "device.key")); return dir }, []string{"device.key", "private key", "provisioning issue"}, true},
		{"no certificate", func(_ *testing.T, dir string) string { os.Remove(filepath.Join(dir, "device.crt")); return dir }, []string{"device.crt"}, true},
		{"no bundle", func(_ *testing.T, dir string) string { os.Remove(filepath.Join(dir, "ca.crt")); return dir }, []string{"ca.crt", "trust bundle"}, true},
		{"broken certificate", func(t *testing.T, dir string) string { write(t, filepath.Join(dir, "device.crt"), "hello"); return dir }, []string{"device.crt", "PEM"}, false},
		{"broken bundle", func(t *testing.T, dir string) string { write(t, filepath.Join(dir, "ca.crt"), ""); return dir }, []string{"ca.crt", "PEM"}, false},
		{"key of another", func(_ *testing.T, dir string) string {
			other := fleet.Device("pi-2").WriteTo(filepath.Join(dir, "other"), "device")
			if err := os.Rename(filepath.Join(other, "device.key"), filepath.Join(dir, "device.key")); err != nil {
				panic(err)
			}
			return dir
		}, []string{"device.key", "does not belong", "device.crt"}, false},
		{"readable key", func(t *testing.T, dir string) string {
			if err := os.Chmod(filepath.Join(dir, "device.key"), 0o644); err != nil {
				t.Fatal(err)
			}
			return dir
		}, []string{"device.key", "chmod 600"}, false},
		{"a service's", func(_ *testing.T, dir string) string {
			return fleet.Service("billing").WriteTo(filepath.Join(dir, "service"), "device")
		}, []string{"service", "not of a device"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := tt.spoil(t, fleet.Device("pi-1").WriteTo(t.TempDir(), "device"))
			_, err := Open(dir)
			if err == nil {
				t.Fatal("opened")
			}
			for _, part := range tt.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q doesn't say %q", err, part)
				}
			}
			if errors.Is(err, fs.ErrNotExist) != tt.absent {
				t.Errorf("%q is fs.ErrNotExist: %v", err, !tt.absent)
			}
		})
	}
}

func TestValidityIsCheckedByTheGivenClock(t *testing.T) {
	at := time.Now().Add(-48 * time.Hour).UTC().Truncate(time.Second)
	dir := certtest.New(t).Device("pi-1", certtest.WithValidity(at, 24*time.Hour)).WriteTo(t.TempDir(), "device")
	k, err := Open(dir)
	if err != nil {
		t.Fatalf("an expired certificate must still open, the clock may be wrong: %v", err)
	}
	if err := k.CheckValidity(time.Now()); err == nil || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("expired: %v", err)
	}
	if err := k.CheckValidity(at.AddDate(-1, 0, 0)); err == nil || !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("not yet valid: %v", err)
	}
	if err := k.CheckValidity(at.Add(time.Hour)); err != nil {
		t.Error(err)
	}
}
