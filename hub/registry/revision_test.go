package registry

import (
	"testing"
	"time"
)

func TestRevisionIsOfTheRecordAndNotOfSightings(t *testing.T) {
	at := time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)
	record := func() Device {
		d := Device{ID: "pi-1", Certificates: []Certificate{{Serial: "01", Fingerprint: "aa", Issuer: "bb", DER: []byte{1}}}}
		if err := d.Register(Cause{Actor: "station", At: at}); err != nil {
			t.Fatal(err)
		}
		return d
	}
	first := record()
	same := record()
	same.FirstSeen, same.LastSeen = at, at.Add(time.Hour)
	same.Certificates[0].DER, same.Certificates[0].Standing = nil, StandingExpired
	if first.Revision() != same.Revision() || first.Revision() == "" {
		t.Errorf("a sighting, or the clock, makes another revision")
	}
	if same.Certificates[0].Standing != StandingExpired {
		t.Error("the record was changed")
	}
	seen := map[string]string{first.Revision(): "as registered"}
	for what, change := range map[string]func(*Device) error{
		"suspended":   func(d *Device) error { return d.Suspend(Cause{Actor: "ann", At: at}) },
		"revoked":     func(d *Device) error { return d.Revoke(Cause{Actor: "ann", At: at}) },
		"by another":  func(d *Device) error { return d.Revoke(Cause{Actor: "ben", At: at}) },
		"later":       func(d *Device) error { return d.Revoke(Cause{Actor: "ann", At: at.Add(1)}) },
		"labelled":    func(d *Device) error { d.Labels = map[string]string{"site": "north"}; return nil },
		"named":       func(d *Device) error { d.Model = "pi5"; return nil },
		"superseded":  func(d *Device) error { return d.Supersede("01", Certificate{Serial: "02", Fingerprint: "cc"}, at) },
		"of other ID": func(d *Device) error { d.ID = "pi-2"; return nil },
	} {
		d := record()
		if err := change(&d); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if before, known := seen[d.Revision()]; known {
			t.Errorf("%s has the revision of %s", what, before)
		}
		seen[d.Revision()] = what
	}
}
