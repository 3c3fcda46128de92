package registry

import (
	"errors"
	"maps"
	"reflect"
	"testing"
	"time"
)

// newcomer is a quarantined device with that certificate.
func newcomer(t *testing.T, c Certificate) Device {
	t.Helper()
	d := Device{ID: "pi-1", Station: "bench-1", Protection: "unproven", Certificates: []Certificate{c}}
	if err := d.Introduce(Cause{Actor: "pi-1", At: epoch}); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestManifestNamesADeviceThatIntroducedItself(t *testing.T) {
	all := certificates(t, 2)
	named := Name{Certificate: all[0], Station: "bench-1", Model: "pi4", Batch: "b", Protection: "tpm", EK: "ek", Labels: map[string]string{"site": "north", "line": "a"}, Manifest: 3}
	later := Cause{Actor: "bench-1", At: epoch.Add(time.Hour)}
	approved := func(d *Device) error { return d.Approve(later) }
	for name, test := range map[string]struct {
		certificate Certificate
		before      func(*Device) error
		state       State // afterwards; "": refused
		serials     []string
		labels      map[string]string
	}{
		"quarantined":                          {all[0], nil, StateRegistered, []string{all[0].Serial}, named.Labels},
		"quarantined with another certificate": {all[1], nil, StateRegistered, []string{all[0].Serial}, named.Labels},
		"approved":                             {all[0], approved, StateRegistered, []string{all[0].Serial}, named.Labels},
		"approved with another certificate":    {all[1], approved, "", []string{all[1].Serial}, nil},
		"revoked":                              {all[0], func(d *Device) error { return d.Revoke(later) }, "", []string{all[0].Serial}, nil},
		"active, and labelled by an operator": {all[0], func(d *Device) error {
			d.Labels = map[string]string{"site": "south"}
			return errors.Join(d.Approve(later), d.Activate(later))
		}, StateActive, []string{all[0].Serial}, map[string]string{"site": "south", "line": "a"}},
		"named before": {all[0], func(d *Device) error { return d.Named(named, later) }, "", []string{all[0].Serial}, named.Labels},
	} {
		t.Run(name, func(t *testing.T) {
			d := newcomer(t, test.certificate)
			if test.before != nil {
				if err := test.before(&d); err != nil {
					t.Fatal(err)
				}
			}
			before := d.Clone()
			err := d.Named(named, later)
			if test.state == "" {
				if !errors.Is(err, ErrTransition) || !reflect.DeepEqual(d, before) {
					t.Fatalf("error %v, record %+v", err, d)
				}
				return
			}
			if err != nil || d.State != test.state || d.Manifest != 3 || d.Introduced() || d.EK != "ek" || d.Protection != "tpm" || d.Model != "pi4" {
				t.Fatalf("error %v, record %+v", err, d)
			}
			if !reflect.DeepEqual(d.Serials(), test.serials) || !maps.Equal(d.Labels, test.labels) || !d.Certificates[0].Usable() {
				t.Errorf("certificates %v, labels %v", d.Serials(), d.Labels)
			}
		})
	}
}

// What was proved of the key of a certificate says nothing about one that has come since.
func TestManifestSaysNothingOfARenewedKey(t *testing.T) {
	all := certificates(t, 2)
	d := newcomer(t, all[0])
	c := Cause{At: epoch}
	if err := errors.Join(d.Approve(c), d.Renew(all[0].Fingerprint, all[1], epoch)); err != nil {
		t.Fatal(err)
	}
	if err := d.Named(Name{Certificate: all[0], Station: "bench-1", Protection: "tpm", EK: "ek", Manifest: 1}, c); err != nil || d.Protection != "unproven" || d.EK != "ek" || len(d.Certificates) != 2 {
		t.Errorf("%+v, %v", d, err)
	}
}
