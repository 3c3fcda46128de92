package attestation

import (
	"crypto/sha256"
	"sync"
	"time"
)

// challenge is one open or spent challenge.
type challenge struct {
	evidence  Evidence // what it proves once answered
	secret    []byte
	statement []byte
	binding   []byte
	expires   time.Time
	spent     bool // then nothing but expires is left
}

// challenges are those that can be answered, and for a while those that could have
// been: a second or late answer is told from one to nothing.
type challenges struct {
	lifetime time.Duration
	limit    int

	mu   sync.Mutex // guards what follows
	byID map[string]*challenge
	open map[[sha256.Size]byte]int // of those in byID that aren't spent, by EKHash
}

// add remembers c until it expires, which is returned.
func (s *challenges) add(id string, c *challenge, now time.Time) (expires time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ek := c.evidence.EKHash
	s.forget(func(c *challenge) bool { return s.expired(c, now.Add(-s.lifetime)) })
	if s.open[ek] >= openPerEK || len(s.byID) >= s.limit {
		s.forget(func(c *challenge) bool { return s.expired(c, now) })
	}
	if len(s.byID) >= s.limit {
		s.forget(func(c *challenge) bool { return c.spent })
	}
	if s.open[ek] >= openPerEK {
		return time.Time{}, refuse(Busy, "this TPM has %d unanswered challenges already; try again in %v", openPerEK, s.lifetime)
	}
	if len(s.byID) >= s.limit {
		return time.Time{}, refuse(Busy, "%d challenges wait for their answers, which is the most; try again in %v", s.limit, s.lifetime)
	}
	c.expires = now.Add(s.lifetime)
	s.byID[id] = c
	s.open[ek]++
	return c.expires, nil
}

// take returns the open challenge of that ID, for the caller alone.
func (s *challenges) take(id string, now time.Time) (*challenge, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.byID[id]
	switch {
	case !ok:
		return nil, refuse(UnknownChallenge, "no such challenge was made here, or it is forgotten; begin again")
	case c.spent:
		return nil, refuse(Answered, "the challenge was answered before; begin again")
	}
	s.close(c)
	s.byID[id] = &challenge{expires: c.expires, spent: true}
	if s.expired(c, now) {
		return nil, refuse(Expired, "the challenge had to be answered within %v; begin again", s.lifetime)
	}
	return c, nil
}

// expired reports whether c can't be answered at that time, nor at one that lies before
// it was made: a clock that was set back must not keep a challenge alive.
func (s *challenges) expired(c *challenge, now time.Time) bool {
	return !now.Before(c.expires) || now.Before(c.expires.Add(-3*s.lifetime))
}

// forget drops those. The caller holds mu.
func (s *challenges) forget(those func(*challenge) bool) {
	for id, c := range s.byID {
		if those(c) {
			delete(s.byID, id)
			s.close(c)
		}
	}
}

// close takes c off the count of open ones. The caller holds mu.
func (s *challenges) close(c *challenge) {
	if ek := c.evidence.EKHash; !c.spent {
		if s.open[ek]--; s.open[ek] == 0 {
			delete(s.open, ek)
		}
	}
}
