package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/boltstore"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
)

// answered is what a request got.
type answered struct {
	status int
	header http.Header
	body   string
}

// post sends a JSON body under an idempotency key, and under other headers, name by name.
func (h *hub) post(client *http.Client, path, body, key string, headers ...string) answered {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), http.MethodPost, h.url+path, strings.NewReader(body))
	h.must(err)
	r.Header.Set("Content-Type", "application/json")
	if key != "" {
		r.Header.Set(keyHeader, key)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := client.Do(r)
	h.must(err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	h.must(err)
	return answered{response.StatusCode, response.Header, string(content)}
}

func (h *hub) operatorClient(name string) *http.Client {
	credential := h.pki.Operator(name, certtest.WithOU("admin"))
	return h.httpClient(&credential)
}

// answerStore opens a store for answers in a file of the test's own, or again.
func answerStore(t *testing.T, path string) *boltstore.Store {
	t.Helper()
	store, err := boltstore.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

func TestRequestUnderAKeyIsCarriedOutOnce(t *testing.T) {
	for name, answers := range map[string]Answers{"in memory": nil, "durably": answerStore(t, filepath.Join(t.TempDir(), "answers.db"))} {
		h := newHub(t, operatorsOnly, func(c *Config) { c.Answers = answers })
		if _, err := h.admin("ann").Import(t.Context(), h.manifest("pi-1", "pi-2")); err != nil {
			t.Fatal(err)
		}
		ann, ben := h.operatorClient("ann"), h.operatorClient("ben")
		const suspend, body = "/v1/devices/pi-1/suspend", `{"note":"lost"}`
		first := h.post(ann, suspend, body, `"key-1"`)
		if first.status != http.StatusOK || strings.Contains(first.body, `"already"`) {
			t.Fatalf("%s: %+v", name, first)
		}
		for _, key := range []string{`"key-1"`, `key-1`} {
			if again := h.post(ann, suspend, body, key); again.status != first.status || again.body != first.body || again.header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: again under %s: %+v, at first %+v", name, key, again, first)
			}
		}
		// Another key, or another's key of the same name, is another request: already done.
		for who, client := range map[string]*http.Client{`"key-2"`: ann, `"key-1"`: ben} {
			if other := h.post(client, suspend, body, who); other.status != http.StatusOK || !strings.Contains(other.body, `"already":true`) {
				t.Errorf("%s: under %s: %+v", name, who, other)
			}
		}
		for what, other := range map[string]answered{
			"another body":        h.post(ann, suspend, `{"note":"found"}`, `"key-1"`),
			"another device":      h.post(ann, "/v1/devices/pi-2/suspend", body, `"key-1"`),
			"another verb":        h.post(ann, "/v1/devices/pi-1/resume", body, `"key-1"`),
			"another expectation": h.post(ann, suspend, body, `"key-1"`, "If-Match", `"x"`),
		} {
			if other.status != http.StatusUnprocessableEntity || !strings.Contains(other.body, codeKeyReused) {
				t.Errorf("%s: %s under the same key: %+v", name, what, other)
			}
		}
		if h.state("pi-2") != registry.StateRegistered {
			t.Errorf("%s: a refused request was carried out", name)
		}
		// What is refused for what it says is refused again in the same words.
		wrong := h.post(ann, "/v1/devices/pi-2/revoke", `{"reason":"boredom"}`, `"key-3"`)
		if again := h.post(ann, "/v1/devices/pi-2/revoke", `{"reason":"boredom"}`, `"key-3"`); wrong.status != http.StatusBadRequest || again.body != wrong.body || again.status != wrong.status {
			t.Errorf("%s: %+v, then %+v", name, wrong, again)
		}
		for _, key := range []string{`""`, `"open`, `"a"b"`, strings.Repeat("x", 256), "a\tb", "ü"} {
			if refused := h.post(ann, suspend, body, key); refused.status != http.StatusBadRequest {
				t.Errorf("%s: key %.20q: %+v", name, key, refused)
			}
		}
	}
}

func TestKeySurvivesARestartAndNotADay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "answers.db")
	var offset atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
	store := answerStore(t, path)
	var answers swapped
	answers.Answers = store
	h := newHub(t, operatorsOnly, func(c *Config) { c.Answers, c.Now = &answers, now })
	if _, err := h.admin("ann").Import(t.Context(), h.manifest("pi-1")); err != nil {
		t.Fatal(err)
	}
	const revoke, body = "/v1/devices/pi-1/revoke", `{"reason":"keyCompromise","confirm":true}`
	credential := h.pki.Operator("ann", certtest.WithOU("admin"))
	first := h.post(h.httpClient(&credential), revoke, body, `"k"`)
	if first.status != http.StatusOK {
		t.Fatalf("%+v", first)
	}
	restart := func() *hub { // of the API, over the same fleet and the same file
		h.must(store.Close())
		store = answerStore(t, path)
		answers.Answers = store
		return h.restarted()
	}
	if again := restart().post(h.httpClient(&credential), revoke, body, `"k"`); again.body != first.body {
		t.Errorf("after a restart: %+v, at first %+v", again, first)
	}
	offset.Store(int64(keyLifetime + time.Minute))
	late := h.post(h.httpClient(&credential), revoke, body, `"k"`)
	if late.status != http.StatusOK || !strings.Contains(late.body, `"already":true`) {
		t.Errorf("after a day: %+v", late)
	}
	kept, err := store.Documents(t.Context(), registry.KindAnswer, "", 100)
	if err != nil || len(kept) != 1 {
		t.Errorf("%d keys are kept, %v", len(kept), err)
	}
}

