package broker

import (
	"strconv"
	"time"

	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/wire"
)

// sysInterval is how often the $SYS topics are published.
const sysInterval = 10 * time.Second

// system publishes $SYS topics, to whoever has subscribed to them; nobody has, mostly,
// and then it costs a look into the index. The sweeper owns it.
type system struct {
	started, last time.Time
}

func (y *system) tick(b *Broker, now time.Time) {
	if y.started.IsZero() {
		y.started, y.last = now, now
	}
	if now.Sub(y.last) < sysInterval {
		return
	}
	y.last = now
	stats := b.Stats()
	for _, f := range []struct {
		name  string
		value uint64
	}{
		{"uptime", uint64(now.Sub(y.started) / time.Second)},
		{"clients/connected", uint64(stats.Devices + stats.Services)},
		{"clients/total", uint64(stats.Sessions)},
		{"messages/received", stats.MessagesReceived},
		{"messages/sent", stats.MessagesSent},
		{"messages/stored/bytes", uint64(stats.QueuedBytes)},
		{"retained messages/count", uint64(stats.Retained)},
		{"subscriptions/count", uint64(stats.Subscriptions)},
		{"publish/messages/dropped", stats.Dropped},
	} {
		name := "$SYS/broker/" + f.name
		if matches := b.index.Match(name); len(matches.Direct) == 0 && len(matches.Shared) == 0 {
			continue
		}
		m := &message{volatile: true}
		m.Publish = wire.Publish{Topic: name, Payload: strconv.AppendUint(nil, f.value, 10)}
		m.Number, m.Time, m.From = b.lastID.Add(1), now, ingest.Sender{Role: ingest.SenderHub}
		b.spread(m)
	}
}
