package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	"github.com/fleethub/fleethub/hub/registry"
)

// Page is one page of records in order of ID, without their certificates' DER. Next is
// what to pass as after for the following page, empty on the last.
type Page struct {
	Devices []registry.Device
	Next    string
}

// Devices returns the page of records after an ID that a selector picks; an empty after
// starts at the first. A limit of 0 means 100, and 1000 is the most.
func (f *Fleet) Devices(ctx context.Context, s registry.Selector, after string, limit int) (Page, error) {
	limit = pageSize(limit)
	var devices []registry.Device
	var err error
	if s.Any() {
		devices, err = f.config.Store.Devices(ctx, after, limit+1)
	} else {
		devices, err = f.picked(ctx, s, after, limit+1)
	}
	if err != nil {
		return Page{}, err
	}
	page := Page{Devices: devices}
	if len(devices) > limit {
		page.Devices, page.Next = devices[:limit], devices[limit-1].ID
	}
	for i := range page.Devices {
		f.judge(&page.Devices[i])
	}
	return page, nil
}

func (f *Fleet) picked(ctx context.Context, s registry.Selector, after string, limit int) ([]registry.Device, error) {
	var ids []string
	err := f.choose(ctx, s, after, func(facts *registry.Facts) bool {
		ids = append(ids, facts.ID)
		return len(ids) < limit
	})
	if err != nil {
		return nil, err
	}
	return f.config.Store.Records(ctx, ids)
}

// choose calls visit with the facts of every device after an ID that a selector picks,
// in order of ID, until it returns false.
func (f *Fleet) choose(ctx context.Context, s registry.Selector, after string, visit func(*registry.Facts) bool) error {
	m := s.Matcher(f.config.Now())
	return f.config.Store.Facts(ctx, after, func(facts *registry.Facts) bool {
		facts.State = f.inForce(facts.ID, facts.State)
		return !m.Match(facts) || visit(facts)
	})
}

// chosen is whom a selector picks for a verb.
type chosen struct {
	ids     []string // who changes, in order
	already int      // who is in the verb's state
	barred  int      // whom the verb can't be done to
}

// chooseFor sorts who a selector picks. visit, unless it is nil, sees those that change.
func (f *Fleet) chooseFor(ctx context.Context, s registry.Selector, v Verb, visit func(*registry.Facts)) (c chosen, err error) {
	err = f.choose(ctx, s, "", func(facts *registry.Facts) bool {
		switch {
		case v.legal(facts.State):
			c.ids = append(c.ids, facts.ID)
			if visit != nil {
				visit(facts)
			}
		case facts.State == verbs[v].state:
			c.already++
		default:
			c.barred++
		}
		return true
	})
	return c, err
}

// digest is the SHA-256, in hex, of IDs in their order, each with a line feed behind it.
func digest(ids []string) string {
	sum := sha256.New()
	for _, id := range ids {
		sum.Write([]byte(id))
		sum.Write([]byte{'\n'})
	}
	return hex.EncodeToString(sum.Sum(nil))
}
