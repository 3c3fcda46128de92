package consumer

import (
	"context"
	"errors"
	"io"
	"time"
)

// Limits of a page.
const (
	DefaultLimit = 100
	MaxLimit     = 1000
	MaxWait      = 30 * time.Second
	maxPage      = 4 << 20         // bytes of payload and topics; one message may exceed it
	maxScan      = 5 * time.Second // that a page may take to look for messages that match
)

// Query asks for a page.
type Query struct {
	Filter string
	From   Position      // 0: the oldest that is kept
	Limit  int           // 0: DefaultLimit; at most MaxLimit
	Wait   time.Duration // for the first message if there is none yet; at most MaxWait
}

// Page is a part of the messages. Next is where the following one begins. A page without messages is no sign of the end:
// CaughtUp says that there was nothing more when it was made.
type Page struct {
	Messages []Message `json:"messages"`
	Next     Position  `json:"next"`
	CaughtUp bool      `json:"caught_up"`
}

// Page returns the messages that a query picks. An error that is a *Gap says that its place is no longer kept.
func (c *Consumers) Page(ctx context.Context, q Query) (Page, error) {
	limit := q.Limit
	if limit <= 0 {
		limit = DefaultLimit
	}
	limit = min(limit, MaxLimit)
	f := c.Feed(q.Filter, q.From)
	defer f.Close()
	page := Page{Messages: []Message{}}
	scan, stop := context.WithTimeout(ctx, maxScan)
	defer stop()
	for size := 0; len(page.Messages) < limit && size < maxPage; {
		m, err := f.TryNext(scan)
		if errors.Is(err, io.EOF) && len(page.Messages) == 0 && q.Wait > 0 {
			wait, stop := context.WithTimeout(ctx, min(q.Wait, MaxWait))
			q.Wait = 0
			m, err = f.Next(wait)
			stop()
			if err != nil && wait.Err() != nil && ctx.Err() == nil {
				err = io.EOF
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			page.Next, page.CaughtUp = f.Place(), true
			return page, nil
		case isGap(err) && len(page.Messages) > 0: // the next page begins with it
			page.Next = page.Messages[len(page.Messages)-1].Position + 1
			return page, nil
		case ctx.Err() == nil && scan.Err() != nil: // looked through much; the next page goes on
			page.Next = f.Place()
			return page, nil
		default:
			return Page{}, err
		}
		page.Messages = append(page.Messages, m)
		size += len(m.Payload) + len(m.Topic)
	}
	page.Next = f.Place()
	return page, nil
}
