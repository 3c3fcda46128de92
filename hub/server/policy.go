package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/registry"
)

// PolicyFile is the name of the policy in a hub's folder, unless policy.file names
// another.
const PolicyFile = "policy.yaml"

// builtIn is the source of a hub without a policy file.
const builtIn = "built-in"

// maxPolicy bounds what is read of a policy file; package policy takes less.
const maxPolicy = 2 << 20

// policies is the policy in force, where it comes from, and its reload. It implements
// admin.Policies.
type policies struct {
	h       *Hub
	current policy.Current

	reloading sync.Mutex // held over a whole reload

	mu    sync.Mutex // guards state
	state admin.PolicyState
}

// loadPolicy reads the policy as the hub starts. A mistake in it keeps the hub from
// starting: by default rules, a device could do what the file denies.
func (h *Hub) loadPolicy() error {
	h.policies.h = h
	p, source, err := ReadPolicy(h.config)
	if err != nil {
		return command.WithCode(command.BadConfig, err)
	}
	h.policies.enforce(p, source)
	for _, w := range p.Warnings() {
		h.log.Warn("policy", "warning", w)
	}
	return nil
}

// ReadPolicy returns the policy that a hub of that configuration has, and the file that it
// is from, "built-in" if there is none. A file that policy.file names must be there.
func ReadPolicy(config Config) (*policy.Policy, string, error) {
	path, required := config.Policy.File, true
	if path == "" {
		path, required = PolicyFile, false
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(config.Dir, path)
	}
	p, err := readPolicyFile(path)
	if errors.Is(err, fs.ErrNotExist) && !required {
		return policy.Default(), builtIn, nil
	}
	return p, path, err
}

func readPolicyFile(path string) (*policy.Policy, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPolicy))
	if err != nil {
		return nil, fmt.Errorf("read the policy %s: %w", path, err)
	}
	p, err := policy.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// enforce puts a policy in force and says so.
