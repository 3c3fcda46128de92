package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
)

var discardLog = log.New(io.Discard, "", 0)

// feed is a source of messages that a test controls.
type feed struct {
	filters chan string
	send    chan Message
	fail    chan error
	left    chan struct{}
}

func newFeed() *feed {
	return &feed{filters: make(chan string, 1), send: make(chan Message), fail: make(chan error), left: make(chan struct{}, 1)}
}

func (f *feed) watch(ctx context.Context, filter string, deliver func(Message)) error {
	f.filters <- filter
	defer func() { f.left <- struct{}{} }()
	for {
		select {
		case m := <-f.send:
			deliver(m)
		case err := <-f.fail:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func newWatchedHub(t *testing.T, change func(*Config)) (*hub, *feed) {
	f := newFeed()
	return newHub(t, operatorsOnly, func(c *Config) {
		c.Watch = f.watch
		if change != nil {
			change(c)
		}
	}), f
}

func TestWatchStreamsMessagesAsTheyArrive(t *testing.T) {
	h, f := newWatchedHub(t, nil)
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	enough := errors.New("enough")
	got := make(chan Message)
	ended := make(chan error)
	go func() {
		n := 0
		ended <- c.Watch(t.Context(), "d/+/tele/#", func(m Message) error {
			got <- m
			if n++; n == 3 {
				return enough
			}
			return nil
		})
	}()
	if filter := <-f.filters; filter != "d/+/tele/#" {
		t.Fatalf("filter = %q", filter)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, want := range []Message{
		{Time: at, Topic: "d/pi-1/tele/env", Payload: []byte(`{"values":{"t":"1 < 2 "}}`), QoS: 1},
		{Time: at, Topic: "d/pi-1/tele/raw", Payload: []byte{0xff, 0, 1}, Retained: true},
		{Time: at, Topic: "d/pi-1/tele/none", Payload: []byte{}},
	} {
		f.send <- want
		if m := <-got; !m.Time.Equal(at) || m.Topic != want.Topic || !bytes.Equal(m.Payload, want.Payload) || m.QoS != want.QoS || m.Retained != want.Retained || m.Dropped != 0 {
			t.Fatalf("message = %+v, want %+v", m, want)
		}
	}
	if err := <-ended; !errors.Is(err, enough) {
		t.Fatalf("watch ended with %v", err)
	}
	<-f.left // the hub stops watching when its reader goes away
}

func TestWatchKeepsAnIdleStreamAlive(t *testing.T) {
	h, f := newWatchedHub(t, func(c *Config) { c.Heartbeat = time.Millisecond })
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	response, err := c.send(t.Context(), call{method: http.MethodGet, path: "/v1/watch", query: url.Values{"filter": {"#"}}})
	h.must(err)
	defer response.Body.Close()
	if got := response.Header.Get("Content-Type"); got != streamMediaType {
		t.Fatalf("content type %q", got)
	}
	lines := json.NewDecoder(response.Body)
	for range 3 {
		var e event
		if err := lines.Decode(&e); err != nil || e.Heartbeat == nil || e.Message != nil {
			t.Fatalf("event = %+v, %v", e, err)
		}
	}
	<-f.filters
	response.Body.Close()
	<-f.left
}

func TestWatchEndsWhenTheHubGoesSilent(t *testing.T) {
	h, f := newWatchedHub(t, func(c *Config) { c.Heartbeat = time.Hour })
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	c.silence = 50 * time.Millisecond
	if err := c.Watch(t.Context(), "", func(Message) error { return nil }); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "silent") {
		t.Fatalf("error = %v", err)
	}
	select { // the request may not even have reached it
	case <-f.filters:
		<-f.left
	default:
	}
}

func TestWatchEndsWithItsContextAndItsSource(t *testing.T) {
	h, f := newWatchedHub(t, nil)
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	ended := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- c.Watch(ctx, "", func(Message) error { return nil }) }()
	if filter := <-f.filters; filter != "#" {
		t.Fatalf("filter = %q", filter)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("error = %v", err)
	}
	<-f.left

	go func() { ended <- c.Watch(t.Context(), "", func(Message) error { return nil }) }()
	<-f.filters
	f.fail <- errors.New("the broker is gone")
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "the broker is gone") {
		t.Fatalf("error = %v", err)
	}
	<-f.left
}

func TestShutdownEndsWatches(t *testing.T) {
	h, f := newWatchedHub(t, nil)
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	ended := make(chan error)
	go func() { ended <- c.Watch(t.Context(), "", func(Message) error { return nil }) }()
	<-f.filters
	if err := h.server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "the hub is stopping") {
		t.Fatalf("error = %v", err)
	}
}

