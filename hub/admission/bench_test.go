package admission

import (
	"crypto/sha256"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/registry"
)

// BenchmarkCheck is what a connect pays here, three times; what the fleet's look-up costs
// is BenchmarkFleet/admission of package fleet.
func BenchmarkCheck(b *testing.B) {
	pki := certtest.New(b)
	for name, needsTPM := range map[string]bool{"any-key": false, "key-in-TPM": true} {
		b.Run(name, func(b *testing.B) {
			d := pki.Device("pi-1", certtest.WithTPM())
			a := New(devices{"pi-1": {State: registry.StateActive, NeedsTPM: needsTPM, Fingerprints: []registry.Fingerprint{sha256.Sum256(d.Leaf.Raw)}}}, nil)
			p := peer(d)
			b.ReportAllocs()
			for b.Loop() {
				if err := a.Check(p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
