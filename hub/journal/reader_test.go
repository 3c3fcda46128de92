package journal

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// next returns the next record, which must come at once.
func next(t testing.TB, r *Reader) (Position, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, b, err := r.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return p, string(b)
}

// done makes a context of which the reader learns at once that it is over.
func done() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestAReaderFollowsTheEndThroughSegments(t *testing.T) {
	m := newMemory()
	j := created(t, inMemory(m))
	const n = 500
	read := make(chan error, 1)
	go func() {
		r := j.Read(0)
		defer r.Close()
		for i := range n {
			p, b, err := r.Next(context.Background())
			if err != nil || p != Position(i+1) || !strings.HasPrefix(string(b), fmt.Sprintf("%d:", i)) {
				read <- fmt.Errorf("record %d: %d %.10q %w", i, p, b, err)
				return
			}
		}
		read <- nil
	}()
	l := &ledger{}
	for i := range n {
		if err := l.append(j, i); err != nil {
			t.Fatal(err)
		}
		if i%7 == 0 {
			l.wait(t)
		}
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	if j.Stats().Segments < 10 {
		t.Fatal("the records fit into too few segments for this test")
	}
	closed(t, j)
}

func TestAReaderBeginsAnywhereAndSeesOnlyWhatIsCommitted(t *testing.T) {
	m := newMemory()
	c := inMemory(m)
	j := created(t, c)
	for i := range 200 {
		appended(t, j, fmt.Sprint(i+1, strings.Repeat("x", 100)))
	}
	for from := Position(0); from <= 200; from += 3 {
		r := j.Read(from)
		if p, b := next(t, r); p != max(from, 1) || !strings.HasPrefix(b, fmt.Sprint(uint64(max(from, 1)), "x")) {
			t.Fatalf("from %d: %d %.10s", from, p, b)
		}
		r.Close()
	}
	r := j.Read(201)
	defer r.Close()
	if _, _, err := r.Next(done()); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	// What fails is never seen; reading goes on after the gap.
	l := &ledger{}
	m.arm(fault{at: 1})
	if err := l.append(j, 10); err != nil {
		t.Fatal(err)
	}
	l.wait(t)
	for l.append(j, 20) != nil { // until the journal accepts again
		runtime.Gosched()
	}
	l.wait(t)
	if p, b := next(t, r); p != 202 || b != l.entries[1].text || l.last() != durable {
		t.Fatalf("read %d %q", p, b)
	}
	ahead := j.Read(300)
	var e *AheadError
	if _, _, err := ahead.Next(done()); !errors.As(err, &e) || e.Last != 202 {
		t.Fatal(err)
	}
	waits := make(chan error)
	go func() {
		_, _, err := r.Next(context.Background())
		waits <- err
	}()
	closed(t, j)
	if err := <-waits; !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func TestRetentionRemovesWholeOldSegmentsAndReadersAreTold(t *testing.T) {
	m := newMemory()
	c := inMemory(m)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c.Now = func() time.Time { return now }
	c.Retain = Retain{Bytes: 10 * c.SegmentSize, Age: time.Hour}
	j := created(t, c)
	fill := func(segments int) {
		t.Helper()
		for want := j.Stats().Segments + segments; j.Stats().Segments < want; {
			appended(t, j, strings.Repeat("x", 1000))
		}
	}
	fill(5)
	slow := j.Read(0)
	defer slow.Close()
	next(t, slow)
	if err := j.Checkpoint(j.Last() + 1); err != nil || j.Stats().Segments != 6 {
		t.Fatalf("%v, and %d segments are left of 6 that are within Retain", err, j.Stats().Segments)
	}
	if err := j.Checkpoint(j.Last()); err == nil {
		t.Fatal("a checkpoint went back")
	}
	if err := j.Checkpoint(j.Last() + 2); err == nil {
		t.Fatal("a checkpoint skipped a record that isn't there yet")
	}
	j.Hold("webhook", 1)
	fill(12)
	last := j.Last()
	if err := j.Checkpoint(last); err != nil {
		t.Fatal(err)
	}
	if n := j.Stats().Segments; n != 11 { // ten that are kept and the one that is written to
		t.Fatalf("%d segments are left", n)
	}
	var gone *GoneError
	if _, _, err := j.Read(1).Next(done()); !errors.As(err, &gone) || gone.First != j.First() || gone.First == 1 {
		t.Fatal(err)
	}
	// A reader may finish the segment that it has open.
	for p := Position(2); ; p++ {
		got, _, err := slow.Next(done())
		if errors.As(err, &gone) {
			break
		}
		if err != nil || got != p || p >= j.First() {
			t.Fatal(got, err)
		}
	}
	if s := j.Stats(); s.Holds["webhook"] != 1 || s.DiskBytes != 11*c.SegmentSize {
		t.Fatalf("%+v", s)
	}
	j.Forget("webhook")
	now = now.Add(2 * time.Hour)
	if err := j.Checkpoint(last); err != nil || j.Stats().Segments != 1 {
		t.Fatalf("%v, and %d segments are left, all but one of them too old", err, j.Stats().Segments)
	}
	closed(t, j)
	j, found, err := opened(c)
	if err != nil || len(found) != 1 || found[0].position != last || j.Last() != last {
		t.Fatalf("replayed %d records, the last one is %d: %v", len(found), j.Last(), err)
	}
	closed(t, j)
	names, _ := m.List("j")
	if len(names) != 3 {
		t.Fatalf("the folder holds %v", names)
	}
}

// A board without a clock starts in 1970; a wrong time server may say next year.
func TestAWallClockThatJumpedDoesNotAgeWhatIsOlder(t *testing.T) {
	m := newMemory()
	c := inMemory(m)
	c.Retain = Retain{Bytes: 1 << 30, Age: time.Hour}
	skew := time.Duration(0)
	c.Now = func() time.Time { return time.Now().Add(skew) }
	j := created(t, c)
	for range 5 {
		appended(t, j, strings.Repeat("x", 11_000))
	}
	closed(t, j)
	for _, skew = range []time.Duration{-365 * 24 * time.Hour, 0} {
		j, _ = replayed(t, c)
		appended(t, j, "x")
		if err := j.Checkpoint(j.Last()); err != nil || j.First() != 1 {
			t.Fatalf("the oldest record is %d: %v", j.First(), err)
		}
		closed(t, j)
	}
}
