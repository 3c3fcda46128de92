package server

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/consumer"
)

// openConsumers reads the consumers' places and the sinks' files. It comes before anything is accepted, so that a new
// sink misses nothing.
func (h *Hub) openConsumers(ctx context.Context) error {
	var err error
	h.consumers, err = consumer.Open(ctx, consumer.Config{Journal: h.journal, Offsets: h.store, Now: h.now, Log: h.log})
	if err != nil {
		return err
	}
	h.sinks = consumer.NewSinks(consumer.SinksConfig{Consumers: h.consumers, Dir: h.config.Dir})
	return command.WithCode(command.BadConfig, h.sinks.Apply(ctx, h.config.Sinks))
}

// sinkMetrics shows the sinks there are when it is asked. It implements prometheus.Collector.
type sinkMetrics struct {
	sinks                                                         *consumer.Sinks
	lag, age, failing, delivered, failed, lost, lastDeliveredTime *prometheus.Desc
}

func newSinkMetrics(sinks *consumer.Sinks) *sinkMetrics {
	describe := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("fleethub_sink_"+name, help, []string{"sink"}, nil)
	}
	return &sinkMetrics{
		sinks:             sinks,
		lag:               describe("lag_records", "Records of the journal, messages and others, that the sink hasn't got past."),
		age:               describe("lag_seconds", "Age of the oldest message that is being delivered; 0: none is."),
		failing:           describe("failing", "1 while the last attempt to deliver was in vain."),
		delivered:         describe("delivered_total", "Messages delivered."),
		failed:            describe("failures_total", "Attempts in vain."),
		lost:              describe("lost_records_total", "Records that were removed from the journal before the sink had read them."),
		lastDeliveredTime: describe("last_delivery_timestamp_seconds", "When something was delivered, in Unix time; 0: not since the start."),
	}
}

// Describe implements prometheus.Collector.
func (m *sinkMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.lag, m.age, m.failing, m.delivered, m.failed, m.lost, m.lastDeliveredTime} {
		out <- d
	}
}

// Collect implements prometheus.Collector. It reads no disk.
func (m *sinkMetrics) Collect(out chan<- prometheus.Metric) {
	for _, s := range m.sinks.Stats() {
		gauge := func(d *prometheus.Desc, v float64) {
			out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, s.Name)
		}
		counter := func(d *prometheus.Desc, v uint64) {
			out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), s.Name)
		}
		gauge(m.lag, float64(s.LagRecords))
		gauge(m.age, s.Age.Seconds())
		failing, last := 0.0, 0.0
		if s.LastError != "" {
			failing = 1
		}
		if !s.LastDelivery.IsZero() {
			last = float64(s.LastDelivery.UnixMilli()) / 1000
		}
		gauge(m.failing, failing)
		gauge(m.lastDeliveredTime, last)
		counter(m.delivered, s.Delivered)
		counter(m.failed, s.Failed)
		counter(m.lost, s.Lost)
	}
}
