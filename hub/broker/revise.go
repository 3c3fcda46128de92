package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/policy"
)

// maxRevised is how many of the removed subscriptions a Revision names.
const maxRevised = 20

// Revision is what became of subscriptions that policy no longer allows.
type Revision struct {
	Sessions int       // that were looked at
	Live     int       // subscriptions removed from sessions that are connected
	Stored   int       // from sessions whose owners are away
	Removed  []Revised // the first of them
}

// Revised is one subscription that was removed.
type Revised struct {
	Session string // role/client identifier
	Filter  string
}

// ReviseDevices is Revise for the sessions of some devices, about whom the registry has
// just changed what policy may depend on: their labels, model, batch or key protection.
func (b *Broker) ReviseDevices(ctx context.Context, ids []string) (Revision, error) {
	sessions := make([]*Session, 0, len(ids))
	for _, id := range ids {
		if s := b.sessions.find(sessionKey(identity.RoleDevice, id)); s != nil {
			sessions = append(sessions, s)
		}
	}
	return b.reviseAll(ctx, sessions)
}

// Revise holds every subscription against the policy, which has just changed, and removes
// those that it no longer allows: in memory first, so that nothing more comes by them, and
// of stored sessions from the disk. When it returns nil, the latter is done. An error says
// that memory is right and the disk is not yet: the next checkpoint makes it so, and until
// then a restart brings such subscriptions back to a session whose owner is asked about
// them before anything is sent.
//
// What the policy depends on and isn't known of somebody who is away counts in his favour:
// his return decides, since the session is revised again then, and every message before it
// is sent. Subscribing goes on meanwhile: it happens under the session's lock, by the old
// policy before we look or by the new one after.
func (b *Broker) Revise(ctx context.Context) (Revision, error) {
	return b.reviseAll(ctx, b.sessions.all())
}

func (b *Broker) reviseAll(ctx context.Context, sessions []*Session) (Revision, error) {
	var r Revision
	durable := false
	for _, s := range sessions {
		if err := ctx.Err(); err != nil {
			return r, fmt.Errorf("revise subscriptions: %w", err)
		}
		r.Sessions++
		s.mu.Lock()
		ended := b.revise(s)
		away, stored := s.client == nil, s.stored
		s.mu.Unlock()
		durable = durable || stored && len(ended) > 0
		if away {
			r.Stored += len(ended)
		} else {
			r.Live += len(ended)
		}
		slices.Sort(ended)
		for _, filter := range ended[:min(len(ended), maxRevised-len(r.Removed))] {
			r.Removed = append(r.Removed, Revised{s.key, filter})
		}
	}
	if !durable {
		return r, nil
	}
	// The journal keeps its order, so when this is on disk, the removals are.
	if err := b.await(func(w journal.Waiter) error { _, err := b.ingest.Mark(w); return err }); err != nil {
		b.ingest.MarkStale()
		return r, fmt.Errorf("the subscriptions that the policy no longer allows are removed, but that is not on disk yet: %w", err)
	}
	return r, nil
}

// revise drops the subscriptions that policy no longer allows to the session's owner, and
// returns their filters. The caller holds s.mu.
func (b *Broker) revise(s *Session) (ended []string) {
	if s.gone {
		return nil
	}
	subject := s.subject
	subject.Provisional = s.client == nil
	for filter := range s.subs {
		if b.config.Allow(subject, policy.Subscribe, filter).Allowed {
			continue
		}
		delete(s.subs, filter)
		b.index.Unsubscribe(filter, s)
		s.dropReplays(filter)
		b.counters.withheld.Add(1)
		ended = append(ended, strings.Clone(filter))
	}
	if s.stored && len(ended) > 0 {
		_ = b.ingest.Unsubscribed(s.number, ended, nil) // an error marks the journal as stale
	}
	return ended
}
