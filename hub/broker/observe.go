package broker

import (
	"net"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/policy"
)

// Observer is told what becomes of connections and what they are denied. Its methods
// are called on the connections' goroutines, some under their locks: they must be safe
// for concurrent use and may neither block nor call the broker.
type Observer interface {
	// OnRefusal reports a connection that was turned away after its handshake.
	OnRefusal(id identity.Identity, remote net.Addr, reason, detail string)
	// OnConnected reports an accepted CONNECT.
	OnConnected(id identity.Identity, remote net.Addr, resumed bool)
	// OnEnded reports the end of a connection that had been accepted, for a reason of
	// package protocol; detail is empty or one sentence.
	OnEnded(id identity.Identity, remote net.Addr, reason, detail string)
	// OnDenied reports a publish or subscription that policy refused, and by which rule.
	OnDenied(id identity.Identity, action policy.Action, topic, rule string)
	// OnPublished reports how many messages a connection has sent in a time of about
	// PublishWindow, at the first message after it.
	OnPublished(id identity.Identity, messages int, in time.Duration)
}

// PublishWindow is over how long messages are counted for OnPublished.
const PublishWindow = 10 * time.Second

// tally counts a connection's messages for OnPublished. Its reader's goroutine only.
type tally struct {
	since    time.Time
	messages int
}

// count counts a message for the observer, if there is one.
func (c *client) count(now time.Time) {
	if c.b.config.Observer == nil {
		return
	}
	if c.tally.since.IsZero() {
		c.tally.since = now
	}
	if in := now.Sub(c.tally.since); in >= PublishWindow {
		c.b.config.Observer.OnPublished(c.peer.Identity, c.tally.messages, in)
		c.tally = tally{since: now}
	}
	c.tally.messages++
}

// detailOf says more about the end of a connection than its reason, if there is more.
func detailOf(c *client, err error) string {
	if err == nil || c.whyEnded() != "" || isHangup(err) || err == errEnd {
		return ""
	}
	return err.Error()
}
