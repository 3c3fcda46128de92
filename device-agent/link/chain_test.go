package link

import (
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/mtls"
)

// A link with noTickets makes full handshakes only.
func noTickets(c *Config) {
	c.Sessions = func(mtls.Credentials) tls.ClientSessionCache { return nil }
}

// knowing has a link know that the leaf of cred suffices.
func knowing(cred certtest.Credential) (*volatileMemory, func(*Config)) {
	memory := &volatileMemory{leaf: cred.Leaf}
	return memory, func(c *Config) { c.Chain = memory }
}

func eachVersion(t *testing.T, f func(t *testing.T, p *peer)) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			fleet := certtest.New(t)
			f(t, newPeer(t, fleet, fleet.Server(), version))
		})
	}
}

// untilChain waits for a status in which mode is what will be presented.
func (r *running) untilChain(mode ChainMode) Status {
	r.t.Helper()
	for {
		if s := r.until(StateConnected); s.Chain == mode {
			return s
		}
	}
}

const chainNotice = `{"chain":"leaf"}`

func TestLeafAloneIsPresentedOnceTheHubSaidSo(t *testing.T) {
	eachVersion(t, func(t *testing.T, p *peer) {
		p.tell("d/pi-1/sys/tls", chainNotice)
		r := start(t, p.address, p.fleet.Device("pi-1"), noTickets)
		first := r.untilChain(ChainLeaf)
		for range 2 {
			p.next("evt/online")
			p.cut("pi-1")
			r.until(StateWaiting)
			r.untilChain(ChainLeaf)
		}
		p.next("evt/online")
		publish(t, r, "d/pi-1/tele/x", "there")
		chains, asked := p.seen()
		if !slices.Equal(chains, []int{2, 1, 1}) || !slices.Equal(asked, []string{"d/pi-1/sys/tls"}) {
			t.Errorf("presented %v certificates and asked for %q", chains, asked)
		}
		issuer := len(p.fleet.Factory.Certificate().Raw)
		if saved := int(first.Handshake.Bytes.Up) - int(r.Status().Handshake.Bytes.Up); saved < issuer-32 || saved > issuer+32 {
			t.Errorf("the leaf alone saves %d bytes, want about the %d of its issuer", saved, issuer)
		}
	})
}

func TestHubThatSaysNothingOrNonsenseGetsTheWholeChain(t *testing.T) {
	p := goodPeer(t)
	p.tell("d/pi-1/sys/tls", `{"chain":"none"}`)
	r := start(t, p.address, p.fleet.Device("pi-1"), noTickets)
	r.until(StateConnected)
	p.next("evt/online")
	p.cut("pi-1")
	r.until(StateWaiting)
	if s := r.until(StateConnected); s.Chain != ChainFull {
		t.Errorf("presents %s", s.Chain)
	}
	p.tell("d/pi-1/sys/tls", chainNotice) // once it has something to say, it is heard
	r.untilChain(ChainLeaf)
	if chains, asked := p.seen(); !slices.Equal(chains, []int{2, 2}) || len(asked) == 0 {
		t.Errorf("presented %v certificates and asked %d times", chains, len(asked))
	}
}

func TestDeviceWithNoIssuersCertificateHasNothingToAsk(t *testing.T) {
	p := goodPeer(t)
	device := p.fleet.Device("pi-1")
	device.Certificate.Certificate = device.Certificate.Certificate[:1]
	r := start(t, p.address, device)
	if s := r.until(StateConnected); s.Chain != ChainLeaf {
		t.Errorf("presents %s", s.Chain)
	}
	p.next("evt/online")
	publish(t, r, "d/pi-1/tele/x", "there")
	if _, asked := p.seen(); len(asked) > 0 {
		t.Errorf("asked for %q", asked)
	}
}

