package listener

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// bucket is a token bucket. The zero value is full.
type bucket struct {
	missing float64 // tokens taken and not yet back
	at      time.Time
}

// quota is what buckets are filled by: at most burst tokens, rate of them a second.
type quota struct{ burst, rate float64 }

func (b *bucket) fill(q quota, now time.Time) {
	if passed := now.Sub(b.at).Seconds(); passed > 0 {
		b.missing = max(0, b.missing-passed*q.rate)
	}
	b.at = now
}

// empty reports whether no token is left.
func (b *bucket) empty(q quota, now time.Time) bool {
	b.fill(q, now)
	return b.missing+1 > q.burst
}

// take takes a token, if there is one.
func (b *bucket) take(q quota, now time.Time) bool {
	if b.empty(q, now) {
		return false
	}
	b.missing++
	return true
}

// giveBack returns a token that was taken.
func (b *bucket) giveBack() { b.missing = max(0, b.missing-1) }

// maxAddresses bounds what is remembered of addresses: some 10 MB.
const maxAddresses = 1 << 16

// addresses holds each source address to its credit of connections that have proved
// nothing. A connection takes one token and brings it back when its peer is verified,
// or when the hub was the one that had no room; whoever fails, or says nothing until
// the deadline, doesn't. So any number of good devices share one address, as those
// behind one NAT do, and half-open connections use its credit up.
//
// An IPv6 address stands for its /64, which is what one host is given.
type addresses struct {
	mu    sync.Mutex // guards what follows
	quota quota
	known map[netip.Addr]*address
	rest  address // for those that come when maxAddresses are known
}

// address is what is known of one. All fields are guarded by addresses.mu.
type address struct {
	credit bucket
	issuer string // of the last full handshake that succeeded, by key identifier
	mixed  bool   // there were several issuers
	device device // likewise; 0: a service's
	shared bool   // there were several devices
}

func newAddresses(q quota) *addresses {
	return &addresses{quota: q, known: make(map[netip.Addr]*address)}
}

// addressOf returns the address that a connection is counted under.
func addressOf(remote net.Addr) netip.Addr {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	a := tcp.AddrPort().Addr().Unmap().WithZone("")
	if a.Is6() {
		prefix, err := a.Prefix(64)
		if err != nil {
			return a
		}
		return prefix.Addr()
	}
	return a
}

// of returns what is known of a. The caller holds mu.
func (s *addresses) of(a netip.Addr, now time.Time) *address {
	if known, ok := s.known[a]; ok {
		return known
	}
	if len(s.known) >= maxAddresses {
		s.forget(now)
	}
	if len(s.known) >= maxAddresses {
		return &s.rest
	}
	known := &address{}
	s.known[a] = known
	return known
}

// forget drops those that have all their credit, and if that is not a quarter of all,
// every one that has more than half: a sweep has to be worth its time. The caller holds
// mu.
func (s *addresses) forget(now time.Time) {
	for _, most := range []float64{0, s.quota.burst / 2} {
		for a, known := range s.known {
			if known.credit.fill(s.quota, now); known.credit.missing <= most {
				delete(s.known, a)
			}
		}
		if len(s.known) <= maxAddresses*3/4 {
			return
		}
	}
}

// take takes one token of a's credit, if there is one.
func (s *addresses) take(a netip.Addr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of(a, now).credit.take(s.quota, now)
}

// giveBack returns it.
func (s *addresses) giveBack(a netip.Addr, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of(a, now).credit.giveBack()
}

// note remembers whose certificate was used at a.
func (s *addresses) note(a netip.Addr, issuer string, d device, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.of(a, now)
	if known == &s.rest {
		return
	}
	known.mixed = known.mixed || known.issuer != "" && known.issuer != issuer
	known.shared = known.shared || known.issuer != "" && known.device != d
	known.issuer, known.device = issuer, d
}

// aloneAt returns the issuer whose certificates alone have been used at a, or "", and the
// device whose certificate alone has, or 0.
func (s *addresses) aloneAt(a netip.Addr) (issuer string, d device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.known[a]
	if !ok {
		return "", 0
	}
	if !known.mixed {
		issuer = known.issuer
	}
	if !known.shared {
		d = known.device
	}
	return issuer, d
}

// issuers holds each issuing CA to a rate of full handshakes, so that one batch of
// devices gone wild leaves room for the others. Only a completed handshake takes a
// token: a certificate is no secret, and who merely shows one must not use up its
// issuer's. Issuers are trusted ones, so there are few.
type issuers struct {
	mu    sync.Mutex // guards what follows
	quota quota
	used  map[string]*bucket
}

func newIssuers(q quota) *issuers {
	return &issuers{quota: q, used: make(map[string]*bucket)}
}

// spent reports whether that issuer's devices have to wait.
func (s *issuers) spent(issuer string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.used[issuer]
	return ok && b.empty(s.quota, now)
}

// charge counts a full handshake.
func (s *issuers) charge(issuer string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.used[issuer]
	if !ok {
		b = &bucket{}
		s.used[issuer] = b
	}
	b.fill(s.quota, now)
	b.missing = min(b.missing+1, s.quota.burst)
}
