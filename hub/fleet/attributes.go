package fleet

import (
	"context"

	"github.com/fleethub/fleethub/hub/registry"
)

// Attributes returns what policy may ask about a device, from memory as Status does and
// without its other answers: it is asked for each message that a rule about labels is
// about, and allocates nothing. False means that there is no such device, or that its
// attributes can't be read. Nobody may change what is returned.
func (f *Fleet) Attributes(id string) (*registry.Attributes, bool) {
	a, known := f.index.attributesOf(id)
	if !known || a != nil {
		return a, known
	}
	read, err := f.config.Store.Attributes(context.Background(), id)
	if err != nil {
		f.config.Log.Error("what policy asks about a device counts as unknown, because its labels can't be read", "device", id, "error", err)
		return nil, false
	}
	return &read, true
}

// attributesOf returns the attributes of a device, nil if they are on disk only, and
// whether there is such a device.
func (x *index) attributesOf(id string) (*registry.Attributes, bool) {
	n, start := x.locate(id)
	s := &x.shards[n]
	s.mu.RLock()
	defer s.mu.RUnlock()
	number, ok := s.find(id, start)
	if !ok {
		return nil, false
	}
	return x.attributes.at(s.entries[number].packed.attributes()), true
}
