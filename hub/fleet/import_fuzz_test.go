package fleet

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/hub/registry"
)

// FuzzImport throws bytes at Import, as a tampered file would. Only what the station
// signed may ever register anything.
func FuzzImport(f *testing.F) {
	pki, imported := fuzzFleet(f)
	data, err := manifest.Sign(manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: certtest.StationName, Number: 1, Devices: []manifest.Entry{entryOf(pki.Device("pi-1"))}},
		[]*x509.Certificate{pki.Factory.Certificate()}, pki.FactoryKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add([]byte("a.b.c"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, input []byte) {
		report, err := imported.Import(t.Context(), input, ann)
		if err == nil && !bytes.Equal(bytes.TrimSpace(input), bytes.TrimSpace(data)) {
			t.Fatalf("accepted, with %+v", report)
		}
		if err != nil && !errors.Is(err, ErrRejected) {
			t.Fatalf("error = %v, want ErrRejected", err)
		}
	})
}

// FuzzSignedEntry is a station gone bad: what it signs is well formed as a manifest,
// and its entries are anything.
func FuzzSignedEntry(f *testing.F) {
	pki, imported := fuzzFleet(f)
	device := pki.Device("pi-1")
	f.Add(device.Leaf.Raw, "pi4", "line", "a", "")
	f.Add(device.Leaf.Raw, "", "", "+", "01")
	f.Add(pki.Operator("ann").Leaf.Raw, "pi4", "line", "a", "zz")
	f.Add(pki.Foreign().Device("pi-2").Leaf.Raw, "pi4", "line", "a", "")
	f.Fuzz(func(t *testing.T, der []byte, model, label, value, supersedes string) {
		data, err := manifest.Sign(manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: certtest.StationName, Number: 1, Devices: []manifest.Entry{
			{Certificate: der, Model: model, Labels: map[string]string{label: value}, Supersedes: supersedes},
		}}, []*x509.Certificate{pki.Factory.Certificate()}, pki.FactoryKey)
		if err != nil {
			return // no manifest can say this, so there is nothing to import
		}
		_, err = imported.Import(t.Context(), data, ann)
		if err == nil && !bytes.Equal(der, device.Leaf.Raw) {
			t.Fatal("registered a certificate that the station didn't issue")
		}
		if err != nil && !errors.Is(err, ErrRejected) {
			t.Fatalf("error = %v, want ErrRejected", err)
		}
	})
}

func fuzzFleet(f *testing.F) (*certtest.Fleet, *Fleet) {
	pki := certtest.New(f)
	imported, err := Open(Config{Store: &void{}, Sessions: &sessions{}, TrustDomain: certtest.TrustDomain, Roots: func() []*x509.Certificate { return pki.Trust().Roots }})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { imported.Close() })
	return pki, imported
}

// void is a store that forgets, for speed.
type void struct{ memory }

func (*void) Device(ctx context.Context, id string) (registry.Device, error) {
	return registry.Device{}, registry.ErrUnknown
}
func (*void) Facts(context.Context, string, func(*registry.Facts) bool) error { return nil }
func (*void) Commit(context.Context, registry.Change) error                   { return nil }