func TestSlowReaderLosesMessagesAndLearnsHowMany(t *testing.T) {
	h, f := newWatchedHub(t, func(c *Config) { c.Heartbeat = time.Hour })
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	const messages = 40 * watchQueue
	first, proceed := make(chan struct{}), make(chan struct{})
	enough := errors.New("enough")
	var received, dropped uint64
	ended := make(chan error)
	go func() {
		ended <- c.Watch(t.Context(), "", func(m Message) error {
			if received++; received == 1 {
				close(first)
				<-proceed
			}
			if dropped += m.Dropped; m.Topic == "last" {
				return enough
			}
			return nil
		})
	}()
	<-f.filters
	payload := bytes.Repeat([]byte("x"), 4096) // more in all than the sockets' buffers hold
	f.send <- Message{Topic: "first"}
	<-first
	for range messages {
		f.send <- Message{Topic: "more", Payload: payload} // never blocks for long: deliver doesn't
	}
	close(proceed)
	// A last message is delivered when the reader has caught up, or dropped as well.
	for done := false; !done; {
		select {
		case f.send <- Message{Topic: "last"}:
		case err := <-ended:
			if !errors.Is(err, enough) {
				t.Fatal(err)
			}
			done = true
		}
	}
	if dropped == 0 || received+dropped < messages {
		t.Fatalf("received %d and lost %d of %d", received, dropped, messages)
	}
	<-f.left
}

func TestWatchRefusesABadFilterAndTooManyReaders(t *testing.T) {
	h, f := newWatchedHub(t, nil)
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	for _, filter := range []string{"a/#/b", "a#", "+a/b", "a/b+", "\x00", "\xff"} {
		var p *Problem
		if err := c.Watch(t.Context(), filter, nil); !errors.As(err, &p) || p.Status != http.StatusBadRequest {
			t.Errorf("filter %q: error = %v", filter, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	var p *Problem
	soon, enough := context.WithTimeout(t.Context(), time.Minute) // one that is let in must not last
	defer enough()
	for i := range maxWatches / eachWatches {
		one := c
		if i > 0 {
			one = h.client(h.pki.Operator(fmt.Sprint("viewer-", i), certtest.WithOU("viewer")))
		}
		for range eachWatches {
			go func() { ended <- one.Watch(ctx, "", func(Message) error { return nil }) }()
			<-f.filters
		}
		if err := one.Watch(soon, "", nil); !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable {
			t.Errorf("one watch more than caller %d may have: error = %v", i, err)
		}
	}
	late := h.client(h.pki.Operator("late", certtest.WithOU("viewer")))
	if err := late.Watch(soon, "", nil); !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable {
		t.Errorf("one watch more than there may be: error = %v", err)
	}
	cancel()
	for range maxWatches {
		<-f.left
		<-ended
	}
	without := newHub(t, operatorsOnly, nil)
	if err := without.client(without.pki.Operator("ann")).Watch(t.Context(), "", nil); !errors.As(err, &p) || p.Status != http.StatusNotFound {
		t.Errorf("a hub without messages: error = %v", err)
	}
}

func FuzzMessageSurvivesJSON(f *testing.F) {
	f.Add("d/pi-1/tele/env", []byte(`{"t":1}`), byte(1), true, uint64(3))
	f.Add("x", []byte{0xff, 0xfe}, byte(0), false, uint64(0))
	f.Add("x", []byte("\u2028<>&"), byte(2), false, uint64(0))
	f.Fuzz(func(t *testing.T, topic string, payload []byte, qos byte, retained bool, dropped uint64) {
		topic = strings.ToValidUTF8(topic, "?") // MQTT topics are UTF-8
		want := Message{Topic: topic, Payload: payload, QoS: qos, Retained: retained, Dropped: dropped}
		data, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Message
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if got.Topic != want.Topic || !bytes.Equal(got.Payload, want.Payload) || got.QoS != qos || got.Retained != retained || got.Dropped != dropped {
			t.Fatalf("%s: %+v, want %+v", data, got, want)
		}
	})
}

func FuzzFilter(f *testing.F) {
	for _, seed := range []string{"#", "+", "a/+/b", "a/#", "a#", "/", "", "a/#/b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, filter string) {
		if validFilter(filter) != nil {
			return
		}
		if strings.Contains(filter, "#") && !strings.HasSuffix(filter, "#") || strings.Count(filter, "#") > 1 || strings.Contains(filter, "#/") {
			t.Fatalf("%q accepted", filter)
		}
	})
}
