package boltstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/hub/registry"
)

func withTPM(d registry.Device, name string) registry.Device {
	d.EK = fingerprint("tpm " + name)
	return d
}

func TestTPMBelongsToOneDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hub.db")
	s := openStore(t, path)
	if _, err := s.Endorsed(t.Context(), fingerprint("tpm a")); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("before there was any TPM: %v", err)
	}
	commit(t, s, registry.Change{Devices: []registry.Device{withTPM(device("pi-1", "01"), "a"), device("pi-2", "02")}})
	for _, when := range []string{"at once", "after a restart"} {
		if id, err := s.Endorsed(t.Context(), fingerprint("tpm a")); err != nil || id != "pi-1" {
			t.Errorf("%s: %q, %v", when, id, err)
		}
		before := dump(t, s)
		err := s.Commit(t.Context(), registry.Change{Devices: []registry.Device{device("pi-4", "04"), withTPM(device("pi-3", "03"), "a")}, Audit: []registry.AuditRecord{audit("import", "pi-3")}})
		conflict, ok := errors.AsType[*registry.ConflictError](err)
		if !ok || conflict.Owner != "pi-1" || conflict.ID != "pi-3" || conflict.EK != fingerprint("tpm a") || conflict.Serial != "" {
			t.Errorf("%s: %v", when, err)
		}
		if dump(t, s) != before {
			t.Errorf("%s: the refused commit left something", when)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, path)
	}
	// Two devices of one commit are no exception, in any order.
	err := s.Commit(t.Context(), registry.Change{Devices: []registry.Device{withTPM(device("pi-6", "06"), "b"), withTPM(device("pi-5", "05"), "b")}})
	if _, ok := errors.AsType[*registry.ConflictError](err); !ok {
		t.Errorf("two devices of one commit: %v", err)
	}
}

// Whose manifest is refused hears of every board at once, of a great many of some.
func TestRefusalNamesEveryTPMThatIsAnothers(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	var has, wants []registry.Device
	for i := range 12 {
		name := fmt.Sprint(i)
		has = append(has, withTPM(device(fmt.Sprintf("old-%02d", i), fmt.Sprintf("%02d", 10+i)), name))
		wants = append(wants, withTPM(device(fmt.Sprintf("new-%02d", i), fmt.Sprintf("%02d", 30+i)), name))
	}
	commit(t, s, registry.Change{Devices: has})
	for _, n := range []int{2, 12} {
		err := s.Commit(t.Context(), registry.Change{Devices: wants[:n]})
		if conflict, ok := errors.AsType[*registry.ConflictError](err); !ok || conflict.ID != "new-00" || conflict.Owner != "old-00" {
			t.Fatalf("%d: %v", n, err)
		}
		for i := range n {
			if named := strings.Contains(err.Error(), fmt.Sprintf("new-%02d's", i)) && strings.Contains(err.Error(), fmt.Sprintf("is old-%02d's", i)); named != (i < 10) {
				t.Errorf("of %d, number %d is named: %v; %v", n, i, named, err)
			}
		}
		if strings.Contains(err.Error(), "and 2 more") != (n == 12) {
			t.Errorf("%d: %v", n, err)
		}
	}
}

// Whatever becomes of a device, its TPMs stay its own.
func TestTPMStaysWithItsDeviceForLife(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	d := withTPM(device("pi-1", "01"), "a")
	commit(t, s, registry.Change{Devices: []registry.Device{d}})
	d.State = registry.StateRetired
	commit(t, s, registry.Change{Devices: []registry.Device{d}})
	commit(t, s, registry.Change{Devices: []registry.Device{withTPM(d, "b")}})
	d.EK = ""
	commit(t, s, registry.Change{Devices: []registry.Device{d}})
	for _, name := range []string{"a", "b"} {
		if id, err := s.Endorsed(t.Context(), fingerprint("tpm "+name)); err != nil || id != "pi-1" {
			t.Errorf("TPM %s: %q, %v", name, id, err)
		}
		if err := s.Commit(t.Context(), registry.Change{Devices: []registry.Device{withTPM(device("pi-2", "02"), name)}}); err == nil {
			t.Errorf("TPM %s became another device's", name)
		}
	}
}

func TestMalformedEndorsementKeyIsNotStored(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	for _, ek := range []string{"5a", "zz", strings.ToUpper(fingerprint("x")), fingerprint("x") + "00"} {
		d := device("pi-1", "01")
		d.EK = ek
		if err := s.Commit(t.Context(), registry.Change{Devices: []registry.Device{d}}); err == nil {
			t.Errorf("%q was stored", ek)
		}
		if _, err := s.Endorsed(t.Context(), ek); !errors.Is(err, registry.ErrUnknown) {
			t.Errorf("%q: %v", ek, err)
		}
	}
}
