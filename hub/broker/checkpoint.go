package broker

import (
	"fmt"
	"slices"
	"time"

	"github.com/fleethub/fleethub/hub/journal"
)

// A checkpoint writes all of the state into the journal anew, while the hub works, so
// that a restart need not read what is older. Each session is written as it is at one
// moment, with the gate closed: no message is on its way into a queue and not yet
// entered. What happens before and after is entered around it in the same order, so
// the moments of different sessions need not be one.

const (
	keepInterval = time.Second
	// checkpointEvery is how often one is made though little was written: what is kept for
	// readers for a time is trimmed then.
	checkpointEvery = time.Hour
	sessionsATime   = 64 // between two openings of the gate
	// checkpointAhead is how many octets a checkpoint has waiting for the disk, about.
	checkpointAhead = 2 << 20
)

// keep makes checkpoints: when the journal has grown by as much as the state takes,
// once an hour, and when something that it should have could not be entered.
func (b *Broker) keep() {
	tick := time.NewTicker(keepInterval)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-b.context.Done():
			return
		case <-tick.C:
		}
		grown := b.ingest.Appended() - b.checkpointed
		stale := b.ingest.Stale()
		old := time.Since(last) >= checkpointEvery
		if !stale && !old && grown < max(uint64(b.config.CheckpointAfter), 2*b.written) {
			continue
		}
		last = time.Now()
		if err := b.checkpoint(); err != nil {
			b.ingest.MarkStale() // try again
			if b.context.Err() == nil {
				b.log.Error("checkpoint failed, trying again", "error", err)
			}
		}
	}
}

// checkpoint writes the state anew. On an error the checkpoint before it stands.
func (b *Broker) checkpoint() error {
	begin := b.ingest.Appended()
	// From here on, what was entered before is in memory, once its waiters have run.
	var start journal.Position
	err := b.await(func(w journal.Waiter) (err error) {
		start, err = b.ingest.Mark(w)
		return err
	})
	if err != nil {
		return fmt.Errorf("begin checkpoint: %w", err)
	}
	for chunk := range slices.Chunk(b.sessions.all(), sessionsATime) {
		for _, s := range chunk {
			if err := b.keepQueue(s, start); err != nil {
				return err
			}
		}
		if err := b.writeSessions(chunk, start); err != nil {
			return err
		}
		if err := b.breathe(); err != nil {
			return err
		}
		if b.context.Err() != nil {
			return b.context.Err()
		}
	}
	if err := b.writeRetained(start); err != nil {
		return err
	}
	if err := b.await(func(w journal.Waiter) error { _, err := b.ingest.Mark(w); return err }); err != nil {
		return fmt.Errorf("end checkpoint: %w", err)
	}
	if err := b.ingest.Checkpoint(start); err != nil {
		return err
	}
	b.checkpointed = b.ingest.Appended()
	b.written = b.checkpointed - begin
	b.counters.checkpoints.Add(1)
	return nil
}

// breathe waits for the disk if the checkpoint has a good deal waiting for it: the
// journal's buffer is for messages first.
func (b *Broker) breathe() error {
	now := b.ingest.Appended()
	if now-b.breathed < checkpointAhead {
		return nil
	}
	b.breathed = now
	return b.await(func(w journal.Waiter) error { _, err := b.ingest.Mark(w); return err })
}

// keepQueue writes a queue's messages again, before the session that names them: that
// needs no closed gate, and a long queue takes a while. What comes meanwhile lies
// behind start.
func (b *Broker) keepQueue(s *Session, start journal.Position) error {
	s.mu.Lock()
	messages := make([]*message, 0, s.box.waiting)
	if s.stored {
		for _, e := range s.box.entries {
			if !e.done {
				messages = append(messages, e.message)
			}
		}
	}
	s.mu.Unlock()
	for _, m := range messages {
		if err := b.keepMessage(m, start); err != nil {
			return err
		}
		if err := b.breathe(); err != nil {
			return err
		}
	}
	return nil
}

func (b *Broker) writeSessions(sessions []*Session, start journal.Position) error {
	b.gate.Lock()
	defer b.gate.Unlock()
	for _, s := range sessions {
		if err := b.writeSession(s, start); err != nil {
			return err
		}
	}
	return nil
}

func (b *Broker) writeSession(s *Session, start journal.Position) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || !s.stored {
		return nil
	}
	for _, e := range s.box.entries {
		if !e.done {
			if err := b.keepMessage(e.message, start); err != nil {
				return err
			}
		}
	}
	_, err := b.ingest.Session(s.full(), nil)
	return err
}

// keepMessage writes a message again if it lies before start.
func (b *Broker) keepMessage(m *message, start journal.Position) error {
	if at := journal.Position(m.position.Load()); at == 0 || at >= start {
		return nil
	}
	at, err := b.ingest.Keep(&m.Message)
	if err == nil {
		m.position.Store(uint64(at))
	}
	return err
}

// writeRetained writes what is retained. What is set meanwhile says so by itself, under
// a greater number.
func (b *Broker) writeRetained(start journal.Position) error {
	var names []string
	b.retained.Range(func(name string, m *message) bool {
		if !m.volatile {
			names = append(names, name)
		}
		return true
	})
	for _, name := range names {
		if m, ok := b.retained.Get(name); ok {
			if err := b.keepMessage(m, start); err != nil {
				return err
			}
			if err := b.breathe(); err != nil {
				return err
			}
		}
	}
	for chunk := range slices.Chunk(names, sessionsATime) {
		if err := b.writeSomeRetained(chunk, start); err != nil {
			return err
		}
	}
	return nil
}

func (b *Broker) writeSomeRetained(names []string, start journal.Position) error {
	b.gate.Lock()
	defer b.gate.Unlock()
	for _, name := range names {
		m, ok := b.retained.Get(name)
		if !ok || m.volatile {
			continue
		}
		if err := b.keepMessage(m, start); err != nil {
			return err
		}
		if err := b.ingest.Retain(name, m.Number, false); err != nil {
			return err
		}
	}
	return nil
}
