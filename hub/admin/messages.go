package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/fleethub/fleethub/hub/consumer"
	"github.com/fleethub/fleethub/hub/fleet"
)

// maxReads is how many requests for messages may wait or read at a time.
const maxReads = 64

// ConsumerList is one page of the consumers, in order of name, and what of the journal there is to read. Next is the
// after of the following page, empty on the last.
type ConsumerList struct {
	Consumers []consumer.Consumer `json:"consumers"`
	First     consumer.Position   `json:"first"` // the oldest record that is kept
	End       consumer.Position   `json:"end"`   // what the next record gets
	Next      string              `json:"next,omitempty"`
}

// ConsumerPlace is the body of a PUT of a consumer. One of Next and From is set.
type ConsumerPlace struct {
	Next   consumer.Position `json:"next,omitempty"`
	From   string            `json:"from,omitempty"`   // start, now, a position, a time, or how long ago such as -1h
	Filter string            `json:"filter,omitempty"` // of topics; "": as it was, or # for a new one
}

// SinkList is one page of the webhooks, in order of name. Next is the after of the following page, empty on the last.
type SinkList struct {
	Sinks []consumer.SinkStatus `json:"sinks"`
	Next  string                `json:"next,omitempty"`
}

func (a *api) listMessages(r *http.Request) (consumer.Page, error) {
	q, err := a.messageQuery(r)
	if err != nil {
		return consumer.Page{}, err
	}
	select {
	case a.reads <- struct{}{}:
		defer func() { <-a.reads }()
	default:
		return consumer.Page{}, problem(http.StatusServiceUnavailable, "busy", "too many requests for messages are under way; ask again")
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(a.drain, cancel)()
	if q.From, err = a.config.Consumers.Resolve(ctx, placeText(r.FormValue("from"))); err == nil {
		if first, end := a.config.Consumers.Range(); q.From > end {
			err = invalid("position %d is not there yet: the next message gets %d", q.From, end)
		} else if r.FormValue("from") == "start" {
			q.From = 0 // whatever is trimmed meanwhile
		} else if q.From < first {
			err = &consumer.Gap{From: q.From, First: first}
		}
	}
	var page consumer.Page
	if err == nil {
		page, err = a.config.Consumers.Page(ctx, q)
	}
	if err != nil && a.drain.Err() != nil {
		err = problem(http.StatusServiceUnavailable, "stopping", stopping)
	}
	return page, err
}

// placeText is where to read if the request doesn't say.
func placeText(from string) string {
	if from == "" {
		return "start"
	}
	return from
}

func (a *api) messageQuery(r *http.Request) (q consumer.Query, err error) {
	if q.Filter = r.FormValue("filter"); q.Filter == "" {
		q.Filter = "#"
	}
	if !consumer.ValidFilter(q.Filter) {
		return q, invalid("filter %.80q is no topic filter such as d/+/tele/#", q.Filter)
	}
	limit, err := number(r, "limit")
	if err != nil {
		return q, err
	}
	q.Limit = int(min(limit, consumer.MaxLimit))
	if text := r.FormValue("wait"); text != "" {
		q.Wait, err = time.ParseDuration(text)
		if err != nil || q.Wait < 0 || q.Wait > consumer.MaxWait {
			return q, invalid("wait=%.40q is no duration from 0s to %s", text, consumer.MaxWait)
		}
	}
	return q, nil
}

func (a *api) listConsumers(r *http.Request) (ConsumerList, error) {
	page, next, err := pageOf(r, a.config.Consumers.List(), func(c consumer.Consumer) string { return c.Name })
	list := ConsumerList{Consumers: page, Next: next}
	list.First, list.End = a.config.Consumers.Range()
	return list, err
}

func (a *api) showConsumer(r *http.Request) (consumer.Consumer, error) {
	return a.config.Consumers.Get(r.PathValue("name"))
}

// expected reads the place that the request's If-Match names.
func expected(r *http.Request) (consumer.Position, error) {
	match := r.Header.Get("If-Match")
	if match == "" {
		return 0, problem(http.StatusPreconditionRequired, "precondition", `say If-Match: "NEXT" with the consumer's place as you know it, or If-None-Match: * to make a new one`)
	}
	p, err := strconv.ParseUint(strings.Trim(match, `"`), 10, 64)
	if err != nil || match != etag(consumer.Position(p)) {
		return 0, invalid("If-Match: %.80s is no place such as \"1234\"", match)
	}
	return consumer.Position(p), nil
}

// putConsumer makes a consumer, or moves it if nobody else has meanwhile. Orders are kept in the audit log; that a
// consumer went on by what it has read is none.
func (a *api) putConsumer(r *http.Request, body ConsumerPlace) (one consumer.Consumer, err error) {
	name := r.PathValue("name")
	next, err := a.placeOf(r.Context(), body)
	if err != nil {
		return one, err
	}
	if r.Header.Get("If-None-Match") == "*" {
		if body.Filter == "" {
			body.Filter = "#"
		}
		err = a.orderConsumer(r, "consumer.create", name, func() (err error) {
			one, err = a.config.Consumers.Create(r.Context(), name, body.Filter, next)
			return err
		})
		return one, err
	}
	from, err := expected(r)
	if err != nil {
		return one, err
	}
	move := func() (err error) {
		one, err = a.config.Consumers.Move(r.Context(), name, from, next, body.Filter)
		return err
	}
	if former, unknown := a.config.Consumers.Get(name); unknown == nil && (former.Sink || body.From != "" || next < from || body.Filter != "" && body.Filter != former.Filter) {
		err = a.orderConsumer(r, "consumer.move", name, move)
	} else {
		err = move()
	}
	return one, err
}

func (a *api) placeOf(ctx context.Context, body ConsumerPlace) (consumer.Position, error) {
	if (body.From == "") == (body.Next == 0) {
		return 0, invalid("say one of next and from")
	}
	if body.From == "" {
		return body.Next, nil
	}
	return a.config.Consumers.Resolve(ctx, body.From)
}

// deleteConsumer answers with what was removed. It has no use for its body, which clients
// of the former version send.
func (a *api) deleteConsumer(r *http.Request, _ ConsumerPlace) (consumer.Consumer, error) {
	name := r.PathValue("name")
	from, err := expected(r)
	if err != nil {
		return consumer.Consumer{}, err
	}
	one, err := a.config.Consumers.Get(name)
	if err == nil && a.sinkRuns(name) {
		err = fmt.Errorf("%w: take it out of the sinks there first, and reload", consumer.ErrSink)
	}
	if err == nil {
		err = a.orderConsumer(r, "consumer.delete", name, func() error { return a.config.Consumers.Delete(r.Context(), name, from) })
	}
	return one, err
}

func (a *api) sinkRuns(name string) bool { return a.config.Sinks != nil && a.config.Sinks.Runs(name) }

// orderConsumer carries out what goes into the audit log.
func (a *api) orderConsumer(r *http.Request, action, name string, do func() error) error {
	return a.config.Fleet.Audited(r.Context(), actor(r), fleet.Note{Action: action, Subject: "consumer " + name}, func() (string, error) {
		return "", do()
	})
}

func (a *api) listSinks(r *http.Request) (SinkList, error) {
	var sinks []consumer.SinkStatus
	if a.config.Sinks != nil {
		sinks = a.config.Sinks.Status(r.Context())
	}
	page, next, err := pageOf(r, sinks, func(s consumer.SinkStatus) string { return s.Name })
	return SinkList{Sinks: page, Next: next}, err
}

// consumerProblem translates the errors of package consumer; nil if err is none of them.
func consumerProblem(err error) *Problem {
	if gap, ok := errors.AsType[*consumer.Gap](err); ok {
		p := problem(http.StatusGone, codeGone, gap.Error())
		p.From, p.First = uint64(gap.From), uint64(gap.First)
		return p
	}
	for _, kind := range []struct {
		err    error
		status int
		code   string
	}{
		{consumer.ErrUnknown, http.StatusNotFound, codeUnknownConsumer},
		{consumer.ErrExists, http.StatusPreconditionFailed, codeMoved},
		{consumer.ErrMoved, http.StatusPreconditionFailed, codeMoved},
		{consumer.ErrSink, http.StatusConflict, "sink"},
		{consumer.ErrInvalid, http.StatusBadRequest, "invalid"},
		{consumer.ErrTooMany, http.StatusConflict, "too-many"},
	} {
		if errors.Is(err, kind.err) {
			return problem(kind.status, kind.code, err.Error())
		}
	}
	return nil
}
