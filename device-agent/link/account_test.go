package link

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/fleethub/fleethub/certs/mtls"
)

func TestHandshakesAreAccountedFor(t *testing.T) {
	p := goodPeer(t)
	r := start(t, p.address, p.fleet.Device("pi-1"))
	first := r.until(StateConnected)
	publish(t, r, "d/pi-1/tele/x", "there")
	p.cut("pi-1")
	lost := r.until(StateWaiting)
	second := r.until(StateConnected)
	h, g := first.Handshake, second.Handshake
	if h.Bytes.Up < 500 || h.Bytes.Down < 500 || first.Handshakes != h.Bytes {
		t.Errorf("first handshake %+v, of all %+v", h.Bytes, first.Handshakes)
	}
	if g.Bytes.Up == 0 || g.Bytes.Down == 0 || second.Handshakes != h.Bytes.plus(g.Bytes) {
		t.Errorf("second handshake %+v, of all %+v", g.Bytes, second.Handshakes)
	}
	if lost.Traffic.Up <= h.Bytes.Up || lost.Traffic.Down <= h.Bytes.Down {
		t.Errorf("traffic %+v isn't more than the handshake %+v", lost.Traffic, h.Bytes)
	}
	if h.Curve == "" || h.Suite == "" || first.Profile != mtls.ProfileDefault {
		t.Errorf("handshake %+v, profile %s", h, first.Profile)
	}
}

func TestRefusedHandshakeIsAccountedForToo(t *testing.T) {
	p := goodPeer(t)
	p.set(func(p *peer) { p.tls = errors.New("revoked") })
	r := start(t, p.address, p.fleet.Device("pi-1"))
	if s := r.until(StateWaiting); s.Handshakes.Up == 0 || s.Handshakes.Down == 0 || s.Handshake != nil {
		t.Errorf("status %+v", s)
	}
}

func TestProfileIsThatOfTheConnection(t *testing.T) {
	p := goodPeer(t)
	for profile, curve := range map[mtls.Profile]string{mtls.ProfileConstrained: "CurveP256", mtls.ProfilePQ: "X25519"} {
		r := start(t, p.address, p.fleet.Device("pi-1"), func(c *Config) { c.Profile = profile })
		s := r.until(StateConnected)
		r.end()
		if s.Profile != profile || s.Handshake.Curve != curve { // the peer's own profile has no X25519MLKEM768
			t.Errorf("profile %s: the status says %s and %s", profile, s.Profile, s.Handshake.Curve)
		}
	}
}

func TestMeterCountsWhatPasses(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	var own, all meter
	m := &metered{Conn: near, own: &own, all: &all}
	go func() { // ends with the pipe
		_, _ = io.ReadFull(far, make([]byte, 5))
		_, _ = far.Write([]byte("abc"))
	}()
	if _, err := m.Write([]byte("12345")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(m, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if want := (Traffic{Up: 5, Down: 3}); own.read() != want || all.read() != want {
		t.Errorf("counted %+v and %+v, want %+v", own.read(), all.read(), want)
	}
	_ = m.Close()
}
