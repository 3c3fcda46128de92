package consumer

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/topic"
)

// Gap is what a reader gets, as an error, whose place is no longer kept: the records from From on, First not included,
// are gone. Not each of them was a message.
type Gap struct {
	From  Position `json:"from"`
	First Position `json:"first"` // the oldest that is left
}

// Error says what is lost.
func (g *Gap) Error() string {
	return fmt.Sprintf("the %d records from %d to %d are no longer kept (journal.retain_bytes, retain_age); the oldest one is at %d", g.First-g.From, g.From, g.First-1, g.First)
}

// Feed reads the messages of devices that match a filter, in the order of the journal. It serves one goroutine at a time.
// Close it after use.
type Feed struct {
	journal Journal
	reader  *journal.Reader
	filter  string
	next    Position // the next record that it looks at
	ended   context.Context
}

// Feed returns the messages from a place on; 0 is the oldest that is kept.
func (c *Consumers) Feed(filter string, from Position) *Feed {
	if from == 0 {
		from = c.config.Journal.First()
	}
	ended, end := context.WithCancel(context.Background())
	end()
	return &Feed{journal: c.config.Journal, reader: c.config.Journal.Read(from), filter: filter, next: from, ended: ended}
}

// Next returns the next message and waits for it until ctx is done. What it returns may be kept. Errors: a *Gap, after
// which it goes on with the oldest record that is left; and as journal.Reader has them. After ctx's the feed is where it
// was.
func (f *Feed) Next(ctx context.Context) (Message, error) { return f.read(ctx, ctx) }

// TryNext is Next that doesn't wait: at the end of the journal it returns io.EOF, and may be called again later.
func (f *Feed) TryNext(ctx context.Context) (Message, error) {
	m, err := f.read(ctx, f.ended)
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		err = io.EOF
	}
	return m, err
}

// Place returns the first record that the feed hasn't looked at yet: where another would go on.
func (f *Feed) Place() Position { return f.next }

// Close lets go of the file that is being read.
func (f *Feed) Close() error { return f.reader.Close() }

// lookEvery is how many records are read between two looks at whether the caller still waits.
const lookEvery = 256

func (f *Feed) read(ctx, waiting context.Context) (Message, error) {
	for n := 0; ; n++ {
		if n%lookEvery == 0 && ctx.Err() != nil {
			return Message{}, ctx.Err()
		}
		p, record, err := f.reader.Next(waiting)
		if err != nil {
			return Message{}, f.failed(err)
		}
		f.next = p + 1
		m, ok := ingest.Accepted(record)
		if !ok || m.From.Role != ingest.SenderDevice || !topic.Match(f.filter, m.Topic) {
			continue
		}
		return Message{
			Position: p, Time: m.Time, Topic: m.Topic, Payload: append([]byte(nil), m.Payload...), // the record is valid until the next read
			QoS: m.QoS, Retain: m.Retain, Device: m.From.ID,
		}, nil
	}
}

// failed turns a trimmed place into a Gap and goes on after it.
func (f *Feed) failed(err error) error {
	gone, ok := errors.AsType[*journal.GoneError](err)
	if !ok {
		return err
	}
	gap := &Gap{From: f.next, First: gone.First}
	closed := f.reader.Close()
	f.reader, f.next = f.journal.Read(gone.First), gone.First
	return errors.Join(closed, gap)
}
