package e2e

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// backend is an HTTPS server that a hub's sink posts to. It keeps what it takes.
type backend struct {
	mu        sync.Mutex // guards what follows
	take      func(id string) bool
	ids       []string
	positions []uint64 // of messages, those of repeated deliveries dropped
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var messages []struct {
		Position uint64 `json:"position"`
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(body, &messages)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	id := r.Header.Get("Fleethub-Delivery")
	if err != nil || b.take == nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if !slices.Contains(b.ids, id) {
		for _, m := range messages {
			b.positions = append(b.positions, m.Position)
		}
	}
	b.ids = append(b.ids, id)
	if !b.take(id) {
		panic(http.ErrAbortHandler)
	}
}

func (b *backend) set(take func(id string) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.take = take
}

func (b *backend) got() (ids []string, positions []uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.ids), slices.Clone(b.positions)
}

func TestKilledHubRepeatsADeliveryUnderItsIDAndLosesNone(t *testing.T) {
	f := newFleet(t)
	b := &backend{}
	web := httptest.NewTLSServer(b)
	defer web.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})
	for name, data := range map[string]string{"backend.pem": string(ca), "backend.secret": strings.Repeat("s3cret", 6)} {
		if err := os.WriteFile(f.path("hub", name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := os.ReadFile(f.path("hub", "hub.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config = append(config, "\nsinks:\n  - {name: backend, url: '"+web.URL+"', secret_file: backend.secret, ca_file: backend.pem, batch: 4, max_wait: 10ms}\n"...)
	if err := os.WriteFile(f.path("hub", "hub.yaml"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	f.run("provisioning", "batch", "--dir", f.path("station"), "--prefix", "sim-", "--count", "2", "--out", f.path("sim"))
	f.serve()
	f.register()
	f.run("firmware-sim", "run", "--creds", f.path("sim"), "--hub", f.at.MQTT, "--devices", "2", "--rate", "10/s", "--duration", "2s", "--size", "64")

	const kills = 3
	var killed []string
	for range kills {
		struck := make(chan string, 1)
		hub := f.hub
		b.set(func(id string) bool { // taken, and its sender is gone before it hears of that
			if len(struck) == 0 {
				hub.kill()
				struck <- id
			}
			return false
		})
		killed = append(killed, <-struck)
		b.set(nil)
		f.serve()
	}
	b.set(func(string) bool { return true })
	var want []uint64
	for _, line := range bytes.Split(bytes.TrimSpace([]byte(f.run("hub", "tail", "--from", "start", "--follow=false", "--dir", f.path("hub"), "--output", "json"))), []byte("\n")) {
		var m struct {
			Position uint64 `json:"position"`
		}
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		want = append(want, m.Position)
	}
	if len(want) < 20 {
		t.Fatalf("the devices sent %d messages only", len(want))
	}
	if !until(func() bool { _, positions := b.got(); return len(positions) >= len(want) }) {
		t.Error("not everything was delivered")
	}
	ids, positions := b.got()
	if !slices.Equal(positions, want) {
		t.Errorf("delivered %v, want %v", positions, want)
	}
	for _, id := range killed {
		if i := slices.Index(ids, id); i < 0 || i+1 >= len(ids) || ids[i+1] != id {
			t.Errorf("delivery %s, which a kill interrupted, was not the next one again: %q", id, ids)
		}
	}
	f.run("hub", "sink", "list", "--dir", f.path("hub"))
}
