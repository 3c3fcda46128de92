package fleet

import (
	"context"
	"crypto/x509"
	"fmt"

	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/hub/registry"
)

// withinBudget refuses a manifest that would give its station more devices than the root
// wrote into its authority: a station counts, too, but a stolen key doesn't. Devices
// count for ever, whatever became of them; new certificates for known ones don't.
func (b *batch) withinBudget(ctx context.Context, issuer *x509.Certificate) error {
	fresh := b.report.Registered - b.counted // those count since they introduced themselves
	if fresh == 0 {
		return nil
	}
	budget, err := issuance.DeviceBudget(issuer)
	if err != nil {
		return rejected(err)
	}
	known, err := b.fleet.madeBy(ctx, b.manifest.Station, budget-fresh)
	if err != nil {
		return err
	}
	if n := known + fresh; n > budget {
		return rejected(fmt.Errorf("station %s may make %d devices, and with this manifest it has made %d; if that is right, raise it with `hub station authorize --max-devices`", b.manifest.Station, budget, n))
	}
	return nil
}

// madeBy returns how many devices of a station are registered, from memory where that
// decides whether they are more than limit, else from the store.
func (f *Fleet) madeBy(ctx context.Context, station string, limit int) (int, error) {
	known, all := f.index.attributes.ofStation(station)
	if elsewhere := f.index.len() - all; elsewhere <= 0 || known > limit || known+elsewhere <= limit {
		return known, nil
	}
	known = 0
	err := f.config.Store.Facts(ctx, "", func(facts *registry.Facts) bool {
		if facts.Attributes.Station == station {
			known++
		}
		return true
	})
	return known, err
}

// ofStation returns how many entries name a set of that station, and how many name any.
func (t *attributeTable) ofStation(name string) (n, all int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for number, users := range t.users {
		all += int(users)
		if a := t.sets[number].Load(); a != nil && a.Station == name {
			n += int(users)
		}
	}
	return n, all
}
