package listener

import (
	"crypto/tls"
	"time"
)

// negotiated is what of the TLS policy can change while connections are there.
type negotiated struct {
	suites []uint16
	curves []tls.CurveID
}

// Negotiate takes suites and curves from a configuration, such as mtls.ServerConfig
// returns, for every handshake that begins from now on. Connections that are there stay
// as they are.
func (l *Listener) Negotiate(c *tls.Config) {
	l.policy.Store(&negotiated{suites: c.CipherSuites, curves: c.CurvePreferences})
}

// SetLimits has other limits from now on; zero values mean the defaults for
// maxConnections, which is bounded as in Config. Nobody is cut: what is beyond a smaller
// bound goes as it ends, and what waits keeps its place.
func (l *Listener) SetLimits(maxConnections int, limits Limits) {
	c := Config{MaxConnections: maxConnections, Limits: limits, HandshakeTimeout: l.config.HandshakeTimeout}
	c.setDefaults()
	limits = c.Limits
	l.most.Store(int64(c.MaxConnections))
	l.wait.Store(int64(limits.Wait))
	l.addresses.hold(quota{float64(limits.AddressBurst), limits.AddressRate})
	l.issuers.hold(quota{float64(limits.IssuerBurst), limits.IssuerRate})
	l.devices.hold(quota{float64(limits.DeviceBurst), limits.DeviceRate})
	l.lanes.hold(limits)
}

// hold sets the bounds of what computes, waits and is awaited.
func (l *lanes) hold(limits Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free += limits.Computing - l.rights // less than none, until so many have left
	l.rights, l.window = limits.Computing, limits.Answers
	l.limits[laneResumed], l.limits[laneFull] = limits.ResumedQueue, limits.FullQueue
	l.serve(time.Now())
}

// hold sets what addresses are held to from now on.
func (s *addresses) hold(q quota) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quota = q
}

// hold sets what issuers are held to from now on.
func (s *issuers) hold(q quota) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quota = q
}