// swapped is a store that a test exchanges for the next.
type swapped struct{ Answers }

// restarted serves the same configuration anew, at another address.
func (h *hub) restarted() *hub {
	return h.serveAlso(func(next http.Handler) http.Handler { return next })
}

// serveAlso is restarted with something in front of the API.
func (h *hub) serveAlso(front func(http.Handler) http.Handler) *hub {
	h.t.Helper()
	server := NewServer(h.config, h.server.TLSConfig.Clone())
	server.Handler = front(server.Handler)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	h.must(err)
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	h.t.Cleanup(func() {
		server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			h.t.Errorf("serve: %v", err)
		}
	})
	h.url = "https://" + listener.Addr().String()
	return h
}

// cutStore is a store of answers that stops, as a process that is killed, once it has taken a
// number of them.
type cutStore struct {
	Answers
	left atomic.Int32
}

func (s *cutStore) Commit(ctx context.Context, change registry.Change) error {
	if s.left.Add(-1) < 0 {
		return errors.New("killed")
	}
	return s.Answers.Commit(ctx, change)
}

// TestOrderRetriedAfterACrashIsTheSameOrder kills the hub between the order and the note of its
// answer: the key is known, its answer isn't, and the order was carried out.
func TestOrderRetriedAfterACrashIsTheSameOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "answers.db")
	store := answerStore(t, path)
	cut := &cutStore{Answers: store}
	cut.left.Store(100)
	var answers swapped
	answers.Answers = cut
	h := newHub(t, operatorsOnly, func(c *Config) { c.Answers = &answers })
	ann := h.admin("ann")
	if _, err := ann.Import(t.Context(), h.manifest("online", "pi-1", "pi-2")); err != nil {
		t.Fatal(err)
	}
	cut.left.Store(1)
	client := h.operatorClient("ann")
	const body = `{"select":"model=pi4","reason":"keyCompromise","confirm":true,"count":3}`
	first := h.post(client, "/v1/selections/revoke", body, `"k"`)
	if first.status != http.StatusOK || h.closed.Load() != 1 {
		t.Fatalf("%+v", first)
	}
	answers.Answers = store
	h.restarted()
	again := h.post(h.operatorClient("ann"), "/v1/selections/revoke", body, `"k"`)
	if again.body != first.body || h.closed.Load() != 1 {
		t.Errorf("after the crash: %+v, before %+v; sessions closed %d times", again, first, h.closed.Load())
	}
	receipts, err := h.admin("ann").Receipts(t.Context(), "", 0)
	if err != nil || len(receipts.Receipts) != 1 {
		t.Errorf("receipts %+v, %v", receipts, err)
	}
}

// TestLongAnswerIsTheReceiptAgain: an answer that is too long to be kept is had again from the
// receipt of the order.
func TestLongAnswerIsTheReceiptAgain(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	var ids []string
	for i := range 900 {
		ids = append(ids, fmt.Sprintf("pi-%03d", i))
	}
	if _, err := h.admin("ann").Import(t.Context(), h.manifest(ids...)); err != nil {
		t.Fatal(err)
	}
	client := h.operatorClient("ann")
	const body = `{"select":"model=pi4","reason":"keyCompromise","confirm":true,"count":900}`
	first := h.post(client, "/v1/selections/revoke", body, `"k"`)
	if first.status != http.StatusOK || len(first.body) <= maxKept {
		t.Fatalf("%d, %d octets", first.status, len(first.body))
	}
	if again := h.post(client, "/v1/selections/revoke", body, `"k"`); again.body != first.body {
		t.Errorf("again: %d %.300s", again.status, again.body)
	}
	if other := h.post(client, "/v1/selections/revoke", strings.Replace(body, "900", "899", 1), `"k"`); other.status != http.StatusUnprocessableEntity {
		t.Errorf("another request under the key: %d %.300s", other.status, other.body)
	}
}

