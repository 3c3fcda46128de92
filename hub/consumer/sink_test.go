package consumer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/journal"
)

func TestASinkPostsEachMessageInOrderThoughItsReceiverRefusesForAWhile(t *testing.T) {
	r, b := newRig(t), newReceiver(t)
	r.publish("pi-1", "before there was a sink")
	b.answering(func(n int, w http.ResponseWriter) bool {
		switch n % 6 {
		case 1:
			w.WriteHeader(http.StatusInternalServerError)
		case 2:
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusTemporaryRedirect)
		case 3:
			w.WriteHeader(http.StatusNotFound)
		case 4:
			w.WriteHeader(http.StatusTooManyRequests)
		case 5:
			panic(http.ErrAbortHandler) // the line is cut
		default:
			return false
		}
		return true
	})
	config := r.sink(b, "warehouse")
	config.Filter, config.Batch = "d/pi-1/#", 50
	s := r.sinks(r.consumers, config)
	r.publish("pi-2", "not asked for")
	r.publish("pi-1", numbered(0, 500)...)
	want := numbered(0, 500)
	until(t, "all is delivered", func() bool { return slices.Equal(b.got(), want) })
	end := r.journal.Last() + 1
	until(t, "its place is stored", func() bool { one, err := r.consumers.Get("warehouse"); return err == nil && one.Next == end })
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Max(b.sizes) > 50 {
		t.Errorf("deliveries of %d messages", b.sizes)
	}
	log := r.logged.String()
	for _, want := range []string{"configuration error", "it answered 404", "redirects aren't followed", "it answered 500", "delivers again"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log doesn't say %q", want)
		}
	}
	if strings.Contains(log, "hidden") || strings.Contains(log, secret) {
		t.Errorf("the log has a secret in it:\n%s", log)
	}
	status := s.Status(t.Context())[0]
	if status.Delivered != 500 || status.LagMessages != 0 || status.LagRecords != 0 || status.Failed < 5 || status.LastError != "" || strings.Contains(status.URL, "hidden") {
		t.Errorf("%+v", status)
	}
}

// failing is a store that, once it is broken, changes nothing more: as if the process had been killed.
type failing struct {
	Offsets
	broken atomic.Bool
}

func (f *failing) PutConsumer(ctx context.Context, name string, data []byte) error {
	if f.broken.Load() {
		return errors.New("killed")
	}
	return f.Offsets.PutConsumer(ctx, name, data)
}

