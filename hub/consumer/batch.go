package consumer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxBody is about how many bytes a delivery's body may have: it ends with the message that reaches it.
const maxBody = 1 << 20

// batch is one delivery: messages in JSON. It belongs to its sink's goroutine.
type batch struct {
	buf         bytes.Buffer
	count       int
	first, last Position  // of its messages
	oldest      time.Time // when its first message was accepted
	gap         *Gap      // what was lost before it; nil: nothing
}

func (b *batch) add(m Message) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if b.count == 0 {
		b.first, b.oldest = m.Position, m.Time
		b.buf.WriteByte('[')
	} else {
		b.buf.Truncate(b.buf.Len() - 1)
		b.buf.WriteByte(',')
	}
	b.buf.Write(data)
	b.buf.WriteByte(']')
	b.last = m.Position
	b.count++
	return nil
}

// body returns the JSON array.
func (b *batch) body() []byte { return b.buf.Bytes() }

// id is the DeliveryHeader.
func (b *batch) id() string {
	sum := sha256.Sum256(b.body())
	return fmt.Sprintf("%d-%d-%x", b.first, b.last, sum[:8])
}

// keepBody is how large a buffer may stay between deliveries.
const keepBody = 2 * maxBody

func (b *batch) reset() {
	buf := b.buf
	if buf.Cap() > keepBody {
		buf = bytes.Buffer{}
	}
	buf.Reset()
	*b = batch{buf: buf}
}

// lost notes that a gap lies before what follows, together with one that was noted before.
func (b *batch) lost(gap *Gap) {
	if b.gap != nil {
		gap = &Gap{From: min(b.gap.From, gap.From), First: gap.First}
	}
	b.gap = gap
}

// errRewind says that a batch can't be made as it was, or not in one piece: begin again at the stored place.
var errRewind = errors.New("read again")

// gathering says how a batch is made.
type gathering struct {
	feed  *Feed
	most  int           // messages
	wait  time.Duration // for others after the first one
	until Position      // not 0: the batch was made before, of every message to there and none after
	idle  func() error  // called when there is nothing to read, before waiting; may end the wait with an error
	gap   func(*Gap)    // told of what is lost
}

// gather fills a batch. It waits for the first message until first is done, whose error it returns then, and for others
// until ctx is. An empty batch without an error says that of one made before nothing is left.
func (b *batch) gather(ctx, first context.Context, g gathering) error {
	var full context.Context // ends when g.wait has passed; nil before the first message
	for {
		if g.until != 0 && g.feed.Place() > g.until || g.until == 0 && (b.count >= g.most || b.buf.Len() >= maxBody) {
			return nil
		}
		m, err := g.feed.TryNext(ctx)
		if errors.Is(err, io.EOF) && g.until == 0 {
			waiting := full
			if b.count == 0 {
				if err := g.idle(); err != nil {
					return err
				}
				waiting = first
			}
			m, err = g.feed.Next(waiting)
			if err != nil && b.count > 0 && waiting.Err() != nil && ctx.Err() == nil {
				return nil // waited long enough
			}
		}
		gap, lost := errors.AsType[*Gap](err)
		switch {
		case lost && b.count == 0:
			g.gap(gap)
			b.lost(gap)
			continue
		case lost, g.until != 0 && (errors.Is(err, io.EOF) || err == nil && m.Position > g.until):
			return errRewind
		case err != nil:
			return err
		}
		if err := b.add(m); err != nil {
			return err
		}
		if full == nil {
			var stop context.CancelFunc
			full, stop = context.WithTimeout(ctx, g.wait)
			defer stop()
		}
	}
}
