package link

import (
	"math/rand/v2"
	"time"
)

// Backoff paces the attempts of one device with full jitter: each wait is
// drawn evenly from zero to a ceiling that starts at Base and doubles up to
// Cap, so devices that lost the hub together don't come back together. The
// zero value uses [DefaultBase] and [DefaultCap]. It is not safe for
// concurrent use.
type Backoff struct {
	Base, Cap time.Duration

	failures int // since Reset; only as many as it takes to reach Cap
}

// What a zero [Backoff] uses.
const (
	DefaultBase = time.Second
	DefaultCap  = 5 * time.Minute
)

// Ceiling returns the longest wait that the next call of Next may return.
func (b *Backoff) Ceiling() time.Duration {
	base, limit := b.Base, b.Cap
	if base <= 0 {
		base = DefaultBase
	}
	if limit <= 0 {
		limit = DefaultCap
	}
	ceiling := base
	for range b.failures {
		if ceiling > limit/2 {
			return limit
		}
		ceiling *= 2
	}
	return min(ceiling, limit)
}

// Next returns how long to wait before the next attempt and doubles the
// ceiling of the one after it.
func (b *Backoff) Next() time.Duration {
	ceiling := b.Ceiling()
	if b.failures < 62 {
		b.failures++
	}
	return between(0, ceiling)
}

// Reset forgets the failures: to be called once a connection has proved
// stable, not as soon as it is up, or a hub that accepts and then cuts is
// hammered at Base.
func (b *Backoff) Reset() { b.failures = 0 }

// between draws evenly from lo to hi, both included.
func between(lo, hi time.Duration) time.Duration {
	if hi <= lo {
		return lo
	}
	return lo + rand.N(hi-lo+1)
}
