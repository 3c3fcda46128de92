package listener

import (
	"crypto/x509"
	"hash/maphash"
	"sync"
	"time"
)

// device stands for the key of a device's certificate: a keyed hash of it, so that nobody
// can aim at another's. 0 is none.
type device uint64

// maxDevices bounds what is remembered of devices: some 4 MB.
const maxDevices = 1 << 16

// sweepDevicesEvery is how often that many are looked through for those that may be
// forgotten.
const sweepDevicesEvery = time.Second

// devices holds each device to a share of its issuer's full handshakes: one that has
// gone mad, or whose key somebody has, would use up what is there for all that its
// station made. As with issuers only a completed handshake takes a token, so who merely
// shows a certificate takes none of its device's; and who stays below its share isn't
// remembered for long. Services are held to none: many programs share one's certificate.
//
// Those beyond maxDevices are held to their issuer's rate alone. So many in debt at once
// can't be while issuers are held to theirs.
type devices struct {
	seed maphash.Seed

	mu    sync.Mutex // guards what follows
	quota quota
	used  map[device]bucket
	swept time.Time
}

func newDevices(q quota) *devices {
	return &devices{seed: maphash.MakeSeed(), quota: q, used: make(map[device]bucket)}
}

// of returns what stands for the device of a certificate.
func (s *devices) of(leaf *x509.Certificate) device {
	return device(maphash.Bytes(s.seed, leaf.RawSubjectPublicKeyInfo) | 1)
}

// spent reports whether that device has to wait.
func (s *devices) spent(d device, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.used[d]
	return ok && b.empty(s.quota, now)
}

// charge counts a full handshake.
func (s *devices) charge(d device, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.used[d]
	if !ok && len(s.used) >= maxDevices && !s.forget(now) {
		return
	}
	b.fill(s.quota, now)
	b.missing = min(b.missing+1, s.quota.burst)
	s.used[d] = b
}

// forget drops those that have their whole share again, and reports whether there is room
// now. The caller holds mu.
func (s *devices) forget(now time.Time) bool {
	if now.Sub(s.swept) < sweepDevicesEvery {
		return false
	}
	s.swept = now
	for d, b := range s.used {
		if b.fill(s.quota, now); b.missing == 0 {
			delete(s.used, d)
		}
	}
	return len(s.used) < maxDevices
}

// hold sets what devices are held to from now on.
func (s *devices) hold(q quota) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quota = q
}
