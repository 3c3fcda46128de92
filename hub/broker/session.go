package broker

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/wire"
)

// sessionKey names a session. The role is part of it, so that a service can't
// inherit the session of a device of the same ID; no role contains a '/'.
func sessionKey(role identity.Role, clientID string) string {
	return string(role) + "/" + clientID
}

// splitKey is the inverse of sessionKey; id is that of the identity, which a
// service's client identifier begins with.
func splitKey(key string) (role identity.Role, id string) {
	r, clientID, _ := strings.Cut(key, "/")
	id, _, _ = strings.Cut(clientID, ":") // no ID contains a colon
	return identity.Role(r), id
}

// subscription is one of a session's, as the index holds it.
type subscription struct {
	ingest.Subscription
}

// Session is what the hub keeps for one client identifier: while it is connected
// and, if it is stored, for a time thereafter.
type Session struct {
	key    string
	stored bool   // outlives its connection, so it is in the journal
	number uint64 // in the journal; 0 unless stored

	alarm *deadline // its place in Broker.deadlines, whose mu guards it; nil: none

	// reader is the connection, for who needs no lock: QoS 0 messages go there.
	reader atomic.Pointer[client]

	// presence is held while the connection's coming and going are announced, so that
	// what is announced last is so. Never together with mu.
	presence sync.Mutex

	mu       sync.Mutex // guards what follows
	gone     bool       // the session has ended; nothing is added to it any more
	subject  policy.Subject
	client   *client // nil: not connected
	version  byte
	expiry   time.Duration
	left     time.Time // when the connection ended; zero while there is one
	will     *wire.Will
	willDue  time.Time // when a will that waits is published; zero: none waits
	willOf   mtls.Peer // who left it; zero after a restart
	subs     map[string]subscription
	incoming map[uint16]bool // QoS 2 messages accepted and not yet released; true: on disk
	box      outbox
	replays  []replay  // retained messages still to be queued
	lookedAt time.Time // when a full queue was last looked through for expired messages
}

// sessions are all that there are.
type sessions struct {
	mu     sync.Mutex // guards m and of
	m      map[string]*Session
	of     map[string]int // sessions by identity, as its own key
	lastID atomic.Uint64
}

// identityKey is the key of the session that bears the identity's plain name: what its
// other sessions' keys begin with.
func identityKey(key string) string {
	role, id := splitKey(key)
	return sessionKey(role, id)
}

// count returns the sessions of the identity that a key belongs to.
func (t *sessions) count(key string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.of[identityKey(key)]
}

func (t *sessions) find(key string) *Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[key]
}

// findOrAdd returns the session of a key, or s if there is none.
func (t *sessions) findOrAdd(key string, s func() *Session) *Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := t.m[key]
	if found == nil {
		if t.m == nil {
			t.m, t.of = make(map[string]*Session), make(map[string]int)
		}
		found = s()
		t.m[key] = found
		t.of[identityKey(key)]++
	}
	return found
}

func (t *sessions) remove(s *Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[s.key] != s {
		return
	}
	delete(t.m, s.key)
	if of := identityKey(s.key); t.of[of] > 1 {
		t.of[of]--
	} else {
		delete(t.of, of)
	}
}

func (t *sessions) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.m)
}

// all returns a snapshot.
func (t *sessions) all() []*Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]*Session, 0, len(t.m))
	for _, s := range t.m {
		list = append(list, s)
	}
	return list
}

// newSession returns an empty session that belongs to nobody yet.
func (b *Broker) newSession(key string, subject policy.Subject) *Session {
	return &Session{key: key, subject: subject}
}

// subjectOf returns who policy is asked about. Nothing of its certificate is known yet.
func (b *Broker) subjectOf(role identity.Role, id string) policy.Subject {
	subject := policy.Subject{Role: role, ID: id, Unseen: true}
	if role == identity.RoleDevice {
		subject.Attributes = func() (policy.Attributes, bool) { return b.config.Attributes(id) }
	}
	return subject
}

// attributes is Config.Attributes where the hub has none of its own.
func (b *Broker) attributes(id string) (policy.Attributes, bool) {
	s, known := b.config.Devices.Status(id)
	// A record that can't be read is known, and in no state.
	return policy.Attributes{Labels: s.Labels, Model: s.Model, Protection: s.Protection, Batch: s.Batch, Station: s.Station}, known && s.State != ""
}