// TestStoreThatIsFullKeepsNobodyFromRevoking: the key is not durable then, and the revocation is.
func TestStoreThatIsFullKeepsNobodyFromRevoking(t *testing.T) {
	cut := &cutStore{Answers: answerStore(t, filepath.Join(t.TempDir(), "answers.db"))}
	h := newHub(t, operatorsOnly, func(c *Config) { c.Answers = cut })
	if _, err := h.admin("ann").Import(t.Context(), h.manifest("pi-1")); err != nil {
		t.Fatal(err)
	}
	client := h.operatorClient("ann")
	const body = `{"reason":"keyCompromise","confirm":true}`
	first := h.post(client, "/v1/devices/pi-1/revoke", body, `"k"`)
	if first.status != http.StatusOK || h.state("pi-1") != registry.StateRevoked {
		t.Fatalf("%+v", first)
	}
	if again := h.post(client, "/v1/devices/pi-1/revoke", body, `"k"`); again.body != first.body {
		t.Errorf("again: %+v, at first %+v", again, first)
	}
}

// TestSameKeyAtTheSameTimeIsToldToWait holds one request up in the middle.
func TestSameKeyAtTheSameTimeIsToldToWait(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h := newHub(t, operatorsOnly, func(c *Config) { c.Policies = slowPolicies{entered: entered, leave: leave, once: &once} })
	client := h.operatorClient("ann")
	first := make(chan answered, 1)
	go func() { first <- h.post(client, "/v1/policy/reload", `{"reason":"x"}`, `"k"`) }()
	<-entered
	second := h.post(client, "/v1/policy/reload", `{"reason":"x"}`, `"k"`)
	if second.status != http.StatusConflict || !strings.Contains(second.body, codeInProgress) || second.header.Get("Retry-After") == "" {
		t.Errorf("%+v", second)
	}
	close(leave)
	done := <-first
	if done.status != http.StatusOK {
		t.Errorf("%+v", done)
	}
	if third := h.post(client, "/v1/policy/reload", `{"reason":"x"}`, `"k"`); third.body != done.body {
		t.Errorf("%+v, at first %+v", third, done)
	}
}

// slowPolicies says that a reload has begun, and waits.
type slowPolicies struct {
	noPolicies
	entered, leave chan struct{}
	once           *sync.Once
}

func (p slowPolicies) Reload(context.Context, fleet.Actor, string) (PolicyReload, error) {
	p.once.Do(func() { close(p.entered) })
	<-p.leave
	return PolicyReload{Changed: true}, nil
}

func TestKeysAreBounded(t *testing.T) {
	var offset atomic.Int64
	k := newKeyring(Config{Now: func() time.Time { return time.Unix(offset.Add(1), 0) }})
	for i := range maxKeys + 50 {
		id := fmt.Sprint(i)
		if known, err := k.begin(t.Context(), fmt.Sprint(i%9), id, "f"); err != nil || known.Order == "" {
			t.Fatalf("%+v, %v", known, err)
		}
		k.end(id)
	}
	if len(k.begun) > maxKeys || len(k.memory) > maxKeys || len(k.underWay) != 0 {
		t.Errorf("%d keys, %d answers, %d under way", len(k.begun), len(k.memory), len(k.underWay))
	}
	if _, err := k.begin(t.Context(), "ann", fmt.Sprint(maxKeys+49), "g"); err == nil {
		t.Error("the newest key is forgotten")
	}
	if _, err := k.begin(t.Context(), "ann", "0", "g"); err != nil {
		t.Errorf("the oldest key is still there: %v", err)
	}
}

// TestClientRepeatsAPostThatWasCutOff cuts the connection once the hub has carried the request
// out and before it has answered, so that the client can't know what became of its order. The
// order has no ID of its own: but for the key it would be carried out twice.
func TestClientRepeatsAPostThatWasCutOff(t *testing.T) {
	issuers := &fakeIssuers{}
	var requests atomic.Int32
	h := newHub(t, operatorsOnly, func(c *Config) { c.Issuers = issuers })
	h.serveAlso(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if requests.Add(1) == 1 {
				next.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		})
	})
	receipt, err := h.admin("ann").RemoveIssuer(t.Context(), "bench 1/a", "sold")
	if err != nil || receipt.Issuer.Serial != "2a" || len(issuers.removed) != 1 || requests.Load() != 2 {
		t.Errorf("receipt %+v, %v; %d requests, removed %q", receipt, err, requests.Load(), issuers.removed)
	}
}

