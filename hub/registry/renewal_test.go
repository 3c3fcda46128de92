package registry

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func usableOf(d Device) (prints []string) {
	for _, c := range d.Certificates {
		if c.Usable() {
			prints = append(prints, c.Fingerprint)
		}
	}
	return prints
}

func TestRenewalKeepsTheOldUntilTheNewHasConnected(t *testing.T) {
	all := certificates(t, 3)
	d := board(all[0])
	if err := d.Renew(all[0].Fingerprint, all[1], epoch); err != nil {
		t.Fatal(err)
	}
	if got := usableOf(d); !slices.Equal(got, []string{all[0].Fingerprint, all[1].Fingerprint}) {
		t.Fatalf("usable: %v", got)
	}
	if got := d.Connected(all[0].Fingerprint, epoch); got != nil || len(usableOf(d)) != 2 {
		t.Errorf("the old one connected, and superseded %v", got)
	}
	if got := d.Connected("nobody's", epoch); got != nil {
		t.Errorf("a stranger's superseded %v", got)
	}
	if got := d.Connected(all[1].Fingerprint, epoch); !slices.Equal(got, []string{all[0].Serial}) {
		t.Errorf("the new one connected, and superseded %v", got)
	}
	if err := d.Renew(all[0].Fingerprint, all[2], epoch); err == nil {
		t.Error("renewed with a superseded certificate")
	}
	if got := usableOf(d); !slices.Equal(got, []string{all[1].Fingerprint}) {
		t.Errorf("usable: %v", got)
	}
}

func TestDeviceThatMayNotConnectRenewsNothing(t *testing.T) {
	all := certificates(t, 2)
	for name, cut := range map[string]func(*Device) error{
		"suspended": func(d *Device) error { return d.Suspend(Cause{Actor: "ann", At: epoch}) },
		"revoked":   func(d *Device) error { return d.Revoke(Cause{Actor: "ann", Reason: "keyCompromise", At: epoch}) },
		"retired":   func(d *Device) error { return d.Retire(Cause{Actor: "ann", At: epoch}) },
	} {
		d := board(all[0])
		if err := cut(&d); err != nil {
			t.Fatal(err)
		}
		if err := d.Renew(all[0].Fingerprint, all[1], epoch); err == nil || len(d.Certificates) != 1 {
			t.Errorf("%s: %v, %d certificates", name, err, len(d.Certificates))
		}
	}
}

// A station knows nothing of renewals: it names the certificate that it made.
func TestStationReplacesWhatWasRenewed(t *testing.T) {
	all := certificates(t, 5)
	for name, settled := range map[string]bool{"connected": true, "not connected yet": false} {
		d := board(all[0])
		if err := d.Renew(all[0].Fingerprint, all[1], epoch); err != nil {
			t.Fatal(err)
		}
		if settled {
			d.Connected(all[1].Fingerprint, epoch)
		}
		if err := d.Supersede(all[0].Serial, all[2], epoch); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := usableOf(d); !slices.Equal(got, []string{all[2].Fingerprint}) {
			t.Errorf("%s: usable: %v", name, got)
		}
		if err := d.Supersede(all[0].Serial, all[3], epoch); err == nil {
			t.Errorf("%s: the same certificate was replaced twice", name)
		}
	}
}

// Whatever comes in whatever order: at most two certificates are usable, none of a device
// that was cut off for good, and none comes back.
func TestRenewalsInAnyOrder(t *testing.T) {
	template := certificates(t, 1)[0]
	rapid.Check(t, func(t *rapid.T) {
		d := board(template)
		now, made := epoch, 0
		dead := make(map[string]bool)
		any := func() string { return rapid.SampledFrom(d.Certificates).Draw(t, "certificate").Fingerprint }
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			now = now.Add(time.Hour)
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0, 1, 2:
				made++
				next := template
				next.Serial, next.Fingerprint = fmt.Sprintf("%08x", made), fmt.Sprintf("%064x", made)
				next.NotBefore, next.NotAfter = now, now.Add(12*time.Hour)
				_ = d.Renew(any(), next, now)
			case 3, 4:
				d.Connected(any(), now)
			case 5:
				if rapid.IntRange(0, 9).Draw(t, "end") == 0 {
					_ = d.Revoke(Cause{Actor: "ann", Reason: "keyCompromise", At: now})
				}
			}
			usable := usableOf(d)
			if len(usable) > 2 || d.State.Final() != (len(usable) == 0) {
				t.Fatalf("%s with %d usable certificates", d.State, len(usable))
			}
			for _, c := range d.Certificates {
				if c.Usable() && dead[c.Fingerprint] {
					t.Fatalf("certificate %s came back", c.Serial)
				}
				dead[c.Fingerprint] = !c.Usable()
			}
			if len(d.Certificates) > maxRenewed+20 {
				t.Fatalf("the record keeps %d certificates", len(d.Certificates))
			}
			if d.Certificates[0].Fingerprint != template.Fingerprint {
				t.Fatal("the certificate that the station made is forgotten: its manifest could not be imported again")
			}
		}
	})
}
