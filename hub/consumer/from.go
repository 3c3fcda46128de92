package consumer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Resolve returns the place that a text means: "start", the oldest that is kept; "now", the end; a position; a time such
// as 2026-03-01T08:00:00Z, or how long ago such as -1h: the first message accepted at that time or later. An error
// that matches ErrInvalid says what the text should be.
func (c *Consumers) Resolve(ctx context.Context, text string) (Position, error) {
	first, end := c.Range()
	switch {
	case text == "start":
		return first, nil
	case text == "now":
		return end, nil
	case strings.HasPrefix(text, "-"):
		if ago, err := time.ParseDuration(text); err == nil {
			return c.at(ctx, c.config.Now().Add(ago))
		}
	default:
		if p, err := strconv.ParseUint(text, 10, 64); err == nil {
			return max(Position(p), 1), nil // 0 is before the first one
		}
		if at, err := time.Parse(time.RFC3339, text); err == nil {
			return c.at(ctx, at)
		}
	}
	return 0, fmt.Errorf("%w: %.40q is no place: say start, now, a position, a time such as 2026-03-01T08:00:00Z, or how long ago such as -1h", ErrInvalid, text)
}

// near is how few records are read one by one; a step towards them costs about half of a segment of the journal.
const near = 1 << 16

// at returns the place of the first message of a time, halving the journal until it is near. Where the hub's clock was
// put back, times in the journal go back, too, and one of the places that fit is found.
func (c *Consumers) at(ctx context.Context, at time.Time) (Position, error) {
	low, high := c.Range() // what is before low is older, what is at high or later is not
	for high-low > near {
		middle := low + (high-low)/2
		p, older, err := c.older(ctx, middle, high, at)
		if err != nil {
			return 0, err
		}
		if older {
			low = p + 1
		} else {
			high = middle
		}
	}
	f := c.Feed("#", low)
	defer f.Close()
	for {
		m, err := f.TryNext(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return f.Place(), nil
		case isGap(err): // trimmed meanwhile; what is left is younger than that
		case err != nil:
			return 0, err
		case !m.Time.Before(at):
			return m.Position, nil
		}
	}
}

// older reads the first message from middle on and before high. It reports whether it is older than at, and where it is.
func (c *Consumers) older(ctx context.Context, middle, high Position, at time.Time) (Position, bool, error) {
	f := c.Feed("#", middle)
	defer f.Close()
	for {
		m, err := f.TryNext(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return 0, false, nil
		case isGap(err):
		case err != nil:
			return 0, false, err
		default:
			return m.Position, m.Position < high && m.Time.Before(at), nil
		}
	}
}

func isGap(err error) bool {
	_, ok := errors.AsType[*Gap](err)
	return ok
}
