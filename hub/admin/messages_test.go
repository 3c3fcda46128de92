package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/boltstore"
	"github.com/fleethub/fleethub/hub/consumer"
	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/wire"
)

// messages is a journal behind the API.
type messages struct {
	*hub
	journal *journal.Journal
	log     *ingest.Log
}

func newMessages(t *testing.T) *messages {
	t.Helper()
	config := journal.Config{Dir: filepath.Join(t.TempDir(), "journal"), SegmentSize: 64 << 10, Retain: journal.Retain{Bytes: -1, Age: -1}}
	m := &messages{}
	store, err := boltstore.Open(filepath.Join(t.TempDir(), "offsets.db"))
	if err == nil {
		err = journal.Create(config)
	}
	if err == nil {
		m.journal, err = journal.Open(config, func(journal.Position, []byte) error { return nil })
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(m.journal.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	m.log = ingest.New(m.journal, 0)
	consumers, err := consumer.Open(t.Context(), consumer.Config{Journal: m.journal, Offsets: store})
	if err != nil {
		t.Fatal(err)
	}
	m.hub = newHub(t, operatorsOnly, func(c *Config) { c.Consumers = consumers })
	return m
}

func (m *messages) publish(topic string, payloads ...string) {
	m.t.Helper()
	for _, payload := range payloads {
		_, err := m.log.Message(&ingest.Message{
			Number: 1, Time: time.Now(), From: ingest.Sender{Role: ingest.SenderDevice, ID: "pi-1"},
			Publish: wire.Publish{Topic: topic, Payload: []byte(payload)},
		}, nil)
		m.must(err)
	}
	m.must(m.journal.Sync(context.Background()))
}

// trim has the journal drop its oldest records.
func (m *messages) trim() {
	m.t.Helper()
	for first := m.journal.First(); m.journal.First() == first; {
		m.publish("filler", strings.Repeat("x", 30_000))
		m.must(m.journal.Checkpoint(m.journal.Last()))
	}
}

// raw makes a request and returns its status, headers and body.
func (m *messages) raw(by certtest.Credential, method, path, body string, header http.Header) (int, http.Header, []byte) {
	m.t.Helper()
	transport := &http.Transport{TLSClientConfig: by.ClientConfig()}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(m.t.Context(), method, m.url+path, strings.NewReader(body))
	m.must(err)
	for k, v := range header {
		request.Header[k] = v
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := transport.RoundTrip(request)
	m.must(err)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	m.must(err)
	return response.StatusCode, response.Header, data
}

func TestMessagesArePagedAndWaitedFor(t *testing.T) {
	m := newMessages(t)
	c := m.client(m.pki.Operator("ann")) // a viewer
	m.publish("d/pi-1/tele", "1", "2", "3")
	m.publish("d/pi-1/other", "\xff\x00")
	var got []string
	q := MessageQuery{Filter: "d/+/tele", Limit: 2}
	for range 2 {
		page, err := c.Messages(t.Context(), q)
		m.must(err)
		for _, one := range page.Messages {
			got = append(got, string(one.Payload))
		}
		q.From = strconv.FormatUint(uint64(page.Next), 10)
	}
	if !slices.Equal(got, []string{"1", "2", "3"}) {
		t.Errorf("%q", got)
	}
	status, _, body := m.raw(m.pki.Operator("ann"), "GET", "/v1/messages?from=4", "", nil)
	if want := `"payload_base64":"/wA="`; status != 200 || !strings.Contains(string(body), want) || !strings.Contains(string(body), `"next":5,"caught_up":true`) {
		t.Errorf("%d %s", status, body)
	}
	answered := make(chan consumer.Page, 1)
	go func() {
		page, err := c.Messages(context.Background(), MessageQuery{From: "now", Wait: consumer.MaxWait})
		if err != nil {
			t.Error(err)
		}
		answered <- page
	}()
	for len(answered) == 0 { // "now" is when the request comes
		m.publish("d/pi-1/tele", "new")
	}
	if page := <-answered; len(page.Messages) == 0 || string(page.Messages[0].Payload) != "new" {
		t.Errorf("%+v", page)
	}
}

func TestARequestForMessagesThatAreGoneSaysWhereTheyBegin(t *testing.T) {
	m := newMessages(t)
	m.publish("d/pi-1/tele", "1", "2", "3")
	m.trim()
	first := m.journal.First()
	_, err := m.client(m.pki.Operator("ann")).Messages(t.Context(), MessageQuery{From: "2"})
	gap, ok := errors.AsType[*consumer.Gap](err)
	if !ok || *gap != (consumer.Gap{From: 2, First: first}) {
		t.Errorf("%v", err)
	}
	status, header, body := m.raw(m.pki.Operator("ann"), "GET", "/v1/messages?from=2", "", nil)
	var p Problem
	if json.Unmarshal(body, &p) != nil || status != http.StatusGone || header.Get("Content-Type") != problemMediaType || p.First != uint64(first) || p.From != 2 {
		t.Errorf("%d %s", status, body)
	}
}

func TestAConsumersPlaceIsMovedByWhoKnowsIt(t *testing.T) {
	m := newMessages(t)
	m.publish("d/pi-1/tele", "1", "2", "3")
	c := m.client(m.pki.Operator("ann", certtest.WithOU("operator")))
	ctx := t.Context()
	one, err := c.CreateConsumer(ctx, "backend", ConsumerPlace{From: "start", Filter: "d/#"})
	if err != nil || one.Next != 1 || one.Filter != "d/#" {
		t.Fatalf("%+v, %v", one, err)
	}
	if _, err := c.CreateConsumer(ctx, "backend", ConsumerPlace{From: "start"}); !errors.Is(err, ErrMoved) {
		t.Errorf("made twice: %v", err)
	}
	if one, err := c.MoveConsumer(ctx, "backend", 1, ConsumerPlace{Next: 3}); err != nil || one.Next != 3 {
		t.Errorf("%+v, %v", one, err)
	}
	if _, err := c.MoveConsumer(ctx, "backend", 1, ConsumerPlace{Next: 2}); !errors.Is(err, ErrMoved) {
		t.Errorf("moved from where it isn't: %v", err)
	}
	if _, err := c.MoveConsumer(ctx, "backend", 1, ConsumerPlace{Next: 3}); err != nil {
		t.Errorf("a request whose answer was lost and that was repeated: %v", err)
	}
	operator := m.pki.Operator("ann", certtest.WithOU("operator"))
	if status, header, _ := m.raw(operator, "GET", "/v1/consumers/backend", "", nil); status != 200 || header.Get("ETag") != `"3"` {
		t.Errorf("%d, tag %s", status, header.Get("ETag"))
	}
	for _, tt := range []struct {
		method, name, body, match string
		status                    int
	}{
		{"PUT", "backend", `{"next":2}`, "", http.StatusPreconditionRequired},
		{"PUT", "backend", `{"next":2}`, `"1"`, http.StatusPreconditionFailed},
		{"PUT", "backend", `{"next":2}`, `3`, http.StatusBadRequest},
		{"PUT", "backend", `{"next":2}`, `*`, http.StatusBadRequest},
		{"PUT", "backend", `{"next":5}`, `"3"`, http.StatusBadRequest},
		{"PUT", "backend", `{}`, `"3"`, http.StatusBadRequest},
		{"PUT", "backend", `{"next":2,"from":"start"}`, `"3"`, http.StatusBadRequest},
		{"PUT", "backend", `{"from":"yesterday"}`, `"3"`, http.StatusBadRequest},
		{"PUT", "backend", `{"next":2,"filter":"a/#/b"}`, `"3"`, http.StatusBadRequest},
		{"PUT", "nobody", `{"next":2}`, `"3"`, http.StatusNotFound},
		{"GET", "nobody", ``, ``, http.StatusNotFound},
		{"DELETE", "backend", ``, ``, http.StatusPreconditionRequired},
		{"DELETE", "backend", ``, `"1"`, http.StatusPreconditionFailed},
		{"DELETE", "nobody", ``, `"1"`, http.StatusNotFound},
	} {
		header := http.Header{}
		if tt.match != "" {
			header.Set("If-Match", tt.match)
		}
		status, answer, body := m.raw(operator, tt.method, "/v1/consumers/"+tt.name, tt.body, header)
		if status != tt.status || answer.Get("Content-Type") != problemMediaType {
			t.Errorf("%s %s %s If-Match %s: %d %s, want %d", tt.method, tt.name, tt.body, tt.match, status, body, tt.status)
		}
	}
	for _, query := range []string{"filter=a/%23/b", "from=yesterday", "from=6", "limit=x", "wait=31s", "wait=-1s", "wait=1"} {
		if status, _, body := m.raw(operator, "GET", "/v1/messages?"+query, "", nil); status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
	m.must(c.DeleteConsumer(ctx, "backend", 3))
	if list, err := c.Consumers(ctx); err != nil || len(list.Consumers) != 0 || list.First != 1 || list.End != 4 {
		t.Errorf("%+v, %v", list, err)
	}
	if sinks, err := c.Sinks(ctx); err != nil || len(sinks) != 0 {
		t.Errorf("%+v, %v", sinks, err)
	}
	// What was ordered is in the audit log; what was read is not.
	page, err := c.Audit(ctx, 0, 0)
	m.must(err)
	var actions []string
	for _, r := range page.Records {
		if r.Outcome == "done" {
			actions = append(actions, r.Action+" "+r.Subject)
		}
	}
	if want := []string{"consumer.create consumer backend", "consumer.delete consumer backend"}; !slices.Equal(actions, want) {
		t.Errorf("audit log %q, want %q", actions, want)
	}
}

func TestAViewerReadsMessagesAndMovesNobody(t *testing.T) {
	m := newMessages(t)
	viewer := m.pki.Operator("eve")
	for _, e := range []struct{ method, path string }{{"PUT", "/v1/consumers/a"}, {"DELETE", "/v1/consumers/a"}} {
		status, _, body := m.raw(viewer, e.method, e.path, `{"next":1}`, http.Header{"If-None-Match": {"*"}, "If-Match": {`"1"`}})
		if status != http.StatusForbidden || !strings.Contains(string(body), codeRole) {
			t.Errorf("%s %s: %d %s", e.method, e.path, status, body)
		}
	}
	for _, path := range []string{"/v1/messages", "/v1/consumers", "/v1/sinks"} {
		if status, _, body := m.raw(viewer, "GET", path, "", nil); status != http.StatusOK {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

func TestWhoWaitsForMessagesDoesNotKeepTheServerFromStopping(t *testing.T) {
	m := newMessages(t)
	c := m.client(m.pki.Operator("ann"))
	_, err := c.Consumers(t.Context()) // the connection is there
	m.must(err)
	ended := make(chan error, 1)
	go func() {
		_, err := c.Messages(context.Background(), MessageQuery{From: "now", Wait: consumer.MaxWait})
		ended <- err
	}()
	for reads := m.server.Handler.(*api).reads; len(reads) == 0; {
		runtime.Gosched()
	}
	ctx, cancel := context.WithTimeout(t.Context(), consumer.MaxWait/2)
	defer cancel()
	if err := m.server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("the request ended well")
	}
}
