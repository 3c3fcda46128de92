package listener

import (
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

func TestOneDeviceLeavesItsIssuersHandshakesToTheOthers(t *testing.T) {
	h := start(t, echo, func(c *Config) { c.Limits.DeviceBurst, c.Limits.DeviceRate = 2, 1e-9 })
	mad := h.pki.Device("pi-1")
	resumable := mad.ClientConfig()
	resumable.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	conn, err := h.dial(resumable)
	must(t, err)
	roundTrip(t, conn)
	conn, err = h.dial(mad.ClientConfig())
	must(t, err)
	roundTrip(t, conn)

	signed := h.Stats().AdmittedFull
	if _, err := h.dial(mad.ClientConfig()); err == nil {
		t.Error("a third was served")
	}
	h.refused(ReasonDeviceLimit)
	if h.Stats().AdmittedFull != signed {
		t.Error("the handshake was begun, from an address where that device is alone")
	}
	conn, err = h.dial(resumable)
	must(t, err)
	roundTrip(t, conn) // a resumed handshake is none of these

	// Another device at that address: from then on who it is shows with the certificate. It
	// is the mad one's tickets that are left, so this costs no more than a handshake begun.
	h.addresses.note(addressOf(conn.LocalAddr()), "x", 0, time.Now())
	roundTrip(t, h.mustDial("pi-2"))
	for _, version := range versions {
		config := mad.ClientConfig()
		config.MaxVersion = version
		conn, err := h.dial(config)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if err == nil || strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: the device sees %v: its certificate is good", tls.VersionName(version), err)
		}
		h.refused(ReasonDeviceLimit + " pi-1")
	}
	roundTrip(t, h.mustDial("pi-3"))
}

func TestShownCertificateDoesNotUseUpItsDevicesShare(t *testing.T) {
	h := start(t, echo, func(c *Config) { c.Limits.DeviceBurst, c.Limits.DeviceRate = 1, 1e-9 })
	device := h.pki.Device("pi-1")
	for _, version := range versions {
		config := h.pki.Device("thief").ClientConfig()
		config.MaxVersion = version
		config.Certificates[0].Certificate = device.Certificate.Certificate
		conn, err := h.dial(config)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if err == nil {
			t.Error("a certificate without its key is enough")
		}
	}
	conn, err := h.dial(device.ClientConfig())
	must(t, err)
	roundTrip(t, conn)
}

func TestServicesAreHeldToNoShare(t *testing.T) {
	h := start(t, echo, func(c *Config) {
		c.Limits.DeviceBurst, c.Limits.DeviceRate = 1, 1e-9
		verify := c.Verify
		c.Verify = func(cs tls.ConnectionState) (mtls.Peer, error) {
			peer, err := verify(cs)
			peer.Identity.Role = identity.RoleService // of which many programs share one certificate
			return peer, err
		}
	})
	service := h.pki.Device("dashboard")
	for range 5 {
		conn, err := h.dial(service.ClientConfig())
		must(t, err)
		roundTrip(t, conn)
	}
}

func TestShareComesBack(t *testing.T) {
	s, now := newDevices(quota{3, 1}), start0
	leaf, other := certtest.New(t).Device("pi-1").Leaf, certtest.New(t).Device("pi-1").Leaf
	d := s.of(leaf)
	if d == 0 || d == s.of(other) || d != s.of(leaf) {
		t.Fatalf("devices are told apart badly: %d, %d", d, s.of(other))
	}
	for i := range 3 {
		if s.spent(d, now) {
			t.Fatalf("spent after %d", i)
		}
		s.charge(d, now)
	}
	if !s.spent(d, now) || s.spent(s.of(other), now) {
		t.Error("its share is not its own")
	}
	for range 100 { // a debt doesn't grow beyond the share
		s.charge(d, now)
	}
	if now = now.Add(2 * time.Second); s.spent(d, now) {
		t.Error("two seconds later nothing has come back")
	}
	s.hold(quota{1, 1e-9})
	if s.charge(d, now); !s.spent(d, now) {
		t.Error("a smaller share isn't held to")
	}
}

func TestDevicesThatAreRememberedAreBounded(t *testing.T) {
	s, now := newDevices(quota{4, 1}), start0
	for i := range maxDevices + 100 {
		s.charge(device(2*i+1), now)
	}
	if len(s.used) != maxDevices || s.spent(device(2*(maxDevices+50)+1), now) {
		t.Errorf("%d are known, or one that isn't has to wait", len(s.used))
	}
	now = now.Add(2 * time.Second) // all have their whole share again
	if s.charge(1<<40|1, now); len(s.used) != 1 {
		t.Errorf("%d are known afterwards", len(s.used))
	}
}

// BenchmarkShare is what a full handshake pays for its device's share; a resumed one pays nothing.
func BenchmarkShare(b *testing.B) {
	s, leaf, now := newDevices(quota{150, 30}), certtest.New(b).Device("pi-1").Leaf, time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if d := s.of(leaf); !s.spent(d, now) {
			s.charge(d, now)
			now = now.Add(time.Second)
		}
	}
}
