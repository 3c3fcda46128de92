package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// watchQueue is how many messages wait for a slow reader; more are dropped and
// counted. writeDeadline is how long one write to it may take.
const (
	watchQueue    = 1024
	writeDeadline = 10 * time.Second
)

// stopping is why a stream ends with its context: the hub stops, or its reader is gone
// and won't see it.
const stopping = "the hub is stopping"

const streamMediaType = "application/x-ndjson"

// Message is one MQTT message as an operator sees it.
type Message struct {
	Time     time.Time
	Topic    string
	Payload  []byte
	QoS      byte
	Retained bool
	Dropped  uint64 // messages lost just before this one, since the reader was too slow
}

// wireMessage is a Message in JSON: a payload that is text stays readable.
type wireMessage struct {
	Time     time.Time `json:"time"`
	Topic    string    `json:"topic"`
	Payload  *string   `json:"payload,omitempty"`
	Binary   []byte    `json:"payload_base64,omitempty"`
	QoS      byte      `json:"qos"`
	Retained bool      `json:"retained,omitempty"`
	Dropped  uint64    `json:"dropped,omitempty"`
}

// MarshalJSON writes the payload as text if it is UTF-8, else as base64.
func (m Message) MarshalJSON() ([]byte, error) {
	w := wireMessage{Time: m.Time, Topic: m.Topic, QoS: m.QoS, Retained: m.Retained, Dropped: m.Dropped}
	if utf8.Valid(m.Payload) {
		text := string(m.Payload)
		w.Payload = &text
	} else {
		w.Binary = m.Payload
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (m *Message) UnmarshalJSON(data []byte) error {
	var w wireMessage
	if err := json.Unmarshal(data, &w); err != nil {
		return err
	}
	*m = Message{Time: w.Time, Topic: w.Topic, Payload: w.Binary, QoS: w.QoS, Retained: w.Retained, Dropped: w.Dropped}
	if w.Payload != nil {
		m.Payload = []byte(*w.Payload)
	}
	return nil
}

// event is one line of a stream. One member is set.
type event struct {
	Message   *Message   `json:"message,omitempty"`
	Heartbeat *time.Time `json:"heartbeat,omitempty"`
	Error     string     `json:"error,omitempty"` // why the stream ends
}

// watch streams messages until the reader goes away, stops reading, or the hub stops.
func (a *api) watch(w http.ResponseWriter, r *http.Request) {
	caller, filter := callerOf(r), r.FormValue("filter")
	if filter == "" {
		filter = "#"
	}
	if err := validFilter(filter); err != nil {
		a.fail(w, r, invalid("filter %.80q: %v", filter, err))
		return
	}
	if a.config.Watch == nil {
		a.fail(w, r, problem(http.StatusNotFound, "no-watch", "this hub has no messages to watch"))
		return
	}
	free := a.watches.take(caller.name)
	if free == nil {
		a.fail(w, r, problem(http.StatusServiceUnavailable, "busy", fmt.Sprintf("too many watches are open, of %d in all and %d of one operator; end one first", maxWatches, eachWatches)))
		return
	}
	defer free()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(a.drain, cancel)()

	queue := make(chan Message, watchQueue)
	var dropped atomic.Uint64
	ended := make(chan error, 1)
	go func() { // ends with ctx; waited for below
		ended <- a.config.Watch(ctx, filter, func(m Message) {
			select {
			case queue <- m:
			default:
				dropped.Add(1)
			}
		})
	}()

	s := &stream{w: w, control: http.NewResponseController(w), encoder: json.NewEncoder(w)}
	err := s.begin()
	heartbeat := time.NewTicker(a.config.Heartbeat)
	defer heartbeat.Stop()
	for err == nil {
		select {
		case m := <-queue:
			m.Dropped += dropped.Swap(0)
			if err = s.send(event{Message: &m}); err == nil && len(queue) == 0 {
				err = s.control.Flush()
			}
		case now := <-heartbeat.C:
			// The stream outlives its handshake: it must not outlive its operator's certificate or token.
			if refused := caller.again(); refused != nil {
				s.end("who watches is no longer accepted: " + refused.Error())
				cancel()
				<-ended
				return
			}
			if err = s.send(event{Heartbeat: &now}); err == nil {
				err = s.control.Flush()
			}
		case <-ctx.Done():
			s.end(stopping)
			<-ended
			return
		case failed := <-ended:
			why := stopping
			if ctx.Err() == nil {
				why = fmt.Sprintf("nothing more to watch: %v", failed)
			}
			s.end(why)
			return
		}
	}
	cancel()
	<-ended
}

// stream writes lines, each under a deadline of its own in place of the server's.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	encoder *json.Encoder
}

func (s *stream) begin() error {
	// The server's read deadline would end the request as if its reader had gone.
	if err := s.control.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if err := s.control.SetWriteDeadline(time.Now().Add(writeDeadline)); err != nil {
		return err
	}
	s.w.Header().Set("Content-Type", streamMediaType)
	s.w.WriteHeader(http.StatusOK)
	return s.control.Flush()
}

func (s *stream) send(e event) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(writeDeadline)); err != nil {
		return err
	}
	return s.encoder.Encode(e)
}

func (s *stream) end(why string) {
	if s.send(event{Error: why}) == nil {
		s.control.Flush()
	}
}

// validFilter checks a topic filter's form, [MQTT-4.7.1-1] to [MQTT-4.7.3-3].
func validFilter(filter string) error {
	if len(filter) > 65535 || !utf8.ValidString(filter) || strings.ContainsRune(filter, 0) {
		return errors.New("a topic filter is UTF-8 text without NUL, of at most 65535 bytes")
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		if strings.Contains(level, "#") && (level != "#" || i != len(levels)-1) {
			return errors.New("# stands alone in the last level")
		}
		if strings.Contains(level, "+") && level != "+" {
			return errors.New("+ stands alone in its level")
		}
	}
	return nil
}
