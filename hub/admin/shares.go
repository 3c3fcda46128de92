package admin

import "sync"

// shares are places for a bounded number at a time, of which each caller has a few: one alone
// must not take them from all others. It is safe for concurrent use.
type shares struct {
	most, each int

	mu    sync.Mutex     // guards what follows
	taken int            // in all
	by    map[string]int // caller; who has none is not in it
}

func newShares(most, each int) *shares {
	return &shares{most: most, each: each, by: make(map[string]int)}
}

// take gives the caller a place until it calls free, once; nil if there is none left, or none
// for that caller.
func (s *shares) take(caller string) (free func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken >= s.most || s.by[caller] >= s.each {
		return nil
	}
	s.taken++
	s.by[caller]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.taken--
		if s.by[caller]--; s.by[caller] == 0 {
			delete(s.by, caller)
		}
	}
}
