package server

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/broker"
	"github.com/fleethub/fleethub/hub/listener"
)

// metrics are the hub's own, in a registry of its own: two hubs in one process don't
// share any.
type metrics struct {
	registry   *prometheus.Registry
	refused    *prometheus.CounterVec
	handshakes *prometheus.CounterVec
	took       *prometheus.HistogramVec
	cpu        *prometheus.HistogramVec
	bytes      *prometheus.CounterVec
	parameters *prometheus.CounterVec
	anomalies  *prometheus.CounterVec // registered by openMisuse

	full, resumed kindMetrics // of handshakes, took and bytes
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fleethub_refused_total", Help: "Connections and CONNECTs refused, by reason.",
		}, []string{"reason"}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fleethub_handshakes_total", Help: "TLS handshakes completed, by kind.",
		}, []string{"kind"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fleethub_handshake_seconds", Help: "Time from accept to the end of the TLS handshake, by kind.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 13),
		}, []string{"kind"}),
		cpu: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fleethub_handshake_cpu_seconds", Help: "Processor time of TLS handshakes, of the one in 64 that is measured, by kind.",
			Buckets: prometheus.ExponentialBuckets(0.000050, 2, 10),
		}, []string{"kind"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fleethub_handshake_bytes_total", Help: "Bytes of completed TLS handshakes on the socket, by kind and direction (up: to the hub).",
		}, []string{"kind", "direction"}),
		parameters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fleethub_handshake_parameters_total", Help: "TLS handshakes completed, by what they agreed on.",
		}, []string{"kind", "version", "suite", "curve"}),
	}
	m.full, m.resumed = m.series(kindOf(false)), m.series(kindOf(true))
	m.registry.MustRegister(m.refused, m.handshakes, m.took, m.cpu, m.bytes, m.parameters, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// gauge registers a figure that is read when it is asked for.
func (m *metrics) gauge(name, help string, read func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
}

// counter registers a count that is kept elsewhere and only grows.
func (m *metrics) counter(name, help string, labels prometheus.Labels, read func() float64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, read))
}

// OnRefused makes metrics a listener.Observer.
func (m *metrics) OnRefused(reason string, _ net.Addr, _ string) {
	m.refused.WithLabelValues(reason).Inc()
}

// OnHandshake makes metrics a listener.Observer.
func (m *metrics) OnHandshake(resumed bool, took time.Duration) {
	k := m.kind(resumed)
	k.handshakes.Inc()
	k.took.Observe(took.Seconds())
}

// kindMetrics are the series of full or of resumed handshakes, found once: by their
// labels they would be looked for in every connect.
type kindMetrics struct {
	handshakes, up, down prometheus.Counter
	took                 prometheus.Observer
}

func (m *metrics) kind(resumed bool) *kindMetrics {
	if resumed {
		return &m.resumed
	}
	return &m.full
}

func (m *metrics) series(kind string) kindMetrics {
	return kindMetrics{m.handshakes.WithLabelValues(kind), m.bytes.WithLabelValues(kind, "up"), m.bytes.WithLabelValues(kind, "down"), m.took.WithLabelValues(kind)}
}

// OnHandshakeDone makes metrics a listener.HandshakeObserver. Its labels come from
// short lists of the TLS policy, never from a peer.
func (m *metrics) OnHandshakeDone(hs listener.Handshake) {
	kind, k := kindOf(hs.Resumed), m.kind(hs.Resumed)
	k.up.Add(float64(hs.BytesUp))
	k.down.Add(float64(hs.BytesDown))
	m.parameters.WithLabelValues(kind, tls.VersionName(hs.Version), suiteName(hs.Suite), hs.Curve.String()).Inc()
	if hs.CPU > 0 {
		m.cpu.WithLabelValues(kind).Observe(hs.CPU.Seconds())
	}
}

func kindOf(resumed bool) string {
	if resumed {
		return "resumed"
	}
	return "full"
}

