package consumer

import (
	"crypto/hmac"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const secret = "a secret of the test's own"

// receiver is a backend: a real HTTPS server that keeps what it took and holds every request against the rules.
type receiver struct {
	t   *testing.T
	web *httptest.Server

	mu       sync.Mutex // guards what follows
	answer   func(n int, w http.ResponseWriter) bool
	requests int
	ids      []string  // of every request
	gaps     []string  // likewise
	taken    []Message // of those answered with 2xx, repetitions dropped
	sizes    []int     // likewise, repetitions included
	repeated int
	last     string // ID taken last
}

func newReceiver(t *testing.T) *receiver {
	b := &receiver{t: t}
	b.web = httptest.NewTLSServer(b)
	t.Cleanup(b.web.Close)
	return b
}

// answering has the receiver answer its n-th request, from 1 on, by what f does; if f returns false it is 204.
func (b *receiver) answering(f func(n int, w http.ResponseWriter) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = f
}

func (b *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // cut off
	}
	signature := r.Header.Get(SignatureHeader)
	at, _, _ := strings.Cut(strings.TrimPrefix(signature, "t="), ",")
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil || !hmac.Equal([]byte(signature), []byte(Sign([]byte(secret), body, time.Unix(seconds, 0)))) || r.Method != http.MethodPost {
		b.t.Errorf("%s signed %q", r.Method, signature)
	}
	var messages []Message
	if err := json.Unmarshal(body, &messages); err != nil || len(messages) == 0 {
		b.t.Errorf("%d messages, %v", len(messages), err)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests++
	id := r.Header.Get(DeliveryHeader)
	b.ids = append(b.ids, id)
	b.gaps = append(b.gaps, r.Header.Get(GapHeader))
	if b.answer != nil && b.answer(b.requests, w) {
		return
	}
	b.sizes = append(b.sizes, len(messages))
	if id == b.last {
		b.repeated++
	} else {
		b.taken = append(b.taken, messages...)
	}
	b.last = id
	w.WriteHeader(http.StatusNoContent)
}

func (b *receiver) got() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return payloads(b.taken)
}

func (b *receiver) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests
}

// sink is a configuration that posts to the receiver.
func (r *rig) sink(b *receiver, name string) SinkConfig { return r.sinkAt(b.web, name) }

func (r *rig) sinkAt(web *httptest.Server, name string) SinkConfig {
	r.t.Helper()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})
	r.must(os.WriteFile(filepath.Join(r.dir, "ca.pem"), ca, 0o644))
	r.must(os.WriteFile(filepath.Join(r.dir, "secret"), []byte(secret+"\n"), 0o600))
	return SinkConfig{Name: name, URL: web.URL + "/in?token=hidden", SecretFile: "secret", CAFile: "ca.pem", MaxWait: time.Millisecond}
}

// sinks runs sinks until the test's end.
func (r *rig) sinks(c *Consumers, configs ...SinkConfig) *Sinks {
	r.t.Helper()
	s := NewSinks(SinksConfig{Consumers: c, Dir: r.dir, Backoff: time.Millisecond})
	r.t.Cleanup(s.Close)
	r.must(s.Apply(r.t.Context(), configs))
	s.Start()
	return s
}

// until waits until a condition holds.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for began := time.Now(); !holds(); time.Sleep(time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
