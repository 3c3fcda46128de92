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

// ConsumerList is every consumer, in order of name, and what of the journal there is to read.
type ConsumerList struct {
	Consumers []consumer.Consumer `json:"consumers"`
	First     consumer.Position   `json:"first"` // the oldest record that is kept
	End       consumer.Position   `json:"end"`   // what the next record gets
}

// ConsumerPlace is the body of a PUT of a consumer. One of Next and From is set.
type ConsumerPlace struct {
	Next   consumer.Position `json:"next,omitempty"`
	From   string            `json:"from,omitempty"`   // start, now, a position, a time, or how long ago such as -1h
	Filter string            `json:"filter,omitempty"` // of topics; "": as it was, or # for a new one
}

// SinkList is every webhook, in order of name.
type SinkList struct {
	Sinks []consumer.SinkStatus `json:"sinks"`
}

func (a *api) listMessages(w http.ResponseWriter, r *http.Request) {
	q, err := a.messageQuery(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	select {
	case a.reads <- struct{}{}:
		defer func() { <-a.reads }()
	default:
		a.fail(w, r, problem(http.StatusServiceUnavailable, "busy", "too many requests for messages are under way; ask again"))
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(a.drain, cancel)()
	if q.From, err = a.config.Consumers.Resolve(ctx, placeText(r.FormValue("from"))); err == nil {
		if first, end := a.config.Consumers.Range(); q.From > end {
			err = invalid("from=%d is after the journal's end, %d", q.From, end)
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
	if err != nil {
		if a.drain.Err() != nil {
			err = problem(http.StatusServiceUnavailable, "stopping", stopping)
		}
		a.fail(w, r, err)
		return
	}
	writeJSON(w, page)
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

func (a *api) listConsumers(w http.ResponseWriter, _ *http.Request) {
	list := ConsumerList{Consumers: a.config.Consumers.List()}
	list.First, list.End = a.config.Consumers.Range()
	writeJSON(w, list)
}

func (a *api) showConsumer(w http.ResponseWriter, r *http.Request) {
	one, err := a.config.Consumers.Get(r.PathValue("name"))
	a.answerConsumer(w, r, one, err)
}

// answerConsumer answers with a consumer, whose place is its entity tag (RFC 9110 §8.8.3).
func (a *api) answerConsumer(w http.ResponseWriter, r *http.Request, one consumer.Consumer, err error) {
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Set("ETag", etag(one.Next))
	writeJSON(w, one)
}

func etag(p consumer.Position) string { return `"` + strconv.FormatUint(uint64(p), 10) + `"` }

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
func (a *api) putConsumer(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	var body ConsumerPlace
	if err := readJSON(w, r, &body); err != nil {
		a.fail(w, r, err)
		return
	}
	next, err := a.placeOf(r.Context(), body)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	var one consumer.Consumer
	if r.Header.Get("If-None-Match") == "*" {
		if body.Filter == "" {
			body.Filter = "#"
		}
		err = a.orderConsumer(r, "consumer.create", name, func() (err error) {
			one, err = a.config.Consumers.Create(r.Context(), name, body.Filter, next)
			return err
		})
		a.answerConsumer(w, r, one, err)
		return
	}
	from, err := expected(r)
	if err != nil {
		a.fail(w, r, err)
		return
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
	a.answerConsumer(w, r, one, err)
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

func (a *api) deleteConsumer(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	from, err := expected(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	one, err := a.config.Consumers.Get(name)
	if err == nil && a.sinkRuns(name) {
		err = fmt.Errorf("%w: take it out of the sinks there first, and reload", consumer.ErrSink)
	}
	if err == nil {
		err = a.orderConsumer(r, "consumer.delete", name, func() error { return a.config.Consumers.Delete(r.Context(), name, from) })
	}
	a.answerConsumer(w, r, one, err)
}

func (a *api) sinkRuns(name string) bool { return a.config.Sinks != nil && a.config.Sinks.Runs(name) }

// orderConsumer carries out what goes into the audit log.
func (a *api) orderConsumer(r *http.Request, action, name string, do func() error) error {
	return a.config.Fleet.Audited(r.Context(), actor(r), fleet.Note{Action: action, Subject: "consumer " + name}, func() (string, error) {
		return "", do()
	})
}

func (a *api) listSinks(w http.ResponseWriter, r *http.Request) {
	list := SinkList{Sinks: []consumer.SinkStatus{}}
	if a.config.Sinks != nil {
		list.Sinks = append(list.Sinks, a.config.Sinks.Status(r.Context())...)
	}
	writeJSON(w, list)
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