func TestWhatWasPostedJustBeforeAKillIsPostedAgainUnderTheSameID(t *testing.T) {
	r, b := newRig(t), newReceiver(t)
	for round := range 5 {
		store := &failing{Offsets: r.store}
		b.answering(func(int, http.ResponseWriter) bool {
			store.broken.Store(true) // after the receiver took it, and before that could be stored
			return false
		})
		config := r.sink(b, "warehouse")
		config.Batch = 10 + round // and another after the kill: the batch stays what it was
		s := r.sinks(r.reopened(store), config)
		before := b.count()
		r.publish("pi-1", numbered(100*round, 100*round+35)...)
		until(t, "something is posted", func() bool { return b.count() > before })
		s.Close()
		r.publish("pi-1", numbered(100*round+35, 100*round+100)...)
		b.answering(nil)
		config.Batch = 3
		s = r.sinks(r.reopened(r.store), config)
		until(t, "all is delivered", func() bool { return len(b.got()) >= 100*(round+1) })
		s.Close()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if want := numbered(0, 500); !slices.Equal(payloads(b.taken), want) {
		t.Errorf("after repetitions were dropped there are %q", payloads(b.taken))
	}
	if b.repeated < 5 {
		t.Errorf("%d deliveries were repeated; the test tests nothing", b.repeated)
	}
}

func TestASinkThatLostItsPlaceSaysWhatIsLost(t *testing.T) {
	r, b := newRigRetaining(t, journal.Retain{Bytes: -1, Age: -1}), newReceiver(t)
	config := r.sink(b, "warehouse")
	config.Filter = "d/pi-1/#"
	r.sinks(r.consumers, config).Close() // makes its consumer
	r.publish("pi-1", numbered(0, 10)...)
	r.trim()
	first := r.journal.First()
	r.publish("pi-1", "left")
	s := r.sinks(r.consumers, config)
	until(t, "what is left is delivered", func() bool { return slices.Equal(b.got(), []string{"left"}) })
	r.publish("pi-1", "later")
	until(t, "more is delivered", func() bool { return len(b.got()) == 2 })
	b.mu.Lock()
	defer b.mu.Unlock()
	if want := []string{fmt.Sprintf("1-%d", first-1), ""}; !slices.Equal(b.gaps, want) {
		t.Errorf("gaps %q, want %q", b.gaps, want)
	}
	if lost := s.Stats()[0].Lost; lost != uint64(first-1) || !strings.Contains(r.logged.String(), "a sink has lost messages") {
		t.Errorf("%d records are said to be lost, and are %d", lost, first-1)
	}
}

func TestASinkGoesOnWhereItsConsumerIsMovedTo(t *testing.T) {
	r, b := newRig(t), newReceiver(t)
	refuse := func(_ int, w http.ResponseWriter) bool { w.WriteHeader(http.StatusBadRequest); return true }
	b.answering(refuse)
	config := r.sink(b, "warehouse")
	config.Batch = 1
	s := NewSinks(SinksConfig{Consumers: r.consumers, Dir: r.dir, Backoff: maxBackoff}) // a move doesn't wait for it
	t.Cleanup(s.Close)
	r.must(s.Apply(t.Context(), []SinkConfig{config}))
	s.Start()
	poison := r.publish("pi-1", "poison")
	r.publish("pi-1", "good")
	until(t, "it is refused", func() bool { return s.Stats()[0].Attempts > 0 })
	status := s.Status(t.Context())[0]
	if status.LagMessages != 2 || status.Oldest.IsZero() || !strings.Contains(status.LastError, "hub consumer seek") {
		t.Errorf("%+v", status)
	}
	b.answering(nil)
	if _, err := r.consumers.Move(t.Context(), "warehouse", poison, poison+1, "d/#"); !errors.Is(err, ErrSink) {
		t.Errorf("a sink's filter was changed: %v", err)
	}
	_, err := r.consumers.Move(t.Context(), "warehouse", poison, poison+1, "")
	r.must(err)
	until(t, "it goes on", func() bool { return slices.Equal(b.got(), []string{"good"}) })
	until(t, "its place is stored", func() bool { one, _ := r.consumers.Get("warehouse"); return one.Next == poison+2 })
	_, err = r.consumers.Move(t.Context(), "warehouse", poison+2, poison, "")
	r.must(err)
	until(t, "it repeats", func() bool { return slices.Equal(b.got(), []string{"good", "poison", "good"}) })
}

func TestSinksAreWhatTheConfigurationSays(t *testing.T) {
	r, b := newRig(t), newReceiver(t)
	one, two := r.sink(b, "one"), r.sink(b, "two")
	one.Filter, two.Filter = "d/a/#", "d/b/#"
	s := r.sinks(r.consumers, one)
	r.publish("a", "1")
	until(t, "a", func() bool { return slices.Equal(b.got(), []string{"1"}) })
	r.must(s.Apply(t.Context(), []SinkConfig{one, two}))
	r.publish("b", "2")
	until(t, "b", func() bool { return slices.Equal(b.got(), []string{"1", "2"}) })
	two.Filter = "d/c/#"
	r.must(s.Apply(t.Context(), []SinkConfig{two}))
	if s.Runs("one") || !s.Runs("two") {
		t.Error("the wrong sinks run")
	}
	r.publish("a", "3")
	r.publish("c", "4")
	until(t, "c", func() bool { return slices.Equal(b.got(), []string{"1", "2", "4"}) })
	// A bad configuration changes nothing.
	bad := two
	bad.SecretFile = "missing"
	if err := s.Apply(t.Context(), []SinkConfig{one, bad}); err == nil || !s.Runs("two") || s.Runs("one") {
		t.Errorf("a bad configuration was taken up: %v", err)
	}
	_, err := r.consumers.Create(t.Context(), "reader", "#", 1)
	r.must(err)
	taken := two
	taken.Name = "reader"
	if err := s.Apply(t.Context(), []SinkConfig{taken}); err == nil || !s.Runs("two") {
		t.Errorf("a sink took a reader's place: %v", err)
	}
	// One that comes back goes on where it was.
	r.must(s.Apply(t.Context(), []SinkConfig{one, two}))
	until(t, "a again", func() bool { return slices.Equal(b.got(), []string{"1", "2", "4", "3"}) })
}

func TestALongMessageIsDeliveredAndABodyIsBounded(t *testing.T) {
	r, b := newRig(t), newReceiver(t)
	s := r.sinks(r.consumers, r.sink(b, "warehouse"))
	long := strings.Repeat("\x01", maxBody) // six times as long in JSON
	r.publish("pi-1", "a", long, "b")
	half := strings.Repeat("y", maxBody/2+1)
	r.publish("pi-1", half, half, half, half)
	until(t, "all is delivered", func() bool { return slices.Equal(b.got(), []string{"a", long, "b", half, half, half, half}) })
	s.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Max(b.sizes) > 3 {
		t.Errorf("deliveries of %d messages", b.sizes)
	}
}

func TestSinkSettingsThatCantBeUsedAreNamed(t *testing.T) {
	good := SinkConfig{Name: "a", URL: "https://example.org/x?y=z", SecretFile: "s"}
	if err := CheckSinks([]SinkConfig{good, {Name: "b", URL: "http://127.0.0.1:8080", SecretFile: "s"}, {Name: "c", URL: "http://[::1]:1/", SecretFile: "s"}}); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*SinkConfig){
		"name":        func(c *SinkConfig) { c.Name = "A" },
		"filter":      func(c *SinkConfig) { c.Filter = "a/#/b" },
		"secret_file": func(c *SinkConfig) { c.SecretFile = "" },
		"batch":       func(c *SinkConfig) { c.Batch = -1 },
		"max_wait":    func(c *SinkConfig) { c.MaxWait = -1 },
		"timeout":     func(c *SinkConfig) { c.Timeout = time.Hour },
	} {
		c := good
		change(&c)
		if err := CheckSinks([]SinkConfig{c}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for _, url := range []string{"", "example.org", "http://example.org", "http://127.0.0.1.example.org/", "ftp://example.org", "https://me:hidden@example.org/", "https://", "https://example.org/#hidden", "https:hidden", "http://10.0.0.1/"} {
		c := good
		c.URL = url
		if err := CheckSinks([]SinkConfig{c}); err == nil || !strings.Contains(err.Error(), "url") || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v", url, err)
		}
	}
	if err := CheckSinks([]SinkConfig{good, good}); err == nil {
		t.Error("two sinks of one name")
	}
}

func TestASecretThatOthersCanReadOrGuessIsRefused(t *testing.T) {
	dir := t.TempDir()
	for name, file := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"loose": {secret, 0o640}, "short": {"short\n", 0o600}, "empty": {"", 0o600}, "long": {strings.Repeat("x", maxSecret+1), 0o600},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(file.text), file.mode); err != nil {
			t.Fatal(err)
		}
		c := SinkConfig{Name: "a", URL: "https://example.org", SecretFile: name}
		if _, err := c.load(dir); err == nil || !strings.Contains(err.Error(), "secret_file") || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (SinkConfig{Name: "a", URL: "https://example.org", SecretFile: "."}).load(dir); err == nil {
		t.Error("a folder is a secret")
	}
}

