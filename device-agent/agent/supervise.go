package agent

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

// Waits before a failed loop is started again: doubling, so that one which
// fails at once costs a device in the field little power and log space.
const (
	firstRestart = time.Second
	lastRestart  = time.Minute
)

// supervise runs loop until ctx ends, and starts it again when it returns or
// panics before: nobody is there to restart a board on a mast.
func supervise(ctx context.Context, log *slog.Logger, loop func(context.Context) error) {
	wait := firstRestart
	for {
		started := time.Now()
		err := guard(ctx, loop)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > lastRestart {
			wait = firstRestart
		}
		log.Error("loop ended; starting it again", "err", err, "in", wait)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		wait = min(2*wait, lastRestart)
	}
}

// guard turns a panic of loop into its error.
func guard(ctx context.Context, loop func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return loop(ctx)
}