// registerMetrics registers the figures that the rooms keep themselves.
func (h *Hub) registerMetrics() {
	for _, role := range []identity.Role{identity.RoleDevice, identity.RoleService} {
		h.metrics.gauge("fleethub_connected_"+string(role)+"s", "Live "+string(role)+" connections.", func() float64 { return float64(h.sessions.Count(role)) })
	}
	h.metrics.gauge("fleethub_connections", "Open connections, handshakes included.", func() float64 { return float64(h.mqtt.Open()) })
	h.registerLanes()
	h.metrics.gauge("fleethub_devices", "Device records.", func() float64 { return float64(h.fleet.Len()) })
	for name, figure := range map[string]struct {
		help string
		read func(broker.Stats) uint64
	}{
		"published":         {"Messages accepted from clients.", func(s broker.Stats) uint64 { return s.Published }},
		"denied":            {"Publishes, wills and subscriptions refused by policy.", func(s broker.Stats) uint64 { return s.Denied }},
		"withheld":          {"Deliveries that policy no longer allowed.", func(s broker.Stats) uint64 { return s.Withheld }},
		"dropped":           {"Deliveries lost to a full queue.", func(s broker.Stats) uint64 { return s.Dropped }},
		"not_retained":      {"Messages delivered and not retained, because their device retains enough.", func(s broker.Stats) uint64 { return s.NotRetained }},
		"unaccepted":        {"Messages refused because they could not be stored.", func(s broker.Stats) uint64 { return s.Unaccepted }},
		"not_journaled":     {"QoS 0 messages delivered and not in the journal, because the disk was behind.", func(s broker.Stats) uint64 { return s.NotNoted }},
		"too_large":         {"Deliveries lost because their client takes no packet so large.", func(s broker.Stats) uint64 { return s.TooLarge }},
		"throttled":         {"Messages read later, because their sender exceeds its rate.", func(s broker.Stats) uint64 { return s.Throttled }},
		"checkpoints":       {"Times that sessions and retained messages were written to the journal anew.", func(s broker.Stats) uint64 { return s.Checkpoints }},
		"panics":            {"Panics contained while serving connections.", func(s broker.Stats) uint64 { return s.Panics }},
		"messages_received": {"MQTT PUBLISH packets received.", func(s broker.Stats) uint64 { return s.MessagesReceived }},
		"messages_sent":     {"MQTT PUBLISH packets sent.", func(s broker.Stats) uint64 { return s.MessagesSent }},
		"bytes_received":    {"MQTT bytes received, without TLS.", func(s broker.Stats) uint64 { return s.BytesReceived }},
		"bytes_sent":        {"MQTT bytes sent, without TLS.", func(s broker.Stats) uint64 { return s.BytesSent }},
	} {
		h.metrics.counter("fleethub_"+name+"_total", figure.help, nil, func() float64 { return float64(figure.read(h.broker.Stats())) })
	}
	h.metrics.gauge("fleethub_sessions", "Sessions, live and stored.", func() float64 { return float64(h.broker.Stats().Sessions) })
	h.metrics.gauge("fleethub_retained", "Retained messages.", func() float64 { return float64(h.broker.Stats().Retained) })
	h.metrics.gauge("fleethub_queued_bytes", "Messages that wait for sessions, in bytes.", func() float64 { return float64(h.broker.Stats().QueuedBytes) })
	h.registerJournal()
	h.registerStatus()
	h.metrics.registry.MustRegister(newSinkMetrics(h.sinks))
	h.metrics.counter("fleethub_sightings_dropped_total", "Last-seen times lost to a full queue.", nil, func() float64 { return float64(h.fleet.DroppedSightings()) })
	for outcome, count := range map[string]*atomic.Uint64{
		"minted": &h.codec.Stats.Minted, "fallback": &h.codec.Stats.Fallback, "accepted": &h.codec.Stats.Accepted, "rejected": &h.codec.Stats.Rejected,
	} {
		h.metrics.counter("fleethub_tickets_total", "TLS session tickets: compact ones made, others made instead, compact ones taken, and presented in vain.",
			prometheus.Labels{"outcome": outcome}, func() float64 { return float64(count.Load()) })
	}
	h.metrics.gauge("fleethub_ticket_keys", "Ticket keys in the ring; the newest seals, all open.", func() float64 { return float64(h.tickets.Len()) })
	h.metrics.gauge("fleethub_issuers", "Issuing CAs trusted.", func() float64 { return float64(len(h.verifier.Trust().Issuers)) })
}

// newMetricsServer serves /metrics, /livez and /readyz in plain HTTP.
func newMetricsServer(m *metrics, unready func() string) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := unready(); why != "" {
			http.Error(w, "not ready: "+why, http.StatusServiceUnavailable)
			return
		}
		w.Write([]byte("ok\n"))
	})
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
}

// registerLanes shows the waiting room of handshakes: what an operator looks at in a
// storm.
func (h *Hub) registerLanes() {
	for name, figure := range map[string]struct {
		help string
		read func(listener.Stats) int
	}{
		"handshakes_under_way": {"Connections not yet verified.", func(s listener.Stats) int { return s.Handshaking }},
		"handshakes_computing": {"Handshakes that use the processor.", func(s listener.Stats) int { return s.Computing }},
		"waiting_resumed":      {"Resumed handshakes waiting for their first turn.", func(s listener.Stats) int { return s.WaitingResumed }},
		"waiting_full":         {"Full handshakes waiting for their first turn.", func(s listener.Stats) int { return s.WaitingFull }},
		"waiting_begun":        {"Handshakes with work begun that wait for another turn.", func(s listener.Stats) int { return s.WaitingBegun }},
	} {
		h.metrics.gauge("fleethub_"+name, figure.help, func() float64 { return float64(figure.read(h.mqtt.Stats())) })
	}
	for lane, read := range map[string]func(listener.Stats) float64{
		"resumed": func(s listener.Stats) float64 { return s.WaitedResumed.Seconds() },
		"full":    func(s listener.Stats) float64 { return s.WaitedFull.Seconds() },
	} {
		h.metrics.counter("fleethub_handshake_wait_seconds_total", "How long handshakes have waited for their first turn, by lane.",
			prometheus.Labels{"lane": lane}, func() float64 { return read(h.mqtt.Stats()) })
	}
	h.metrics.counter("fleethub_refusals_unlogged_total", "Refusals that the log was spared because there were too many.", nil, func() float64 { return float64(h.mqtt.Stats().Unlogged) })
}
