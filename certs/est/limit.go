package est

import (
	"net"
	"sync"
	"time"
)

// Rate is how often something may be done: Burst times at once, then PerSecond. A zero
// PerSecond is no limit.
type Rate struct {
	PerSecond float64
	Burst     int
}

// maxAddresses bounds what a limiter remembers. Each takes some 100 bytes.
const maxAddresses = 1 << 14

// limiter holds each address to a rate. It is safe for concurrent use.
type limiter struct {
	rate Rate
	now  func() time.Time

	mu      sync.Mutex // guards the fields below
	buckets map[string]*bucket
	swept   time.Time
}

// bucket is what an address may still spend, as of a time.
type bucket struct {
	tokens float64
	at     time.Time
}

// ready returns 0 if the address may do it once more, else how long it has to wait.
func (l *limiter) ready(address string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.buckets[address]; b != nil {
		return l.wait(b)
	}
	return 0
}

// spend counts that the address did it, whether it might or not.
func (l *limiter) spend(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.of(address).tokens--
}

// take is ready and, if that is 0, spend.
func (l *limiter) take(address string) time.Duration {
	if l.rate.PerSecond <= 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.of(address)
	wait := l.wait(b)
	if wait == 0 {
		b.tokens--
	}
	return wait
}

// wait fills the bucket up to now, and returns when it has one to spend.
func (l *limiter) wait(b *bucket) time.Duration {
	now := l.now()
	if passed := now.Sub(b.at).Seconds(); passed > 0 {
		b.tokens = min(b.tokens+passed*l.rate.PerSecond, float64(l.rate.Burst))
	}
	b.at = now
	if b.tokens >= 1 {
		return 0
	}
	return time.Duration((1 - b.tokens) / l.rate.PerSecond * float64(time.Second))
}

// of returns the address's bucket, a full one if it has none.
func (l *limiter) of(address string) *bucket {
	if b := l.buckets[address]; b != nil {
		return b
	}
	now := l.now()
	if l.buckets == nil {
		l.buckets = make(map[string]*bucket)
	}
	if len(l.buckets) >= maxAddresses {
		l.makeRoom(now)
	}
	b := &bucket{tokens: float64(l.rate.Burst), at: now}
	l.buckets[address] = b
	return b
}

// makeRoom forgets who has their whole burst again, at most once a second, and if that
// isn't enough, whoever comes first.
func (l *limiter) makeRoom(now time.Time) {
	if now.Sub(l.swept) >= time.Second || now.Before(l.swept) {
		l.swept = now
		for address, b := range l.buckets {
			if b.tokens+now.Sub(b.at).Seconds()*l.rate.PerSecond >= float64(l.rate.Burst) {
				delete(l.buckets, address)
			}
		}
	}
	for address := range l.buckets {
		if len(l.buckets) < maxAddresses {
			return
		}
		delete(l.buckets, address)
	}
}

// host returns the address without its port. An IPv6 address counts by its network of
// 64 bits, since a host has all addresses of it.
func host(remote string) string {
	name, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	if ip := net.ParseIP(name); ip != nil && ip.To4() == nil {
		return ip.Mask(net.CIDRMask(64, 128)).String()
	}
	return name
}
