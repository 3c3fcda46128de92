package server

import (
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/listener"
)

// maxAccounts bounds of how many devices handshakes are accounted for, some 500 octets
// each. Beyond it, the device that was silent for longest is forgotten.
const maxAccounts = 1 << 16

// account keeps what each device's handshakes have cost since the hub started. It is
// in memory only: a restart begins a new account, which says since when it counts. It
// is safe for concurrent use.
type account struct {
	fleet *fleet.Fleet
	now   func() time.Time

	mu      sync.Mutex // guards what follows
	devices *simplelru.LRU[string, *admin.Handshakes]
}

func newAccount(f *fleet.Fleet, now func() time.Time, most int) *account {
	devices, err := simplelru.NewLRU[string, *admin.Handshakes](most, nil)
	if err != nil {
		panic(err) // a size that isn't positive
	}
	return &account{fleet: f, now: now, devices: devices}
}

// of returns a device's account. It implements admin.Config.Handshakes.
func (a *account) of(id string) (admin.Handshakes, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d, ok := a.devices.Peek(id); ok {
		return *d, true
	}
	return admin.Handshakes{}, false
}

// change edits the account of a registered device. What Last and LastRefusal point to
// is replaced, never changed: of gives copies away.
func (a *account) change(id string, edit func(*admin.Handshakes)) {
	now := a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	d, ok := a.devices.Get(id)
	if !ok {
		d = &admin.Handshakes{Since: now}
		a.devices.Add(id, d)
	}
	edit(d)
}

func (a *account) done(hs listener.Handshake) {
	if hs.Peer.Identity.Role != identity.RoleDevice {
		return
	}
	last := &admin.Handshake{
		At: a.now(), Resumed: hs.Resumed, Seconds: hs.Took.Seconds(), BytesUp: hs.BytesUp, BytesDown: hs.BytesDown,
		TLS: tls.VersionName(hs.Version), Suite: suiteName(hs.Suite), Curve: hs.Curve.String(),
	}
	a.change(hs.Peer.Identity.ID, func(d *admin.Handshakes) {
		if hs.Resumed {
			d.Resumed++
		} else {
			d.Full++
		}
		d.BytesUp += hs.BytesUp
		d.BytesDown += hs.BytesDown
		if hs.CPU > 0 {
			d.CPUSampled++
			d.CPUSeconds += hs.CPU.Seconds()
		}
		d.Last = last
	})
}

func (a *account) refused(reason string, remote net.Addr, id string) {
	if id == "" {
		return
	}
	if _, registered := a.fleet.Status(id); !registered {
		return // or strangers would push the fleet's accounts out
	}
	refusal := &admin.LastRefusal{At: a.now(), Reason: reason, Address: remote.String()}
	a.change(id, func(d *admin.Handshakes) {
		d.Refused++
		d.LastRefusal = refusal
	})
}

// observer tells metrics and account what happens to connections.
type observer struct {
	*metrics
	account *account
}

var _ listener.HandshakeObserver = observer{}

// OnRefused implements listener.Observer.
func (o observer) OnRefused(reason string, remote net.Addr, id string) {
	o.metrics.OnRefused(reason, remote, id)
	o.account.refused(reason, remote, id)
}

// OnHandshakeDone implements listener.HandshakeObserver.
func (o observer) OnHandshakeDone(hs listener.Handshake) {
	o.metrics.OnHandshakeDone(hs)
	o.account.done(hs)
}