// TestClientWaitsForTheAnswerOfItsFirstTry: the connection is cut while the hub is still at the
// request.
func TestClientWaitsForTheAnswerOfItsFirstTry(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var requests atomic.Int32
	h := newHub(t, operatorsOnly, func(c *Config) { c.Policies = slowPolicies{entered: entered, leave: leave, once: &once} })
	var first sync.WaitGroup
	defer first.Wait()
	h.serveAlso(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch requests.Add(1) {
			case 1:
				body, err := io.ReadAll(r.Body)
				h.must(err)
				r := r.Clone(context.WithoutCancel(r.Context()))
				r.Body = io.NopCloser(strings.NewReader(string(body)))
				first.Go(func() { next.ServeHTTP(httptest.NewRecorder(), r) })
				<-entered
				panic(http.ErrAbortHandler)
			case 2:
				if r.Header.Get(keyHeader) == "" {
					t.Error("the request is repeated without its key")
					close(leave)
				}
			case 3:
				close(leave)
				first.Wait()
			}
			next.ServeHTTP(w, r)
		})
	})
	if report, err := h.admin("ann").ReloadPolicy(t.Context(), "x"); err != nil || !report.Changed || requests.Load() < 3 {
		t.Errorf("%+v, %v after %d requests", report, err, requests.Load())
	}
}

// TestKeysOfOneCallerPushOutNobodyElses: whoever sends many loses its own oldest.
func TestKeysOfOneCallerPushOutNobodyElses(t *testing.T) {
	var offset atomic.Int64
	store := answerStore(t, filepath.Join(t.TempDir(), "answers.db"))
	config := Config{Now: func() time.Time { return time.Unix(offset.Add(1), 0) }, Log: slog.New(slog.DiscardHandler)}
	begin := func(k *keyring, caller, id, fingerprint string) error {
		_, err := k.begin(t.Context(), caller, id, fingerprint)
		if err == nil {
			k.end(id)
		}
		return err
	}
	config.Answers = store
	first := newKeyring(config)
	if err := errors.Join(begin(first, "ben", "ben", "f"), begin(first, "ann", "ann-0", "f")); err != nil {
		t.Fatal(err)
	}
	k := newKeyring(config) // whose keys they are is known after a restart
	if err := k.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.store = nil
	for i := range eachKeys + 50 {
		if err := begin(k, "ann", fmt.Sprint("ann-", i+1), "f"); err != nil {
			t.Fatal(err)
		}
	}
	if len(k.begun) != eachKeys+1 {
		t.Errorf("%d keys", len(k.begun))
	}
	if _, there := k.begun["ben"]; !there {
		t.Error("ben's key is forgotten for ann's")
	}
	if _, there := k.begun["ann-0"]; there {
		t.Error("ann's oldest key is still there")
	}
	if err := begin(k, "ann", fmt.Sprint("ann-", eachKeys+50), "g"); err == nil {
		t.Error("ann's newest key is forgotten")
	}
}

// TestRehearsalIsNotKept: each one says what would be done now.
func TestRehearsalIsNotKept(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	if _, err := h.admin("ann").Import(t.Context(), h.manifest("pi-1", "pi-2")); err != nil {
		t.Fatal(err)
	}
	client := h.operatorClient("ann")
	rehearsals := map[string]string{
		"/v1/selections/retire":    `{"select":"id=pi-*"}`,
		"/v1/devices/pi-2/retire":  `{}`,
		"/v1/devices/pi-2/replace": `{"by":"pi-1"}`,
		"/v1/devices/pi-2/revoke":  `{"reason":"keyCompromise"}`,
	}
	before := make(map[string]string)
	for path, body := range rehearsals {
		first := h.post(client, path, body, digest(path))
		if first.status != http.StatusOK || !strings.Contains(first.body, `"plan"`) {
			t.Fatalf("%s: %+v", path, first)
		}
		before[path] = first.body
	}
	if _, err := h.admin("ben").End(t.Context(), EndRequest{Device: "pi-2", Verb: fleet.VerbRetire}); err != nil {
		t.Fatal(err)
	}
	for path, body := range rehearsals {
		if again := h.post(client, path, body, digest(path)); again.body == before[path] {
			t.Errorf("%s: rehearsed as it was before: %s", path, again.body)
		}
	}
}
