package server_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/fleethub/fleethub/hub/consumer"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/server"
)

// backend is an HTTPS server that takes deliveries, or is down.
type backend struct {
	web  *httptest.Server
	down atomic.Bool

	mu       sync.Mutex // guards what follows
	refused  int
	payloads []string
	last     string // delivery
}

func newBackend(t *testing.T) *backend {
	b := &backend{}
	b.web = httptest.NewTLSServer(b)
	t.Cleanup(b.web.Close)
	return b
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var messages []consumer.Message
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(body, &messages)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down.Load() || err != nil {
		b.refused++
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if id := r.Header.Get(consumer.DeliveryHeader); id != b.last {
		b.last = id
		for _, m := range messages {
			b.payloads = append(b.payloads, m.Device+" "+string(m.Payload))
		}
	}
}

func (b *backend) got() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.payloads)
}

func (b *backend) refusals() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refused
}

// sink writes the files of a sink into a hub's folder and returns its configuration.
func (b *backend) sink(t *testing.T, dir string) consumer.SinkConfig {
	t.Helper()
	for name, data := range map[string][]byte{
		"warehouse.pem":    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.web.Certificate().Raw}),
		"warehouse.secret": []byte("0123456789abcdef0123456789abcdef\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return consumer.SinkConfig{Name: "warehouse", URL: b.web.URL + "/in", Filter: "d/+/tele/#", SecretFile: "warehouse.secret", CAFile: "warehouse.pem", Batch: 7, MaxWait: 5 * time.Millisecond}
}

// report publishes readings of a device and returns once the hub has acknowledged them.
func report(t *testing.T, client mqtt.Client, id string, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if token := client.Publish("d/"+id+"/tele/t", 1, false, fmt.Sprint(i)); !token.WaitTimeout(patience) || token.Error() != nil {
			t.Fatalf("publish: %v", token.Error())
		}
	}
}

func TestABackendThatWasDownForAnHourMissesNothing(t *testing.T) {
	b := newBackend(t)
	h := hubtest.Start(t, func(c *server.Config) { c.Sinks = []consumer.SinkConfig{b.sink(t, c.Dir)} })
	device := h.Device("pi-1")
	first := online(t, h, device)
	report(t, first, "pi-1", 0, 20)
	eventually(t, "the backend has what was sent", func() bool { return len(b.got()) == 20 })
	b.down.Store(true)
	report(t, first, "pi-1", 20, 60)
	eventually(t, "the backend refuses", func() bool { return b.refusals() > 0 })
	if metrics := scrape(t, h, "/metrics"); !strings.Contains(metrics, `fleethub_sink_failing{sink="warehouse"} 1`) || !strings.Contains(metrics, `fleethub_sink_delivered_total{sink="warehouse"} 20`) {
		t.Error("the metrics don't say that the sink fails")
	}
	h.Advance(time.Hour)
	sinks, err := h.Operator().Sinks(t.Context())
	if err != nil || len(sinks) != 1 || sinks[0].LagMessages != 40 || sinks[0].LastError == "" || time.Since(sinks[0].Oldest) > patience {
		t.Errorf("%+v, %v", sinks, err)
	}
	h.Restart()
	refused := b.refusals()
	second := online(t, h, device)
	report(t, second, "pi-1", 60, 100)
	eventually(t, "the backend refuses the restarted hub", func() bool { return b.refusals() > refused })
	b.down.Store(false)
	var want []string
	for i := range 100 {
		want = append(want, fmt.Sprint("pi-1 ", i))
	}
	eventually(t, "the backend has everything", func() bool { return len(b.got()) >= len(want) })
	if got := b.got(); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	eventually(t, "nothing is left", func() bool {
		sinks, err := h.Operator().Sinks(t.Context())
		return err == nil && sinks[0].LagMessages == 0 && sinks[0].LastError == ""
	})
}

func TestReloadTakesUpSinks(t *testing.T) {
	b := newBackend(t)
	h := hubtest.Start(t)
	config := b.sink(t, h.Dir)
	file := filepath.Join(h.Dir, server.ConfigFile)
	shipped, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	reload := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, append(slices.Clone(shipped), text...), 0o600); err != nil {
			t.Fatal(err)
		}
		h.Server().Reload()
	}
	section := fmt.Sprintf("\nsinks:\n  - {name: warehouse, url: %q, secret_file: warehouse.secret, ca_file: warehouse.pem, max_wait: 5ms}\n", config.URL)
	names := func() (names []string) {
		sinks, err := h.Operator().Sinks(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sinks {
			names = append(names, s.Name)
		}
		return names
	}
	reload(section)
	device := online(t, h, h.Device("pi-1"))
	report(t, device, "pi-1", 0, 3)
	eventually(t, "the backend has what was sent", func() bool { return len(b.got()) == 3 })
	reload(strings.Replace(section, "warehouse.secret", "missing.secret", 1))
	if got := names(); !slices.Equal(got, []string{"warehouse"}) || !strings.Contains(h.Log(), "missing.secret") {
		t.Errorf("sinks %q after a bad reload", got)
	}
	reload("")
	if got := names(); len(got) != 0 {
		t.Errorf("sinks %q after it was removed", got)
	}
	report(t, device, "pi-1", 3, 6)
	reload(section)
	eventually(t, "the backend has what was sent meanwhile", func() bool { return len(b.got()) == 6 })
	if strings.Contains(h.Log(), "0123456789abcdef") {
		t.Error("the secret is in the log")
	}
}

func TestAHubWhoseSinkHasNoSecretDoesNotStart(t *testing.T) {
	h := hubtest.Start(t)
	config := server.DefaultConfig(h.Dir)
	config.TrustDomain = "fleet.example"
	config.Sinks = []consumer.SinkConfig{{Name: "warehouse", URL: "https://example.org/", SecretFile: "none"}}
	h.Server().Close()
	if err := startAlone(t, config); err == nil || !strings.Contains(err.Error(), "sink warehouse: secret_file") {
		t.Errorf("%v", err)
	}
}
