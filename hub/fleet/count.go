package fleet

import "github.com/fleethub/fleethub/hub/registry"

// Len returns how many devices have a record.
func (f *Fleet) Len() int { return f.index.len() }

// Count returns how many devices are in each state.
func (f *Fleet) Count() map[registry.State]int {
	counts := make(map[registry.State]int)
	for code, state := range stateCodes {
		if n := f.index.counts[code].Load(); code > 0 {
			counts[state] = int(n)
		}
	}
	return counts
}
