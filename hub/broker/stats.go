package broker

import (
	"sync/atomic"

	"github.com/fleethub/fleethub/certs/identity"
)

// counters only grow.
type counters struct {
	connects, denied, withheld, dropped, notRetained, watchDropped, panics atomic.Uint64
	unaccepted, notNoted, tooLarge, throttled, checkpoints                 atomic.Uint64
	// These count packets and messages.
	packetsReceived, packetsSent, messagesReceived, messagesSent, bytesReceived, bytesSent, published counter
}

// Stats is a snapshot of what the broker has done and holds.
type Stats struct {
	Devices       int // live connections
	Services      int // live connections
	Sessions      int // live and stored
	Subscriptions int
	Retained      int // retained messages
	Watchers      int
	QueuedBytes   int64 // of messages in all queues

	// Totals since the start.
	Connects         uint64 // accepted CONNECTs
	Published        uint64 // messages accepted from clients
	Denied           uint64 // publishes, wills and subscriptions refused by policy
	Withheld         uint64 // deliveries and stored items that policy no longer allowed
	Dropped          uint64 // deliveries lost to a full queue, or a subscriber that lags
	TooLarge         uint64 // deliveries lost because the client takes no packet so large
	NotRetained      uint64 // messages delivered and not retained: their owner retains enough
	Unaccepted       uint64 // messages refused because they could not be stored
	NotNoted         uint64 // QoS 0 messages delivered and not in the journal: the disk was behind
	Throttled        uint64 // messages read later, because their sender exceeds its rate
	WatchDropped     uint64 // messages that watchers missed
	Checkpoints      uint64 // times that the state was written anew
	Panics           uint64 // contained
	PacketsReceived  uint64
	PacketsSent      uint64
	MessagesReceived uint64
	MessagesSent     uint64
	BytesReceived    uint64 // topics and payloads of messages
	BytesSent        uint64 // MQTT, without TLS
}

// Stats returns a snapshot. Its fields are read one after the other.
func (b *Broker) Stats() Stats {
	n := &b.counters
	return Stats{
		Devices:          b.live.Count(identity.RoleDevice),
		Services:         b.live.Count(identity.RoleService),
		Sessions:         b.sessions.len(),
		Subscriptions:    b.index.Len(),
		Retained:         b.retained.Len(),
		Watchers:         b.watchers.len(),
		QueuedBytes:      b.queued.Load(),
		Connects:         n.connects.Load(),
		Published:        n.published.load(),
		Denied:           n.denied.Load(),
		Withheld:         n.withheld.Load(),
		Dropped:          n.dropped.Load(),
		TooLarge:         n.tooLarge.Load(),
		NotRetained:      n.notRetained.Load(),
		Unaccepted:       n.unaccepted.Load(),
		NotNoted:         n.notNoted.Load(),
		Throttled:        n.throttled.Load(),
		WatchDropped:     n.watchDropped.Load(),
		Checkpoints:      n.checkpoints.Load(),
		Panics:           n.panics.Load(),
		PacketsReceived:  n.packetsReceived.load(),
		PacketsSent:      n.packetsSent.load(),
		MessagesReceived: n.messagesReceived.load(),
		MessagesSent:     n.messagesSent.load(),
		BytesReceived:    n.bytesReceived.load(),
		BytesSent:        n.bytesSent.load(),
	}
}
