package listener

import (
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

func TestOtherLimitsAreInForceAtOnce(t *testing.T) {
	h := start(t, echo, func(c *Config) { c.Limits.DeviceBurst, c.Limits.DeviceRate = 1, 1e-9 })
	device := h.pki.Device("pi-1")
	conn, err := h.dial(device.ClientConfig())
	must(t, err)
	roundTrip(t, conn)
	if _, err := h.dial(device.ClientConfig()); err == nil {
		t.Fatal("the share isn't held to")
	}
	h.refused(ReasonDeviceLimit)
	h.SetLimits(0, Limits{DeviceBurst: 5})
	second, err := h.dial(device.ClientConfig())
	must(t, err)
	roundTrip(t, second)

	h.SetLimits(1, Limits{})
	roundTrip(t, conn) // nobody is cut
	if third, err := h.dial(device.ClientConfig()); err == nil {
		third.Close()
		t.Error("more connections than the new bound")
	}
	h.refused(ReasonTooMany)
	h.SetLimits(0, Limits{IssuerBurst: 1, IssuerRate: 1e-9})
	if _, err := h.dial(device.ClientConfig()); err == nil {
		t.Error("more full handshakes of an issuer than the new bound")
	}
	h.refused(ReasonIssuerLimit)
	h.SetLimits(0, Limits{AddressBurst: 1, AddressRate: 1e-9})
	raw, err := net.Dial("tcp", h.addr)
	must(t, err)
	defer raw.Close()
	until(t, "it is there", func() bool { return h.Stats().Handshaking == 1 })
	if _, err := h.dial(device.ClientConfig()); err == nil {
		t.Error("more connections of an address that prove nothing than the new bound")
	}
	h.refused(ReasonAddressLimit)
}

func TestFewerRightsToComputeAreReachedAsTheyComeBack(t *testing.T) {
	l := &lanes{}
	l.hold(Limits{Computing: 3})
	for range 3 {
		if _, err := l.enter(laneFull, never, nil); err != nil {
			t.Fatal(err)
		}
	}
	l.hold(Limits{Computing: 1})
	enter := func() error {
		_, err := l.enter(laneFull, time.Now().Add(time.Millisecond), nil)
		return err
	}
	for range 2 {
		if l.leave(); !errors.Is(enter(), errQueueTimeout) {
			t.Fatal("more compute than may")
		}
	}
	if l.leave(); enter() != nil {
		t.Fatal("nobody may compute")
	}
	served := queueUp(t, l, laneFull, laneFull)
	l.hold(Limits{Computing: 3})
	for range 2 {
		select {
		case <-served:
		case <-time.After(patience):
			t.Fatal("who waited isn't served by the rights that came")
		}
	}
}

func TestOtherSuitesAndCurvesAreNegotiatedFromThenOn(t *testing.T) {
	h := start(t, echo)
	config := func() *tls.Config {
		c := h.pki.Device("pi-1").ClientConfig()
		c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}
		return c
	}
	before, err := h.dial(config())
	must(t, err)
	if got := before.ConnectionState().CurveID; got == tls.X25519MLKEM768 {
		t.Fatalf("the default profile negotiates %s", got)
	}
	h.Negotiate(mtls.ServerConfig(mtls.ServerOptions{Profile: mtls.ProfilePQ}))
	after, err := h.dial(config())
	must(t, err)
	if got := after.ConnectionState().CurveID; got != tls.X25519MLKEM768 {
		t.Errorf("negotiated %s", got)
	}
	roundTrip(t, before)
	roundTrip(t, after)
	h.Negotiate(mtls.ServerConfig(mtls.ServerOptions{Profile: mtls.ProfileConstrained}))
	last, err := h.dial(config())
	must(t, err)
	if got := last.ConnectionState().CurveID; got == tls.X25519MLKEM768 {
		t.Errorf("negotiated %s", got)
	}
}
