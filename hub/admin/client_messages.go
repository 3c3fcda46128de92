package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/fleethub/fleethub/hub/consumer"
)

// MessageQuery asks for a page of messages. From is a place as consumer.Consumers.Resolve takes it; "" is the oldest that
// is kept.
type MessageQuery struct {
	Filter string
	From   string
	Limit  int
	Wait   time.Duration // at most consumer.MaxWait
}

// Messages returns a page of what devices sent. An error that is a *consumer.Gap says that its place is no longer kept.
func (c *Client) Messages(ctx context.Context, q MessageQuery) (consumer.Page, error) {
	query := url.Values{"limit": {strconv.Itoa(max(q.Limit, 0))}, "wait": {q.Wait.String()}}
	for name, value := range map[string]string{"filter": q.Filter, "from": q.From} {
		if value != "" {
			query.Set(name, value)
		}
	}
	page, err := exchange[consumer.Page](ctx, c, call{method: http.MethodGet, path: "/v1/messages", query: query, timeout: q.Wait + requestTimeout})
	if p, ok := errors.AsType[*Problem](err); ok && p.Type == problemType+codeGone {
		err = &consumer.Gap{From: consumer.Position(p.From), First: consumer.Position(p.First)}
	}
	return page, err
}

// Consumers returns every consumer.
func (c *Client) Consumers(ctx context.Context) (ConsumerList, error) {
	var list ConsumerList
	consumers, err := all(ctx, c, "/v1/consumers", nil, func(l ConsumerList) ([]consumer.Consumer, string) {
		list = l
		return l.Consumers, l.Next
	})
	list.Consumers = consumers
	return list, err
}

// Consumer returns a consumer, or an error that matches ErrNotFound.
func (c *Client) Consumer(ctx context.Context, name string) (consumer.Consumer, error) {
	return get[consumer.Consumer](ctx, c, consumerPath(name), nil)
}

// CreateConsumer makes a consumer. An error matches ErrMoved if there is one already.
func (c *Client) CreateConsumer(ctx context.Context, name string, place ConsumerPlace) (consumer.Consumer, error) {
	return c.changeConsumer(ctx, http.MethodPut, name, place, http.Header{"If-None-Match": {"*"}})
}

// MoveConsumer puts a consumer from one place to another. An error matches ErrMoved if it is at neither.
func (c *Client) MoveConsumer(ctx context.Context, name string, from consumer.Position, to ConsumerPlace) (consumer.Consumer, error) {
	one, err := c.changeConsumer(ctx, http.MethodPut, name, to, http.Header{"If-Match": {etag(from)}})
	if errors.Is(err, ErrMoved) && to.Next != 0 { // perhaps by this request, whose answer was lost and which send repeated
		if is, err := c.Consumer(ctx, name); err == nil && is.Next == to.Next {
			return is, nil
		}
	}
	return one, err
}

// DeleteConsumer removes a consumer that is at from, and its place.
func (c *Client) DeleteConsumer(ctx context.Context, name string, from consumer.Position) error {
	_, err := c.changeConsumer(ctx, http.MethodDelete, name, ConsumerPlace{}, http.Header{"If-Match": {etag(from)}})
	return err
}

func (c *Client) changeConsumer(ctx context.Context, method, name string, place ConsumerPlace, condition http.Header) (consumer.Consumer, error) {
	body, err := json.Marshal(place)
	if err != nil {
		return consumer.Consumer{}, err
	}
	return exchange[consumer.Consumer](ctx, c, call{
		method: method, path: consumerPath(name), body: body, contentType: "application/json", header: condition, timeout: requestTimeout,
	})
}

// Sinks returns every webhook.
func (c *Client) Sinks(ctx context.Context) ([]consumer.SinkStatus, error) {
	return all(ctx, c, "/v1/sinks", nil, func(l SinkList) ([]consumer.SinkStatus, string) { return l.Sinks, l.Next })
}

func consumerPath(name string) string { return "/v1/consumers/" + url.PathEscape(name) }
