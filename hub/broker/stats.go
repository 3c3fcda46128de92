package broker

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/fleethub/fleethub/certs/identity"
)

// counters only grow, but for watchers.
type counters struct {
	connects, published, denied, withheld, dropped, notRetained, watchDropped, panics atomic.Uint64
	watchers                                                                          atomic.Int64
}

// Stats is a snapshot of what the broker has done and holds.
type Stats struct {
	Devices  int // live connections
	Services int // live connections
	Sessions int // live and stored
	Retained int // retained messages
	Watchers int

	// Totals since the start.
	Connects         uint64 // accepted CONNECTs
	Published        uint64 // messages accepted from clients
	Denied           uint64 // publishes, wills and subscriptions refused by policy
	Withheld         uint64 // deliveries and stored items that policy no longer allowed
	Dropped          uint64 // deliveries lost to a full queue
	NotRetained      uint64 // messages delivered and not retained: their owner retains enough
	WatchDropped     uint64 // messages that watchers missed
	Panics           uint64 // contained
	PacketsReceived  uint64
	PacketsSent      uint64
	MessagesReceived uint64
	MessagesSent     uint64
	BytesReceived    uint64 // MQTT, without TLS
	BytesSent        uint64
}

// Stats returns a snapshot. Its fields are read one after the other.
func (b *Broker) Stats() Stats {
	info := b.mqtt.Info
	total := func(n *int64) uint64 { return uint64(atomic.LoadInt64(n)) }
	return Stats{
		Devices:          b.sessions.Count(identity.RoleDevice),
		Services:         b.sessions.Count(identity.RoleService),
		Sessions:         b.seats.count(),
		Retained:         b.mqtt.Topics.Retained.Len(),
		Watchers:         int(b.counters.watchers.Load()),
		Connects:         b.counters.connects.Load(),
		Published:        b.counters.published.Load(),
		Denied:           b.counters.denied.Load(),
		Withheld:         b.counters.withheld.Load(),
		Dropped:          b.counters.dropped.Load() + total(&info.InflightDropped),
		NotRetained:      b.counters.notRetained.Load(),
		WatchDropped:     b.counters.watchDropped.Load(),
		Panics:           b.counters.panics.Load(),
		PacketsReceived:  total(&info.PacketsReceived),
		PacketsSent:      total(&info.PacketsSent),
		MessagesReceived: total(&info.MessagesReceived),
		MessagesSent:     total(&info.MessagesSent),
		BytesReceived:    total(&info.BytesReceived),
		BytesSent:        total(&info.BytesSent),
	}
}

// quiet is the slog.Handler below mochi. mochi logs whole packets, payloads and
// wills included: only its errors pass, and of them only harmless attributes.
type quiet struct{ next slog.Handler }

// Enabled lets errors pass.
func (q quiet) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelError && q.next.Enabled(ctx, level)
}

// Handle passes a record on without the attributes that may hold a payload.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, "mochi: "+r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "error", "client", "listener":
			clean.AddAttrs(a)
		}
		return true
	})
	return q.next.Handle(ctx, clean)
}

// WithAttrs drops them: mochi adds the hook's name.
func (q quiet) WithAttrs([]slog.Attr) slog.Handler { return q }

// WithGroup ignores groups: mochi uses none.
func (q quiet) WithGroup(string) slog.Handler { return q }
