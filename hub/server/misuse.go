package server

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/broker"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/misuse"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/why"
)

// MisuseConfig says from when on a device's behaviour is an anomaly: see
// misuse.Thresholds. 0 is the default, -1 never.
type MisuseConfig struct {
	Flapping    int           `yaml:"flapping"`
	TicketReuse int           `yaml:"ticket_reuse"`
	Connections int           `yaml:"connections"`
	Denials     int           `yaml:"denials"`
	Messages    int           `yaml:"messages"` // per second
	HalfLife    time.Duration `yaml:"half_life"`
	Suspend     string        `yaml:"suspend"` // never, clones, any
}

// What an anomaly does to its device besides being told.
const (
	suspendNever  = "never"
	suspendClones = "clones" // what looks like a copied key
	suspendAny    = "any"
)

func (c MisuseConfig) check() error {
	for _, n := range []struct {
		key   string
		value int
	}{{"flapping", c.Flapping}, {"ticket_reuse", c.TicketReuse}, {"connections", c.Connections}, {"denials", c.Denials}, {"messages", c.Messages}} {
		if n.value < -1 || n.value > 1<<30 {
			return fmt.Errorf("misuse.%s: %d is not between -1 and %d", n.key, n.value, 1<<30)
		}
	}
	if c.HalfLife != 0 && (c.HalfLife < time.Minute || c.HalfLife > 24*time.Hour) {
		return fmt.Errorf("misuse.half_life: %s is not between 1m and 24h", c.HalfLife)
	}
	switch c.Suspend {
	case suspendNever, suspendClones, suspendAny:
		return nil
	}
	return fmt.Errorf("misuse.suspend: %q is none of never, clones, any", c.Suspend)
}

func (c MisuseConfig) thresholds() misuse.Thresholds {
	return misuse.Thresholds{Flapping: c.Flapping, TicketReuse: c.TicketReuse, Connections: c.Connections, Denials: c.Denials, Messages: c.Messages, HalfLife: c.HalfLife}
}

// anomalyQueue is how many anomalies may wait to be written into the audit log.
const anomalyQueue = 256

// openMisuse makes the watch. Its reports are written down by recordAnomalies: a
// connection's goroutine waits for no disk.
func (h *Hub) openMisuse() {
	h.anomalies = make(chan misuse.Anomaly, anomalyQueue)
	h.misuse = misuse.New(misuse.Config{Thresholds: h.config.Misuse.thresholds(), Report: h.anomaly, Now: h.now})
	h.metrics.anomalies = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fleethub_anomalies_total", Help: "Devices that behaved as devices don't, by signal.",
	}, []string{"signal"})
	h.metrics.registry.MustRegister(h.metrics.anomalies)
	for _, s := range misuse.Signals() {
		h.metrics.anomalies.WithLabelValues(string(s)) // 0 is a figure, too
	}
}

// anomaly tells of one, at once in log and metrics, and soon in the audit log.
func (h *Hub) anomaly(a misuse.Anomaly) {
	h.metrics.anomalies.WithLabelValues(string(a.Signal)).Inc()
	h.log.Warn("a device behaves as devices don't", "device", a.Device, "signal", a.Signal, "score", a.Score, "threshold", a.Threshold, "detail", a.Detail)
	select {
	case h.anomalies <- a:
	default:
		h.log.Error("an anomaly is missing in the audit log, too many at once; nobody is suspended for it", "device", a.Device, "signal", a.Signal)
	}
}

// recordAnomalies writes anomalies into the audit log, and suspends devices if
// misuse.suspend says so, until ctx ends.
func (h *Hub) recordAnomalies(ctx context.Context) {
	for {
		select {
		case a := <-h.anomalies:
			h.record(ctx, append([]misuse.Anomaly{a}, h.waiting()...))
		case <-ctx.Done():
			return
		}
	}
}

// waiting returns the anomalies that wait behind the first: a fleet that is cloned, or
// comes back all at once, is written down in a few transactions.
func (h *Hub) waiting() (found []misuse.Anomaly) {
	for {
		select {
		case a := <-h.anomalies:
			found = append(found, a)
		default:
			return found
		}
	}
}

// record writes anomalies down, then suspends whom it must.
func (h *Hub) record(ctx context.Context, found []misuse.Anomaly) {
	watcher := fleet.Actor{Name: "hub"}
	remarks := make([]fleet.Remark, len(found))
	for i, a := range found {
		remarks[i] = fleet.Remark{Device: a.Device, Detail: fmt.Sprintf("%s %d of %d: %s", a.Signal, a.Score, a.Threshold, a.Detail)}
	}
	if err := h.fleet.Remark(ctx, watcher, "device.anomaly", remarks...); err != nil {
		return // said so in the log
	}
	for _, a := range found {
		if !h.suspends(a.Signal) {
			continue
		}
		if status, known := h.fleet.Status(a.Device); !known || !status.State.MayConnect() {
			continue
		}
		if _, err := h.fleet.Suspend(ctx, a.Device, "misuse.suspend: "+string(a.Signal), watcher); err != nil {
			h.log.Error("a device that behaves as devices don't is not suspended", "device", a.Device, "error", err)
		}
	}
}

func (h *Hub) suspends(s misuse.Signal) bool {
	return h.config.Misuse.Suspend == suspendAny || h.config.Misuse.Suspend == suspendClones && s.Clone()
}

// watchman tells the watch what devices do, and the chronicle. It implements
// broker.Observer.
type watchman struct {
	chronicle
}

var _ broker.Observer = watchman{}

// OnConnected implements broker.Observer.
func (m watchman) OnConnected(id identity.Identity, remote net.Addr, resumed bool) {
	m.chronicle.OnConnected(id, remote, resumed)
	if id.Role == identity.RoleDevice {
		m.h.misuse.Connected(id.ID, why.Host(remote))
	}
}

// OnDenied implements broker.Observer.
func (m watchman) OnDenied(id identity.Identity, action policy.Action, topic, rule string) {
	m.chronicle.OnDenied(id, action, topic, rule)
	if id.Role == identity.RoleDevice {
		m.h.misuse.Denied(id.ID, topic)
	}
}

// OnPublished implements broker.Observer.
func (m watchman) OnPublished(id identity.Identity, messages int, in time.Duration) {
	if id.Role == identity.RoleDevice {
		m.h.misuse.Published(id.ID, messages, in)
	}
}

// OnHandshakeDone implements listener.HandshakeObserver.
func (o doorObserver) OnHandshakeDone(hs listener.Handshake) {
	o.observer.OnHandshakeDone(hs)
	if hs.Ticket != 0 && hs.Peer.Identity.Role == identity.RoleDevice {
		o.chronicle.h.misuse.Resumed(hs.Peer.Identity.ID, hs.Ticket)
	}
}

// anomaliesOf implements admin.Config.Anomalies.
func (h *Hub) anomaliesOf(id string) admin.Anomalies {
	answer := admin.Anomalies{Anomalies: []admin.Anomaly{}}
	for _, a := range h.misuse.Recent() {
		if id == "" || a.Device == id {
			answer.Anomalies = append(answer.Anomalies, admin.Anomaly{At: a.At, Device: a.Device, Signal: string(a.Signal), Score: a.Score, Threshold: a.Threshold, Detail: a.Detail})
		}
	}
	if id != "" {
		answer.Scores = make(map[string]int)
		for s, n := range h.misuse.Scores(id) {
			answer.Scores[string(s)] = n
		}
	}
	return answer
}
