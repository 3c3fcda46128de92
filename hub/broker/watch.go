package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/hub/policy"
)

// ErrFilter is in the chain of Watch's error about a filter that is none.
var ErrFilter = errors.New("invalid topic filter")

// ErrClosed is returned by Watch when the broker stops.
var ErrClosed = errors.New("the hub is stopping")

// Message is a message as an operator sees it. Payload is shared: nobody may
// write to it.
type Message struct {
	Topic    string
	Payload  []byte
	QoS      byte
	Retained bool      // was stored before the watch began
	Time     time.Time // when the hub routed it; of a retained one when it was accepted, to the second
	Missed   uint64    // messages dropped since the one before, because the watcher lagged
}

// Watch delivers every message that matches filter, from retained ones on,
// until ctx ends, and returns nil then. It returns ErrClosed when the broker
// stops. deliver is called on Watch's goroutine, one message at a time. A
// watcher that lags more than Config.WatchQueue messages behind misses some;
// nobody waits for it.
//
// It is for operators, who may see everything but $-topics: policy is not asked.
func (b *Broker) Watch(ctx context.Context, filter string, deliver func(Message)) error {
	if !policy.ValidFilter(filter) || strings.HasPrefix(filter, "$") {
		return fmt.Errorf("%w %q: levels are separated by /, + stands for a whole level, # for the rest", ErrFilter, filter)
	}
	if !b.enter() {
		return ErrClosed
	}
	defer b.serving.Done()

	queue := make(chan Message, b.config.WatchQueue)
	var missed atomic.Uint64
	take := func(_ *mqtt.Client, _ packets.Subscription, pk packets.Packet) {
		if strings.HasPrefix(pk.TopicName, "$") {
			return // mochi lets an inline "#" match them
		}
		m := messageOf(pk)
		m.Time = b.config.Now().UTC() // mochi keeps whole seconds
		select {
		case queue <- m:
		default:
			missed.Add(1)
			b.counters.watchDropped.Add(1)
		}
	}
	id := int(b.watchID.Add(1))
	b.counters.watchers.Add(1)
	defer b.counters.watchers.Add(-1)
	b.mqtt.Topics.InlineSubscribe(mqtt.InlineSubscription{Subscription: packets.Subscription{Filter: filter, Identifier: id}, Handler: take})
	defer b.mqtt.Topics.InlineUnsubscribe(id, filter)
	// Past the queue, which a fleet's retained messages would overflow.
	for _, pk := range b.mqtt.Topics.Messages(filter) {
		if strings.HasPrefix(pk.TopicName, "$") {
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		m := messageOf(pk)
		m.Retained = true
		deliver(m)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.stop:
			return ErrClosed
		case m := <-queue:
			m.Missed = missed.Swap(0)
			deliver(m)
		}
	}
}

func messageOf(pk packets.Packet) Message {
	return Message{Topic: pk.TopicName, Payload: pk.Payload, QoS: pk.FixedHeader.Qos, Time: time.Unix(pk.Created, 0).UTC()}
}
