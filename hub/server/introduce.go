package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/why"
)

// What becomes of a device that comes with a good certificate before any manifest has
// named it: the values of Config.Admission.
const (
	admitRegistered = "registered"
	admitJustInTime = "just-in-time"
)

// JustInTimeConfig is for hubs that take down devices which no manifest has named.
type JustInTimeConfig struct {
	Activate []string `yaml:"activate"` // stations whose devices need no approval. Not in the environment
	Waiting  int      `yaml:"waiting"`  // devices that may wait for approval at a time
}

// maxWaiting bounds JustInTimeConfig.Waiting.
const maxWaiting = 100_000

func (c Config) checkAdmission() error {
	if c.Admission != admitRegistered && c.Admission != admitJustInTime {
		return fmt.Errorf("admission: %.80q is neither %s nor %s", c.Admission, admitRegistered, admitJustInTime)
	}
	if n := c.JustInTime.Waiting; n < 1 || n > maxWaiting {
		return fmt.Errorf("just_in_time.waiting: %d is not between 1 and %d", n, maxWaiting)
	}
	for _, station := range c.JustInTime.Activate {
		if err := identity.ValidID(station); err != nil {
			return fmt.Errorf("just_in_time.activate: %.80q can't be a station's name", station)
		}
	}
	return nil
}

// newcomers is what is done with devices that no manifest has named. The zero value turns
// them away.
type newcomers struct {
	settings atomic.Pointer[welcome]
	places   atomic.Int32 // taken by devices that are being taken down
}

// welcome is what hub.yaml says about them.
type welcome struct {
	admission string
	JustInTimeConfig
}

func (n *newcomers) set(c Config) { n.settings.Store(&welcome{c.Admission, c.JustInTime}) }

func (n *newcomers) welcome() bool {
	w := n.settings.Load()
	return w != nil && w.admission == admitJustInTime
}

func (n *newcomers) activates(station string) bool {
	return slices.Contains(n.settings.Load().Activate, station)
}

// waiting is how many may wait for approval.
func (n *newcomers) waiting() int { return n.settings.Load().Waiting }

// Devices are taken down a few at a time: each is a transaction, and revocations wait for
// the same turn. Whoever finds no place comes again.
const (
	introducedAtOnce = 64
	introduceWait    = 2 * time.Second
)

// introduction returns how a device that was refused in its handshake is taken down, false
// if it isn't: it is known, or not by a factory's CA, or too many wait.
func (h *Hub) introduction(peer mtls.Peer, refused error) (fleet.Introduction, bool) {
	r, ok := errors.AsType[*mtls.Refusal](refused)
	if !ok || !h.newcomers.welcome() || r.Reason != admission.ReasonUnknownDevice {
		return fleet.Introduction{}, false
	}
	return fleet.Introduction{
		Certificate: peer.Certificate, Issuer: peer.Issuer,
		Activate: h.newcomers.activates(peer.Issuer.Subject.CommonName),
	}, true
}

// verifyUnknown lets a device that isn't registered through its handshake if it is going to
// be taken down. What follows the handshake asks the registry again, so that gives it
// nothing yet.
func (h *Hub) verifyUnknown(peer mtls.Peer, refused error) error {
	in, ok := h.introduction(peer, refused)
	if !ok {
		return refused
	}
	if err := h.fleet.CheckIntroduction(in); err != nil {
		return h.notIntroduced(peer.Identity, err)
	}
	return nil
}

// notIntroduced is the refusal of a device that isn't registered, and isn't taken down.
func (h *Hub) notIntroduced(id identity.Identity, err error) error {
	refusal := &mtls.Refusal{Reason: admission.ReasonUnknownDevice, Identity: id, Detail: err.Error()}
	if r, ok := errors.AsType[*fleet.IntroductionRefusal](err); ok {
		refusal.Reason = mtls.Reason(r.Reason)
	}
	return refusal
}

// serveMQTT hands a connection to the broker, once its device is taken down if it came
// before any manifest named it. A quarantined one the broker refuses.
func (h *Hub) serveMQTT(conn *listener.Conn) func() {
	if h.newcomers.welcome() && conn.Peer.Identity.Role == identity.RoleDevice && !h.fleet.Knows(conn.Peer.Identity.ID) {
		if err := h.introduce(conn); err != nil {
			h.log.Warn("a device is not taken down", "device", conn.Peer.Identity.ID, "remote", conn.RemoteAddr(), "error", err)
			refusal, _ := errors.AsType[*mtls.Refusal](h.notIntroduced(conn.Peer.Identity, err))
			h.metrics.refused.WithLabelValues(string(refusal.Reason)).Inc()
			chronicle{h}.note(conn.Peer.Identity, why.Event{Kind: why.Refused, Reason: string(refusal.Reason), Detail: refusal.Detail, Address: why.Host(conn.RemoteAddr()), Own: true})
		}
	}
	return h.broker.Serve(conn) // it asks the registry, whatever became of the above
}

func (h *Hub) introduce(conn *listener.Conn) error {
	in, ok := h.introduction(conn.Peer, h.admission.Check(conn.Peer))
	if !ok { // known by now
		return nil
	}
	in.Address = conn.RemoteAddr().String()
	defer h.newcomers.places.Add(-1)
	if h.newcomers.places.Add(1) > introducedAtOnce {
		return errors.New("many devices come for the first time: it comes again")
	}
	ctx, cancel := context.WithTimeout(context.Background(), introduceWait)
	defer cancel()
	_, err := h.fleet.Introduce(ctx, in)
	return err
}
