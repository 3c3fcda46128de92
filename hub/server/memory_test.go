package server

import "testing"

func TestMemoryIsGivenBackOnlyWhereItWouldLieUnused(t *testing.T) {
	const mega = 1 << 20
	for name, c := range map[string]struct {
		live, resident, allocated, tidied uint64 // MB
		want                              bool
	}{
		"after a storm":                         {live: 20, resident: 300, allocated: 1, want: true},
		"little to give back":                   {live: 20, resident: 45, allocated: 0, want: false},
		"as much as was left the last time":     {live: 20, resident: 200, allocated: 1, tidied: 180, want: false},
		"much more than was left the last time": {live: 20, resident: 300, allocated: 1, tidied: 180, want: true},
		"a steady trickle of connections":       {live: 20, resident: 110, allocated: 55, want: false},
		"quiet, but used again soon":            {live: 20, resident: 146, allocated: 11, want: false},
		"used again a minute later":             {live: 20, resident: 146, allocated: 9, want: true},
	} {
		before := memory{allocated: 1000 * mega}
		m := memory{live: c.live * mega, resident: c.resident * mega, allocated: before.allocated + c.allocated*mega}
		if got := m.leftBehind(before, c.tidied*mega); got != c.want {
			t.Errorf("%s: given back is %v, want %v", name, got, c.want)
		}
	}
}
