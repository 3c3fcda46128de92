package agent

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/fleethub/fleethub/device-agent/telemetry"
	"github.com/fleethub/fleethub/hub/protocol"
)

// reporter publishes a reading as soon as the link is up and then at each
// interval. A reading that falls due without a connection is given up, and
// its sequence number with it, so that the gap shows at the other end.
type reporter struct {
	topic    string
	interval time.Duration
	source   *telemetry.Source
	publish  func(ctx context.Context, topic string, payload []byte) error
	first    func()        // told of the first acknowledgement after each connect; doesn't block
	up       chan struct{} // capacity 1; never closed

	mu    sync.Mutex // guards count
	count Counts
}

// Counts are of readings since the agent started.
type Counts struct {
	Acknowledged     uint64    `json:"acknowledged"` // stored by the hub
	Unacknowledged   uint64    `json:"unacknowledged"`
	NotConnected     uint64    `json:"not_connected"` // given up without sending
	LastAcknowledged time.Time `json:"last_acknowledged,omitzero"`
}

func newReporter(id string, interval time.Duration, source *telemetry.Source) *reporter {
	return &reporter{
		topic:    protocol.Telemetry(id, telemetry.Channel),
		interval: interval,
		source:   source,
		up:       make(chan struct{}, 1),
	}
}

// connected has the next reading taken now.
func (r *reporter) connected() {
	select {
	case r.up <- struct{}{}:
	default:
	}
}

func (r *reporter) counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

func (r *reporter) run(ctx context.Context) error {
	ticker := time.NewTicker(r.interval)
	defer ticker.Stop()
	fresh := false // nothing acknowledged since the last connect
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.up:
			fresh = true
			ticker.Reset(r.interval) // also spreads a fleet's readings as its connects are spread
		case <-ticker.C:
		}
		err := r.report(ctx)
		r.record(err)
		if err == nil && fresh {
			fresh = false
			r.first()
		}
	}
}

func (r *reporter) report(ctx context.Context) error {
	payload, err := json.Marshal(r.source.Read())
	if err != nil {
		return err
	}
	return r.publish(ctx, r.topic, payload)
}

func (r *reporter) record(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.count.Acknowledged++
		r.count.LastAcknowledged = time.Now()
	case errors.Is(err, link.ErrNotConnected):
		r.count.NotConnected++
	default:
		r.count.Unacknowledged++
	}
}