func TestPlainHTTPStaysOnThisMachineWhateverItsNameSays(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	target, err := SinkConfig{Name: "a", URL: "http://localhost:1/", SecretFile: "secret"}.load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"http://192.0.2.1:9/", "http://[2001:db8::1]:9/"} { // as localhost might be resolved
		if _, err := target.client().Get(address); !errors.Is(err, errNotLocal) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestAReceiverThatAnybodyCouldBeGetsNothing(t *testing.T) {
	r, b := newRig(t), newReceiver(t)
	config := r.sink(b, "warehouse")
	config.CAFile = "" // the machine's list knows nothing of it
	s := r.sinks(r.consumers, config)
	r.publish("pi-1", "secret reading")
	until(t, "it fails", func() bool { return strings.Contains(s.Stats()[0].LastError, "certificate") })
	if b.count() != 0 {
		t.Error("something was posted")
	}
}

func TestASignatureIsWhatTheDocumentSays(t *testing.T) {
	// printf '1767225600.[{"position":1}]' | openssl dgst -sha256 -hmac 0123456789abcdef
	const want = "t=1767225600,v1=522b32348853a4d11b058810c761bcff7cd97999bb5a8de75a47e0c0cc949a75"
	if got := Sign([]byte("0123456789abcdef"), []byte(`[{"position":1}]`), time.Unix(1767225600, 999)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestBackoffDoublesWithJitterUpToItsMost(t *testing.T) {
	b := backoff{min: minBackoff, max: maxBackoff}
	for failures, most := range []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second} {
		for range 100 {
			if d := b.after(failures); d < most/2 || d > most {
				t.Fatalf("%v after %d failures", d, failures)
			}
		}
	}
	for _, failures := range []int{9, 29, 30, 31, 64, 1 << 20} {
		if d := b.after(failures); d < maxBackoff/2 || d > maxBackoff {
			t.Fatalf("%v after %d failures", d, failures)
		}
	}
}

func TestAReceiverMaySayHowLongToWait(t *testing.T) {
	r, b := newRig(t), newReceiver(t)
	target, err := r.sink(b, "a").load(r.dir)
	r.must(err)
	one := &sink{consumers: r.consumers, target: target, client: target.client()}
	defer one.client.CloseIdleConnections()
	var delivery batch
	r.must(delivery.add(Message{Position: 1, Topic: "d/a/b"}))
	for said, want := range map[string]time.Duration{"7": 7 * time.Second, "86400": maxBackoff, "-1": 0, "": 0, "Fri, 31 Dec 1999 23:59:59 GMT": 0} {
		b.answering(func(_ int, w http.ResponseWriter) bool {
			w.Header().Set("Retry-After", said)
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		})
		err := one.post(t.Context(), &delivery)
		if refused, ok := errors.AsType[*refusal](err); !ok || refused.after != want {
			t.Errorf("Retry-After: %s: %+v", said, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (backoff{min: time.Millisecond, max: time.Millisecond}).wait(ctx, 0, time.Hour); !errors.Is(err, context.Canceled) {
		t.Error("a wait doesn't end with its context, or is shorter than was said")
	}
}

func TestAStoppedSinkIsTakenUpAgainIfItsChangeCantBeStored(t *testing.T) {
	r, b := newRig(t), newReceiver(t)
	store := &failing{Offsets: r.store}
	config := r.sink(b, "warehouse")
	s := r.sinks(r.reopened(store), config)
	store.broken.Store(true)
	changed := config
	changed.Filter = "d/other/#"
	if err := s.Apply(t.Context(), []SinkConfig{changed}); err == nil {
		t.Fatal("nothing could be stored, and nobody was told")
	}
	store.broken.Store(false)
	r.publish("pi-1", "still")
	until(t, "it is delivered", func() bool { return slices.Equal(b.got(), []string{"still"}) })
}

func TestASinkWaitsWhileItsPlaceCantBeStored(t *testing.T) {
	r, b := newRig(t), newReceiver(t)
	store := &failing{Offsets: r.store}
	config := r.sink(b, "warehouse")
	config.Batch = 1
	s := r.sinks(r.reopened(store), config)
	store.broken.Store(true)
	r.publish("pi-1", "1", "2", "3")
	until(t, "it says so", func() bool { return s.Stats()[0].LastError != "" })
	if n := b.count(); n != 0 {
		t.Errorf("%d deliveries that a crash would repeat as others", n)
	}
	store.broken.Store(false)
	until(t, "all is delivered", func() bool { return slices.Equal(b.got(), []string{"1", "2", "3"}) })
}
