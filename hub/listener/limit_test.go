package listener

import (
	"crypto/tls"
	"math"
	"net"
	"net/netip"
	"testing"
	"time"
)

var start0 = time.Unix(1_800_000_000, 0)

func TestBucketFillsAtItsRateUpToItsBurst(t *testing.T) {
	q, now := quota{burst: 2, rate: 1}, start0
	var b bucket
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{
		{0, true}, {0, true}, {0, false},
		{500 * time.Millisecond, false}, {500 * time.Millisecond, true}, {0, false},
		{time.Hour, true}, {0, true}, {0, false},
		{-time.Minute, false}, // a clock that was set back
		{time.Second, true},
	} {
		now = now.Add(step.after)
		if got := b.take(q, now); got != step.want {
			t.Fatalf("at %v: %v", now.Sub(start0), got)
		}
	}
	b.giveBack()
	if !b.take(q, now) {
		t.Error("a token that was given back is not there")
	}
}

func TestOneHostIsOneAddress(t *testing.T) {
	tests := []struct{ remote, want string }{
		{"192.0.2.1:4711", "192.0.2.1"},
		{"[::ffff:192.0.2.1]:4711", "192.0.2.1"},
		{"[2001:db8:1:2:3:4:5:6]:4711", "2001:db8:1:2::"},
		{"[2001:db8:1:2::1]:1", "2001:db8:1:2::"},
		{"[2001:db8:1:3::1]:1", "2001:db8:1:3::"},
		{"[fe80::1%eth0]:1", "fe80::"},
	}
	for _, tt := range tests {
		if got := addressOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tt.remote))); got.String() != tt.want {
			t.Errorf("%s counts as %s, want %s", tt.remote, got, tt.want)
		}
	}
	if got := addressOf(&net.UnixAddr{}); got.IsValid() {
		t.Errorf("a socket without an address counts as %s", got)
	}
}

func TestAddressesAreBounded(t *testing.T) {
	s, now := newAddresses(quota{burst: 4, rate: 1}), start0
	at := func(i int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	spend := func(a netip.Addr) {
		for range 4 {
			s.take(a, now)
		}
	}
	for i := range maxAddresses {
		spend(at(i))
	}
	if len(s.known) != maxAddresses {
		t.Fatalf("%d are known", len(s.known))
	}
	// All have spent everything: newcomers share one credit.
	for i := range 4 {
		if !s.take(at(maxAddresses+i), now) {
			t.Fatal("newcomers have no credit at all")
		}
	}
	if s.take(at(maxAddresses+4), now) || len(s.known) != maxAddresses {
		t.Errorf("newcomers have more than one credit, or %d are known", len(s.known))
	}
	// Once they are forgiven, they are forgotten.
	now = now.Add(time.Minute)
	if !s.take(at(maxAddresses), now) || len(s.known) > 1 {
		t.Errorf("%d are known a minute later", len(s.known))
	}
}

func TestWhoIsAloneAtAnAddressIsKnownUntilAnotherComes(t *testing.T) {
	s, a := newAddresses(quota{4, 1}), netip.MustParseAddr("192.0.2.1")
	for i, step := range []struct {
		issuer string
		device device
		want   string
		alone  device
	}{{"", 0, "", 0}, {"x", 1, "x", 1}, {"x", 1, "x", 1}, {"x", 2, "x", 0}, {"x", 1, "x", 0}, {"y", 1, "", 0}, {"y", 1, "", 0}} {
		if step.issuer != "" {
			s.note(a, step.issuer, step.device, start0)
		}
		if issuer, d := s.aloneAt(a); issuer != step.want || d != step.alone {
			t.Errorf("step %d: %q and %d, want %q and %d", i, issuer, d, step.want, step.alone)
		}
	}
}

func TestConnectionsLeaveFileDescriptors(t *testing.T) {
	most := openable(math.MaxInt)
	for _, n := range []int{most, most - 1, 1} {
		if got := openable(n); got != n {
			t.Errorf("of %d connections %d may be open", n, got)
		}
	}
	if got := New(Config{TLS: &tls.Config{}, MaxConnections: math.MaxInt}).config.MaxConnections; got != most {
		t.Errorf("%d connections may be open, want %d", got, most)
	}
}