// SubjectOf returns who policy is asked about when that peer acts. It looks at the peer's
// certificate now, and at what else is known of a device at each decision. It is safe for
// concurrent use.
func (b *Broker) SubjectOf(peer mtls.Peer) policy.Subject { return b.subjectOfPeer(peer) }

// subjectOfPeer is subjectOf for who has presented a certificate. Where a device's key is,
// its record says of its newest certificate, which it need not have presented: only the
// one that it did present proves that the key it holds is in a TPM.
func (b *Broker) subjectOfPeer(peer mtls.Peer) policy.Subject {
	subject := b.subjectOf(peer.Identity.Role, peer.Identity.ID)
	subject.OU, subject.SAN, subject.Unseen = peer.Identity.OU, policy.Names(peer.Certificate), false
	recorded, presented := subject.Attributes, identity.ProtectionUnproven
	if recorded == nil {
		return subject
	}
	if peer.Certificate != nil {
		presented = identity.ProtectionOf(peer.Certificate)
	}
	subject.Attributes = func() (policy.Attributes, bool) {
		a, known := recorded()
		if known && (presented == identity.ProtectionTPM || a.Protection == string(identity.ProtectionTPM)) {
			a.Protection = string(presented)
		}
		return a, known
	}
	return subject
}

// end removes everything of a session: subscriptions, messages queued and inflight, a
// will that waits. The caller holds s.mu; a connection that it has is the caller's
// business.
func (b *Broker) end(s *Session) {
	if s.gone {
		return
	}
	s.gone = true
	for filter := range s.subs {
		b.index.Unsubscribe(filter, s)
	}
	b.queued.Add(-s.box.bytes)
	s.subs, s.incoming, s.box, s.replays = nil, nil, outbox{}, nil
	s.will, s.willDue, s.willOf = nil, time.Time{}, mtls.Peer{}
	b.deadlines.remove(s)
	if s.number != 0 {
		_ = b.ingest.End(s.number, nil) // an error marks the journal as stale
	}
	b.sessions.remove(s)
}

// endOnDisk ends a session that its client wants to be rid of. A stored one is ended on
// disk first, so that an error leaves it as it was and the next try tries again. The
// caller holds s.mu, which is not held meanwhile.
func (b *Broker) endOnDisk(s *Session) error {
	if !s.stored || s.gone {
		b.end(s)
		return nil
	}
	done := make(written, 1)
	err := b.ingest.End(s.number, done)
	s.mu.Unlock()
	if err == nil {
		err = <-done
	}
	s.mu.Lock()
	if err != nil {
		b.ingest.MarkStale() // in doubt: the record may be there
		return err
	}
	if next := s.client; next != nil { // it came while we waited, to a session that is no more
		next.Disconnect(protocol.ReasonTakenOver)
		s.client = nil
		s.reader.Store(nil)
	}
	b.end(s)
	return nil
}

// purge ends a session, whoever has it.
func (b *Broker) purge(key string) {
	s := b.sessions.find(key)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.client; c != nil {
		c.Disconnect(protocol.ReasonRevoked)
	}
	b.end(s)
}

// record returns the session as the journal has it. The caller holds s.mu.
func (s *Session) record() *ingest.Session {
	r := &ingest.Session{
		Number: s.number, Key: s.key, Version: s.version,
		Connected: s.client != nil, Left: s.left, Expiry: s.expiry, Will: s.will,
	}
	if s.client != nil {
		r.Left = time.Time{}
	}
	if s.will != nil && !s.subject.Unseen {
		r.Author = &ingest.Author{OU: s.subject.OU, SAN: s.subject.SAN}
	}
	return r
}

// full is record with all that the session has.
func (s *Session) full() *ingest.Session {
	r := s.record()
	for _, sub := range s.subs {
		r.Subs = append(r.Subs, sub.Subscription)
	}
	for id := range s.incoming {
		r.Incoming = append(r.Incoming, id)
	}
	for _, e := range s.box.entries {
		if !e.done && e.message.position.Load() != 0 { // else it is nowhere in the journal, and need not be
			r.Queue = append(r.Queue, ingest.Queued{Message: e.message.Number, Delivery: e.Delivery, Received: e.received || e.entered})
		}
	}
	return r
}
