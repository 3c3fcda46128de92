package agent

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func TestFailedLoopIsStartedAgainMoreAndMoreSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		var at []time.Duration
		supervise(ctx, slog.New(slog.DiscardHandler), func(context.Context) error {
			at = append(at, time.Since(start))
			switch len(at) {
			case 10:
				cancel()
			case 3:
				panic("a bug")
			}
			return errors.New("failed")
		})
		want := []time.Duration{0, 1, 3, 7, 15, 31, 63, 123, 183, 243}
		for i := range want {
			if at[i] != want[i]*time.Second {
				t.Errorf("start %d after %s, want %s", i, at[i], want[i]*time.Second)
			}
		}
	})
}

func TestFlappingLinkWritesTheStatusRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		writes := 0
		w := newStatusWriter(t.TempDir(), func() Snapshot { writes++; return Snapshot{} }, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		done := make(chan struct{})
		go func() { defer close(done); _ = w.run(ctx) }()
		for range 36000 { // ten changes a second
			w.poke()
			time.Sleep(100 * time.Millisecond)
		}
		<-done
		if most := int(time.Hour/writeGap) + writeBurst + 2; writes > most {
			t.Errorf("%d writes in an hour, want at most %d", writes, most)
		}
	})
}

func TestSteadyLinkWritesTheStatusOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		writes := 0
		w := newStatusWriter(t.TempDir(), func() Snapshot { writes++; return Snapshot{} }, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour+time.Second)
		defer cancel()
		_ = w.run(ctx)
		if writes < 50 || writes > 61 {
			t.Errorf("%d writes in an hour", writes)
		}
	})
}
