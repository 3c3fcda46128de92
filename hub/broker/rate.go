package broker

import (
	"sync"
	"time"
)

// rates has a bucket for every identity that sends, or did in the last seconds: neither
// another connection nor a reconnect gets more. The zero value is empty.
type rates struct {
	mu sync.Mutex // guards m, and its buckets' users and left
	m  map[string]*bucket
}

// bucket bounds one identity's rate. Its connections share it.
type bucket struct {
	users int       // connections
	left  time.Time // when the last of them ended

	mu                sync.Mutex // guards what follows
	perSecond, tokens float64
	at                time.Time
	lines             float64   // that may be logged about the identity
	linesAt           time.Time // when that was so
	unlogged          uint64    // lines since the last that was logged
}

// Lines about one identity: a device that reconnects and breaks the protocol all day
// must not be able to fill the disk with them.
const (
	linesBurst  = 40
	linesPerSec = 0.5
)

// line reports whether a line about the identity may be logged, and how many were not
// since the last.
func (k *bucket) line(now time.Time) (unlogged uint64, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.linesAt.IsZero() {
		k.lines = linesBurst
	} else {
		k.lines = min(linesBurst, k.lines+linesPerSec*max(0, now.Sub(k.linesAt).Seconds()))
	}
	k.linesAt = now
	if k.lines < 1 {
		k.unlogged++
		return 0, false
	}
	k.lines--
	unlogged, k.unlogged = k.unlogged, 0
	return unlogged, true
}

// of returns the bucket of an identity, for one connection more.
func (r *rates) of(key string, perSecond int) *bucket {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.m[key]
	if k == nil {
		if r.m == nil {
			r.m = make(map[string]*bucket)
		}
		k = &bucket{perSecond: float64(perSecond), tokens: float64(perSecond * rateWindow)}
		r.m[key] = k
	}
	k.users++
	return k
}

// leave gives a bucket back.
func (r *rates) leave(k *bucket, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k.users--
	k.left = now
}

// sweep forgets the buckets that nobody has used for so long that they are full again,
// with what may be logged.
func (r *rates) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, k := range r.m {
		if k.users == 0 && now.Sub(k.left) > max(rateWindow, linesBurst/linesPerSec)*time.Second {
			delete(r.m, key)
		}
	}
}

// take takes one, and returns how long the sender waits for it: not at all, mostly.
func (k *bucket) take(now time.Time) time.Duration { return k.takeMany(now, 1) }

// takeMany is take for what costs as much as n messages.
func (k *bucket) takeMany(now time.Time, n float64) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.at.IsZero() {
		k.tokens = min(k.perSecond*rateWindow, k.tokens+k.perSecond*max(0, now.Sub(k.at).Seconds()))
	}
	k.at = now
	k.tokens -= n
	if k.tokens >= 0 {
		return 0
	}
	return time.Duration(-k.tokens / k.perSecond * float64(time.Second))
}
