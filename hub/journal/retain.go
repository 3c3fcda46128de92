package journal

import "fmt"

// Checkpoint makes durable that a replay starts with the record at p, or with the next one if there is none: what is
// before has been stored elsewhere. p is at most one after the last committed record. Older records are kept for readers
// as Config.Retain says; whole segments beyond that are removed. A checkpoint can't be taken back; the same one again
// only removes what has grown too old. It needs no space on the disk.
func (j *Journal) Checkpoint(p Position) error {
	j.checkpointing.Lock()
	defer j.checkpointing.Unlock()
	j.mu.Lock()
	closed, checkpoint, committed := j.refusing == ErrClosed, j.checkpoint, j.committed
	trim := j.expired(p)
	segments := j.segments
	j.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case p < checkpoint:
		return fmt.Errorf("the journal's checkpoint is %d and can't go back to %d", checkpoint, p)
	case p > committed+1:
		return fmt.Errorf("the journal's checkpoint can't be %d: the last committed record is %d", p, committed)
	case p == checkpoint && trim == 0:
		return nil
	}
	// First it is durable that they are gone, then they go: a power cut between leaves files that Open removes, never a gap.
	if err := j.control.update(func(c *controlState) { c.checkpoint, c.first = p, segments[trim].number }); err != nil {
		return err
	}
	j.mu.Lock()
	j.checkpoint = p
	j.segments = j.segments[trim:]
	first := j.segments[0].firstPosition
	late := make(map[string]Position)
	for name, held := range j.holds {
		if held < first && trim > 0 {
			late[name] = held
		}
	}
	j.mu.Unlock()
	for name, held := range late {
		j.config.Log.Warn("a consumer is so far behind that records it hasn't read were removed", "consumer", name, "at", held, "oldest", first)
	}
	for _, s := range segments[:trim] {
		if err := j.config.FS.Remove(s.path); err != nil {
			j.config.Log.Warn("a segment that is no longer needed can't be removed; the next start will try again", "file", s.path, "err", err)
		}
	}
	return nil
}

// expired returns how many of the oldest segments hold nothing from p on and are more than Retain allows. The caller
// holds mu.
func (j *Journal) expired(p Position) int {
	n := 0 // segments that a replay from p doesn't need
	var kept int64
	for n+1 < len(j.segments) && j.segments[n+1].firstPosition <= p {
		kept += j.segments[n].size
		n++
	}
	now := j.config.Now()
	trim := 0
	for ; trim < n; trim++ {
		age := now.Sub(j.segments[trim+1].begun)
		if kept <= j.config.Retain.Bytes && age <= j.config.Retain.Age {
			break
		}
		kept -= j.segments[trim].size
	}
	return trim
}

// Hold notes how far a consumer has come: it still needs the record at p. Retain wins over consumers; one that has fallen
// behind what is kept is logged, and its reader gets a *GoneError. The place isn't stored: the consumer does that.
func (j *Journal) Hold(consumer string, p Position) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.holds[consumer] = p
}

// Forget removes a consumer that there no longer is.
func (j *Journal) Forget(consumer string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.holds, consumer)
}
