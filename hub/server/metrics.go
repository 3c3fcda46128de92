package server

import (
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are the hub's own, in a registry of its own: two hubs in one process don't
// share any.
type metrics struct {
	registry   *prometheus.Registry
	refused    *prometheus.CounterVec
	handshakes *prometheus.CounterVec
	took       *prometheus.HistogramVec
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
	}
	m.registry.MustRegister(m.refused, m.handshakes, m.took, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
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
	kind := "full"
	if resumed {
		kind = "resumed"
	}
	m.handshakes.WithLabelValues(kind).Inc()
	m.took.WithLabelValues(kind).Observe(took.Seconds())
}

// newMetricsServer serves /metrics, /livez and /readyz in plain HTTP.
func newMetricsServer(m *metrics, ready *atomic.Bool) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			http.Error(w, "not ready: starting or stopping", http.StatusServiceUnavailable)
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
