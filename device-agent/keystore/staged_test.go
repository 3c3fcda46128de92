package keystore

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
)

// stage returns a folder with a device's credentials and its next ones staged, and the
// fingerprints of both.
func stage(t *testing.T) (dir, old, next string) {
	t.Helper()
	fleet := certtest.New(t)
	device := fleet.Device("pi-1")
	dir = device.WriteTo(filepath.Join(t.TempDir(), "D"), "device")
	draft, err := NewDraft(dir)
	if err != nil {
		t.Fatal(err)
	}
	key, err := draft.SoftwareKey()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := fleet.Operational.Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: device.Identity, PublicKey: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	if err := draft.Stage([]*x509.Certificate{device.Leaf}, fleet.Bundle()); err == nil {
		t.Error("a certificate for another key was staged")
	}
	if err := draft.Stage([]*x509.Certificate{leaf, fleet.Operational.Certificate()}, fleet.Bundle()); err != nil {
		t.Fatal(err)
	}
	return dir, identity.Fingerprint(device.Leaf), identity.Fingerprint(leaf)
}

func inPlace(t *testing.T, dir string) string {
	t.Helper()
	keys, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return keys.Fingerprint()
}

func TestStagedStaysBesideUntilItIsPromoted(t *testing.T) {
	dir, old, next := stage(t)
	for range 2 { // opening changes nothing
		if got := inPlace(t, dir); got != old {
			t.Fatalf("in place is %s", got)
		}
		staged, err := OpenStaged(dir)
		if err != nil || staged.Fingerprint() != next || staged.Identity().ID != "pi-1" {
			t.Fatal(staged, err)
		}
	}
	for range 2 { // the second finds nothing to do
		if err := Promote(dir); err != nil {
			t.Fatal(err)
		}
		if got := inPlace(t, dir); got != next {
			t.Fatalf("in place is %s", got)
		}
	}
	if _, err := OpenStaged(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is staged still: %v", err)
	}
}

func TestDiscardedRenewalLeavesWhatIsInPlace(t *testing.T) {
	dir, old, _ := stage(t)
	for range 2 {
		if err := DiscardStaged(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenStaged(dir); !errors.Is(err, fs.ErrNotExist) || inPlace(t, dir) != old {
		t.Errorf("staged: %v, in place %s", err, inPlace(t, dir))
	}
}

// A power cut while Stage wrote leaves a draft that is not staged and not installed.
func TestHalfStagedIsNotStaged(t *testing.T) {
	for _, missing := range []string{"device.crt", "ca.crt", "device.key"} {
		dir, old, _ := stage(t)
		if err := os.Remove(filepath.Join(dir, draftFolder, missing)); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenStaged(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without %s: %v", missing, err)
		}
		if err := Promote(dir); err != nil || inPlace(t, dir) != old {
			t.Errorf("without %s: %v, in place %s", missing, err, inPlace(t, dir))
		}
	}
}