func TestRefusedLeafIsFollowedByTheWholeChain(t *testing.T) {
	eachVersion(t, func(t *testing.T, p *peer) {
		p.set(func(p *peer) { p.leaf = errors.New("issuer unknown") })
		p.tell("d/pi-1/sys/tls", chainNotice) // it says so, and doesn't act so
		device := p.fleet.Device("pi-1")
		memory, known := knowing(device)
		r := start(t, p.address, device, noTickets, known)
		s := r.until(StateWaiting)
		if f := s.LastFailure; f.Kind != KindLeaf || f.Slow() || s.LastRefusal != nil || !strings.Contains(f.Error(), "tries again with both") {
			t.Errorf("failure is %s: %s; last refusal %v", f.Kind, f.Error(), s.LastRefusal)
		}
		if s := r.until(StateConnected); s.Chain != ChainFull || s.Full != 1 {
			t.Errorf("status %+v", s)
		}
		p.next("evt/online")
		p.cut("pi-1")
		r.until(StateWaiting)
		r.until(StateConnected)
		publish(t, r, "d/pi-1/tele/x", "there")
		r.end()
		if memory.leaf != nil {
			t.Error("still known that the leaf suffices")
		}
		if chains, asked := p.seen(); !slices.Equal(chains, []int{1, 2, 2}) || len(asked) > 0 {
			t.Errorf("presented %v certificates, want 1, 2, 2; asked again for %q", chains, asked)
		}
	})
}

func TestDeviceRefusedEitherWaySaysWhyAndRetriesSlowly(t *testing.T) {
	eachVersion(t, func(t *testing.T, p *peer) {
		p.set(func(p *peer) { p.tls = errors.New("revoked") })
		device := p.fleet.Device("pi-1")
		_, known := knowing(device)
		r := start(t, p.address, device, known)
		if f := r.until(StateWaiting).LastFailure; f.Kind != KindLeaf {
			t.Errorf("first failure is %s: %s", f.Kind, f.Error())
		}
		if s := r.until(StateWaiting); s.LastFailure.Kind != KindRefused || s.LastRefusal == nil || !strings.Contains(s.LastFailure.Advice, "revoked or suspended") {
			t.Errorf("second failure is %s: %s", s.LastFailure.Kind, s.LastFailure.Error())
		}
		if chains, _ := p.seen(); !slices.Equal(chains, []int{1, 2}) {
			t.Errorf("presented %v certificates, want 1, then 2", chains)
		}
	})
}

func TestRefusedResumptionSaysNothingAboutTheChain(t *testing.T) {
	eachVersion(t, func(t *testing.T, p *peer) {
		device := p.fleet.Device("pi-1")
		memory, known := knowing(device)
		r := start(t, p.address, device, known)
		r.until(StateConnected)
		p.next("evt/online")
		p.set(func(p *peer) { p.tls = errors.New("suspended") })
		p.cut("pi-1")
		r.until(StateWaiting)
		if f := r.until(StateWaiting).LastFailure; f.Kind != KindRefused {
			t.Errorf("failure is %s: %s", f.Kind, f.Error())
		}
		r.end()
		if memory.leaf == nil {
			t.Error("forgot that the leaf suffices, though no certificate was presented")
		}
	})
}

func TestNewCertificateIsPresentedWithItsIssuer(t *testing.T) {
	p := goodPeer(t)
	old := p.fleet.Device("pi-1")
	_, known := knowing(old)
	r := start(t, p.address, p.fleet.Device("pi-1"), known)
	r.until(StateConnected)
	if chains, _ := p.seen(); !slices.Equal(chains, []int{2}) {
		t.Errorf("presented %v certificates, want 2", chains)
	}
}

func TestDoubtAboutTheLeafEndsWithTheNextAnswer(t *testing.T) {
	cred := certtest.New(t).Device("pi-1").Credentials
	leaf := &Failure{Kind: KindLeaf}
	for _, tt := range []struct {
		name    string
		ends    []*Failure // of attempts; nil is a connection
		unknown bool       // whether the hub is asked in the end
	}{
		{"nothing known", []*Failure{nil}, true},
		{"leaf refused, chain taken", []*Failure{leaf, nil}, false},
		{"leaf refused, then unreachable, then chain taken", []*Failure{leaf, {Kind: KindUnreachable}, nil}, false},
		{"both refused, then taken", []*Failure{leaf, {Kind: KindRefused}, nil}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := chainChoice{memory: &volatileMemory{leaf: cred.Leaf}}
			if !slices.Contains(tt.ends, leaf) {
				c.memory.Forget()
			}
			for _, end := range tt.ends {
				c.ended(c.mode(cred), end)
			}
			if c.unknown() != tt.unknown {
				t.Errorf("asks: %t, want %t", c.unknown(), tt.unknown)
			}
		})
	}
}
