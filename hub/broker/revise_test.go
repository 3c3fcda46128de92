package broker

import (
	"context"
	"os"
	"slices"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/wire"
)

// withRules returns the shipped policy and these rules.
func withRules(t *testing.T, rules string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse(append(policy.Shipped(), rules...))
	must(t, err)
	return p
}

// startRevisable is startHub by a policy that the test changes.
func startRevisable(t *testing.T) (*testHub, *policy.Current) {
	t.Helper()
	current := new(policy.Current)
	h := startHub(t, func(c *Config, _ *listener.Config) { c.Allow = current.Allow })
	return h, current
}

// gone waits until a client's connection has ended.
func (h *testHub) gone(id string) {
	h.t.Helper()
	until(h.t, id+" is gone", func() bool { _, live := h.Live(id); return !live })
}

func TestAfterAReloadLiveAndStoredSubscriptionsThatAreNotAllowedAreRemoved(t *testing.T) {
	h, current := startRevisable(t)
	live := h.online(h.device("pi-1", "site", "north"), persistent)
	live.subscribe(1, 1, "d/pi-1/cmd/#", "g/site=north/cmd/#")
	away := h.device("pi-2", "site", "north")
	stored := h.online(away, persistent)
	stored.subscribe(1, 1, "d/pi-2/cmd/#", "g/site=north/cmd/#")
	stored.disconnect()
	h.gone("pi-2")
	service := h.online(h.pki.Service("backend"))
	service.subscribe(1, 0, "$share/workers/d/+/evt/#", "d/+/tele/#")
	clean := h.online(h.device("pi-3"))
	clean.subscribe(1, 0, "d/pi-3/cmd/#")
	// Queued under the old policy, for somebody who is away.
	service.publish("g/site=north/cmd/x/1", "before", 1, 1)
	service.ack(wire.TypePuback)
	if pk := expect[*wire.Publish](live); string(pk.Payload) != "before" {
		t.Fatalf("got %q", pk.Payload)
	}

	current.Set(withRules(t, `
  - {rule: no-groups, role: device, deny: subscribe, topics: 'g/#'}
  - {rule: no-keys, role: service, deny: subscribe, topics: 'd/+/evt/key'}
`))
	r, err := h.Revise(t.Context())
	must(t, err)
	if r.Live != 2 || r.Stored != 1 || r.Sessions != 4 {
		t.Errorf("%+v", r)
	}
	for _, want := range []Revised{{"device/pi-1", "g/site=north/cmd/#"}, {"device/pi-2", "g/site=north/cmd/#"}, {"service/backend", "$share/workers/d/+/evt/#"}} {
		if !slices.Contains(r.Removed, want) {
			t.Errorf("%v isn't named in %v", want, r.Removed)
		}
	}
	if m := h.index.Match("g/site=north/cmd/x/1"); len(m.Direct) != 0 {
		t.Error("a removed subscription is still matched")
	}
	if m := h.index.Match("d/pi-1/evt/door"); len(m.Shared) != 0 {
		t.Error("a removed shared subscription is still matched")
	}
	// What is left works, and asking again for what was removed is refused.
	service.publish("d/pi-1/cmd/x/2", "after", 0, 0)
	if pk := expect[*wire.Publish](live); string(pk.Payload) != "after" {
		t.Errorf("got %q", pk.Payload)
	}
	if codes := live.subscribe(2, 1, "g/site=north/cmd/#"); codes[0] != wire.Code(0x80) {
		t.Errorf("asking again: %#x", codes)
	}
	// What was queued by the old policy isn't handed out by the new.
	service.publish("d/pi-2/cmd/x/2", "after", 1, 2)
	service.ack(wire.TypePuback)
	back := h.online(away, persistent)
	if pk := expect[*wire.Publish](back); string(pk.Payload) != "after" {
		t.Errorf("got %q", pk.Payload)
	}
	if again, err := h.Revise(t.Context()); err != nil || again.Live+again.Stored != 0 {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestRemovedStoredSubscriptionsDontComeBackWithTheHub(t *testing.T) {
	dir := t.TempDir()
	current := new(policy.Current)
	registered := &devices{m: map[string]registry.Status{"pi-1": {State: registry.StateRegistered}}}
	j, state := openJournal(t, dir)
	b, err := New(Config{Devices: registered, Journal: j, State: state, Allow: current.Allow})
	must(t, err)
	s := b.newSession("device/pi-1", b.subjectOf(identity.RoleDevice, "pi-1"))
	b.sessions.findOrAdd(s.key, func() *Session { return s })
	s.mu.Lock()
	s.stored, s.number, s.version, s.expiry, s.left = true, b.sessions.lastID.Add(1), wire.V311, b.config.SessionExpiry, b.config.Now()
	s.subs = make(map[string]subscription)
	for _, filter := range []string{"d/pi-1/cmd/#", "d/pi-1/twin/desired"} {
		sub := subscription{}
		sub.Filter, sub.QoS = filter, 1
		s.subs[filter] = sub
		b.index.Subscribe(filter, s, sub)
	}
	_, err = b.ingest.Session(s.full(), nil)
	s.mu.Unlock()
	must(t, err)
	current.Set(withRules(t, "\n  - {rule: no-commands, role: device, deny: subscribe, topics: 'd/${id}/cmd/#'}\n"))
	if r, err := b.Revise(t.Context()); err != nil || r.Stored != 1 || r.Live != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	// A kill: the disk as it is now, not as Close would leave it.
	copied := t.TempDir()
	must(t, os.CopyFS(copied, os.DirFS(dir)))
	must(t, b.Close())
	must(t, j.Close())
	j, state = openJournal(t, copied)
	defer j.Close()
	for _, s := range state.Sessions {
		if len(s.Subs) != 1 || s.Subs[0].Filter != "d/pi-1/twin/desired" {
			t.Errorf("%s has %v", s.Key, s.Subs)
		}
	}
	if len(state.Sessions) != 1 {
		t.Errorf("%d sessions", len(state.Sessions))
	}
}

// TestWhatDependsOnTheCertificateOfSomebodyAwayIsDecidedWhenHeComes: after a restart, the
// hub knows whose a session is and not what his certificate says.
func TestWhatDependsOnTheCertificateOfSomebodyAwayIsDecidedWhenHeComes(t *testing.T) {
	h, current := startRevisable(t)
	current.Set(withRules(t, "\n  - {rule: ops-only, role: service, deny: subscribe, unless: {ou: ops}, topics: 'd/+/evt/#'}\n"))
	ops, other := h.pki.Service("backend", certtest.WithOU("ops")), h.pki.Service("backend", certtest.WithOU("sales"))
	w := h.online(ops, persistent)
	if codes := w.subscribe(1, 1, "d/+/evt/#", "d/+/tele/#"); codes[0] != 1 || codes[1] != 1 {
		t.Fatalf("%#x", codes)
	}
	w.disconnect()
	s := h.sessions.find("service/backend")
	until(t, "the service is gone", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.client == nil })
	// As it is after a restart.
	s.mu.Lock()
	s.subject = h.subjectOf(identity.RoleService, "backend")
	s.mu.Unlock()
	if r, err := h.Revise(t.Context()); err != nil || r.Stored != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	device := h.online(h.device("pi-1"))
	device.publish("d/pi-1/evt/door", "open", 1, 1)
	device.ack(wire.TypePuback)
	device.publish("d/pi-1/tele/door", "for all", 1, 2)
	device.ack(wire.TypePuback)
	// His certificate says something else now: neither subscription nor message is his.
	w = h.online(other, persistent)
	if pk := expect[*wire.Publish](w); string(pk.Payload) != "for all" {
		t.Errorf("got %q", pk.Payload)
	}
	if m := h.index.Match("d/pi-1/evt/door"); len(m.Direct) != 0 {
		t.Error("the subscription is still there")
	}
}

func TestReviseEndsWithItsContext(t *testing.T) {
	h, _ := startRevisable(t)
	h.online(h.device("pi-1")).subscribe(1, 0, "d/pi-1/cmd/#")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Revise(ctx); err == nil {
		t.Error("no error")
	}
}
