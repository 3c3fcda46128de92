package broker

import (
	"slices"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/wire"
)

// cloneWill returns a will that shares nothing with the packet that it came in.
func cloneWill(w *wire.Will) *wire.Will {
	if w == nil {
		return nil
	}
	clone := *w
	clone.Message = clonePublish(&w.Message)
	return &clone
}

// clonePublish returns a message that shares nothing with the reader's buffer.
func clonePublish(p *wire.Publish) wire.Publish {
	clone := *p
	clone.Payload = slices.Clone(p.Payload)
	if p.Props != nil {
		props := *p.Props
		props.Correlation = slices.Clone(p.Props.Correlation)
		props.User = slices.Clone(p.Props.User)
		clone.Props = &props
	}
	if p.Expiry != nil {
		expiry := *p.Expiry
		clone.Expiry = &expiry
	}
	clone.SubIDs = nil
	return clone
}

// publishWill publishes a will, if there is one. It passes policy once more, because
// rules and labels may have changed since CONNECT. The caller holds no lock.
func (b *Broker) publishWill(s *Session, will *wire.Will) {
	if will == nil {
		return
	}
	role, id := splitKey(s.key)
	if status, _ := b.config.Devices.Status(id); role == identity.RoleDevice && !status.State.MayConnect() {
		return // it was cut off meanwhile, or between the marking and the cutting
	}
	s.mu.Lock()
	subject := s.subject
	s.mu.Unlock()
	if d := b.config.Allow(subject, policy.Publish, will.Message.Topic); !d.Allowed {
		b.counters.denied.Add(1)
		b.log.Warn("will denied by policy", "id", id, "role", role, "rule", d.Rule)
		return
	}
	m := b.newMessage(&will.Message, senderOf(role, id), s)
	if err := b.accept(b.context, &publication{b: b, message: m}); err != nil {
		b.log.Error("will could not be published", "id", id, "role", role, "error", err)
	}
}

// cancelWill drops a will that waits for its delay.
func (b *Broker) cancelWill(key string) {
	s := b.sessions.find(key)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b.dropWill(s)
}

func (b *Broker) dropWill(s *Session) {
	if s.gone || s.will == nil || s.client != nil {
		return
	}
	s.will, s.willDue, s.willOf = nil, time.Time{}, mtls.Peer{}
	_ = b.ingest.Presence(s.record(), nil) // an error marks the journal as stale
}