func (s *policies) enforce(p *policy.Policy, source string) {
	s.current.Set(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = admin.PolicyState{Source: source, Rules: p.Rules(), Sum: p.Sum(), Since: s.h.now().UTC(), Warnings: p.Warnings()}
}

// State implements admin.Policies.
func (s *policies) State() admin.PolicyState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Reload implements admin.Policies. 1. The file is read and compiled: a mistake ends it
// here, and the former policy stays. 2. From one store of a pointer on, every decision is
// by the new one. 3. Subscriptions, live and stored, that it doesn't allow are removed,
// the stored ones on disk. A crash between 2 and 3 is made good at the next start.
func (s *policies) Reload(ctx context.Context, actor fleet.Actor, reason string) (admin.PolicyReload, error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	return s.reload(ctx, actor, reason)
}

func (s *policies) reload(ctx context.Context, actor fleet.Actor, reason string) (admin.PolicyReload, error) {
	former := s.State()
	report := admin.PolicyReload{PolicyState: former}
	note := fleet.Note{Action: "policy.reload", Subject: "policy", Reason: reason}
	err := s.h.fleet.Audited(ctx, actor, note, func() (string, error) {
		p, source, err := s.read(former)
		if err != nil {
			return "", err
		}
		s.enforce(p, source)
		for _, w := range p.Warnings() {
			s.h.log.Warn("policy", "warning", w)
		}
		report.PolicyState, report.Changed = s.State(), p.Sum() != former.Sum
		err = s.revise(context.WithoutCancel(ctx), &report) // in force: who asked for it may go
		return fmt.Sprintf("%d rules of %s, sum %.16s, before %.16s; subscriptions removed: %d live, %d stored",
			p.Rules(), source, p.Sum(), former.Sum, report.Live, report.Stored), err
	})
	return report, err
}

// read is ReadPolicy for a reload. That a file has gone is no wish for the default: it
// would lift what the file denied.
func (s *policies) read(former admin.PolicyState) (*policy.Policy, string, error) {
	p, source, err := ReadPolicy(s.h.config)
	if err == nil && source == builtIn && former.Source != builtIn {
		err = fmt.Errorf("%s is gone: put it back, or restart the hub to have the built-in rules", former.Source)
	}
	if err == nil {
		return p, source, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Refused = err.Error()
	return nil, "", fmt.Errorf("%w: %w", admin.ErrBadPolicy, err)
}

// revise removes the subscriptions that the policy in force doesn't allow.
func (s *policies) revise(ctx context.Context, report *admin.PolicyReload) error {
	r, err := s.h.broker.Revise(ctx)
	report.Sessions, report.Live, report.Stored = r.Sessions, r.Live, r.Stored
	for _, removed := range r.Removed {
		report.Removed = append(report.Removed, admin.RemovedSubscription{Session: removed.Session, Filter: removed.Filter})
	}
	if r.Live+r.Stored > 0 {
		s.h.log.Warn("subscriptions removed that the policy doesn't allow", "live", r.Live, "stored", r.Stored, "sessions", r.Sessions)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", fleet.ErrNotDurable, err)
	}
	return nil
}

// attributes is broker.Config.Attributes.
func (h *Hub) attributes(id string) (policy.Attributes, bool) {
	a, known := h.fleet.Attributes(id)
	if !known {
		return policy.Attributes{}, false
	}
	return policy.Attributes{Labels: a.Labels, Model: a.Model, Protection: a.Protection, Batch: a.Batch, Station: a.Station}, true
}

// relabelled is fleet.Config.Changed: what these devices are known by is different now, so
// they may no longer be allowed what they have subscribed to, connected or away. What each
// message's delivery depends on is asked then, so an error here costs no secrecy: the
// subscriptions are gone from memory, and are judged again at the next start.
func (s *policies) relabelled(ids []string) {
	r, err := s.h.broker.ReviseDevices(context.Background(), ids)
	if r.Live+r.Stored > 0 {
		s.h.log.Warn("subscriptions removed that the policy doesn't allow", "after", "a change of labels", "devices", len(ids), "live", r.Live, "stored", r.Stored)
	}
	if err != nil {
		s.h.log.Error("subscriptions that the policy no longer allows are removed in memory only; look at the disk of the journal", "error", err)
	}
}

// reloadPolicy is Reload at a signal: a file that says what is in force is no event, and
// leaves nothing in the audit log.
func (h *Hub) reloadPolicy(ctx context.Context) error {
	s := &h.policies
	s.reloading.Lock()
	defer s.reloading.Unlock()
	former := s.State()
	if p, source, err := ReadPolicy(h.config); err == nil && p.Sum() == former.Sum && source == former.Source {
		s.enforce(p, source)
		return nil
	}
	_, err := s.reload(ctx, fleet.Actor{Name: "hub"}, "SIGHUP")
	return err
}

// Explain implements admin.Policies: by the registry and the live connection, or, of a
// device that is away, by the certificate that it last had.
func (s *policies) Explain(ctx context.Context, q admin.PolicyQuestion) (admin.PolicyAnswer, error) {
	h := s.h
	subject := policy.Subject{Role: q.Role, ID: q.ID, Unseen: true}
	var answer admin.PolicyAnswer
	if q.Role == identity.RoleDevice {
		d, err := h.fleet.Device(ctx, q.ID)
		if err != nil {
			return answer, err
		}
		answer.State = string(d.State)
		a := policy.Attributes{Labels: d.Labels, Model: d.Model, Protection: d.Protection, Batch: d.Batch, Station: d.Station}
		subject.Attributes = func() (policy.Attributes, bool) { return a, true }
		if c := lastCertificate(d); c != nil {
			if id, err := identity.FromCertificate(c); err == nil {
				subject.OU, subject.SAN, subject.Unseen = id.OU, policy.Names(c), false
			}
		}
	}
	for _, c := range h.broker.Peers(func(p mtls.Peer) bool { return p.Identity.Role == q.Role && p.Identity.ID == q.ID }) {
		answer.Online = true
		subject = h.broker.SubjectOf(c.Peer)
	}
	answer.Explanation = s.current.Policy().Explain(subject, q.Action, q.Topic)
	return answer, nil
}

// lastCertificate returns the newest certificate of a device that may be presented, nil if
// there is none.
func lastCertificate(d registry.Device) *x509.Certificate {
	var last *x509.Certificate
	for _, known := range d.Certificates {
		if !known.Usable() {
			continue
		}
		if c, err := x509.ParseCertificate(known.DER); err == nil && (last == nil || c.NotBefore.After(last.NotBefore)) {
			last = c
		}
	}
	return last
}
