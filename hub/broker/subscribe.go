package broker

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/topic"
	"github.com/fleethub/fleethub/hub/wire"
)

// subscribe takes a SUBSCRIBE: each filter is judged by itself. The SUBACK of a stored
// session waits for the disk.
func (c *client) subscribe(pk *wire.Subscribe) error {
	b, s := c.b, c.session
	ack := &wire.Suback{Kind: wire.TypeSuback, ID: pk.ID, Codes: make([]wire.Code, len(pk.Filters))}
	added, wanted, ok := b.addSubscriptions(c, pk, ack.Codes)
	if !ok {
		return errEnd
	}
	// What is retained is looked up without the session's lock: for # in a large fleet it
	// takes a while, and others have messages for this session meanwhile. Whatever is
	// retained from now on comes by the subscription, too.
	names := make([][]string, len(wanted))
	for i, sub := range wanted {
		names[i] = b.retained.Match(sub.Filter)
		c.charge(len(names[i]))
	}
	s.mu.Lock()
	if s.client != c || s.gone || c.cut.Load() {
		s.mu.Unlock()
		b.ingest.MarkStale() // of what was added nothing is in the journal
		return errEnd
	}
	entries, queued := b.collectRetained(s, wanted, names)
	var done written
	var err error
	if s.stored && len(added) > 0 {
		done = make(written, 1)
		err = b.ingest.Subscribed(s.number, added, queued, done)
	}
	s.mu.Unlock()
	if done != nil && err == nil {
		err = <-done
	}
	if err != nil {
		return c.unstored("subscription", err)
	}
	if err := c.send(ack); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		e.ready = true
	}
	b.pump(s)
	return nil
}

// addSubscriptions takes the filters that may be subscribed to into the session, and
// returns them, and those that bring retained messages. It fills in the codes. ok is
// false if the session is no longer the connection's.
func (b *Broker) addSubscriptions(c *client, pk *wire.Subscribe, codes []wire.Code) (added []ingest.Subscription, wanted []subscription, ok bool) {
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != c || s.gone || c.cut.Load() {
		return nil, nil, false
	}
	room := b.config.Quotas.Subscriptions - len(s.subs)
	brings := make(map[string]bool) // filters of this packet: one that comes again replaces its first
	for i, f := range pk.Filters {
		if codes[i] = c.maySubscribe(s, f, &room); codes[i] >= wire.UnspecifiedError {
			continue
		}
		sub := subscription{ingest.Subscription{Subscription: f, SubID: pk.SubID}}
		if s.subs == nil {
			s.subs = make(map[string]subscription)
		}
		_, existed := s.subs[f.Filter]
		s.subs[f.Filter] = sub
		b.index.Subscribe(f.Filter, s, sub)
		added = append(added, sub.Subscription)
		if _, _, shared := topic.CutShare(f.Filter); shared || brings[f.Filter] {
			continue // shared subscriptions get none
		}
		if f.RetainHandling == 0 || f.RetainHandling == 1 && !existed { // [MQTT-3.3.1-9 to -11]
			brings[f.Filter] = true
			wanted = append(wanted, sub)
		}
	}
	return added, wanted, true
}

// charge takes what looking up retained messages costs from the client's rate: one of
// its messages for eight that were found.
func (c *client) charge(found int) {
	if wait := c.rate.takeMany(time.Now(), 1+float64(found)/8); wait > 0 {
		c.b.counters.throttled.Add(1)
		c.pause(wait)
	}
}

// unstored ends a connection whose session can't be kept as it asks. What was done in
// memory and isn't on disk comes right with the next checkpoint.
func (c *client) unstored(what string, err error) error {
	c.b.ingest.MarkStale()
	return &wire.Error{Code: wire.ServerUnavailable, Detail: fmt.Sprintf("the %s can't be stored now: %v", what, err)}
}

// maySubscribe is the SUBACK's code for one filter.
func (c *client) maySubscribe(s *Session, f wire.Subscription, room *int) wire.Code {
	if !topic.ValidFilter(f.Filter) {
		return wire.TopicFilterInvalid
	}
	if d := c.b.config.Allow(c.subject, policy.Subscribe, f.Filter); !d.Allowed {
		c.deny(policy.Subscribe, f.Filter, d)
		return wire.NotAuthorized
	}
	if _, ok := s.subs[f.Filter]; !ok {
		if *room--; *room < 0 {
			return wire.QuotaExceeded
		}
	}
	return wire.Code(f.QoS)
}

// unsubscribe takes an UNSUBSCRIBE. Messages that are queued still come.
func (c *client) unsubscribe(pk *wire.Unsubscribe) error {
	b, s := c.b, c.session
	ack := &wire.Suback{Kind: wire.TypeUnsuback, ID: pk.ID, Codes: make([]wire.Code, len(pk.Filters))}
	s.mu.Lock()
	if s.client != c || c.cut.Load() {
		s.mu.Unlock()
		return errEnd
	}
	var ended []string
	for i, filter := range pk.Filters {
		switch _, ok := s.subs[filter]; {
		case ok && !slices.Contains(ended, filter): // [MQTT-3.11.3-2]: each as if it stood alone
			ended = append(ended, strings.Clone(filter))
		case !topic.ValidFilter(filter):
			ack.Codes[i] = wire.TopicFilterInvalid
		default:
			ack.Codes[i] = wire.NoSubscriptionExisted
		}
	}
	// On disk before in memory: else, after an error, the next try would find nothing
	// to end, and be told that it is done.
	var done written
	var err error
	if s.stored && len(ended) > 0 {
		done = make(written, 1)
		err = b.ingest.Unsubscribed(s.number, ended, done)
	}
	s.mu.Unlock()
	if done != nil && err == nil {
		err = <-done
	}
	if err != nil {
		return c.unstored("end of the subscription", err)
	}
	s.mu.Lock()
	for _, filter := range ended {
		if !s.gone { // whoever has the session by now: the disk says so
			delete(s.subs, filter)
			b.index.Unsubscribe(filter, s)
			s.dropReplays(filter)
		}
	}
	s.mu.Unlock()
	return c.send(ack)
}
