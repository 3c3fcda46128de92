package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/firmware-sim/measure"
	"github.com/fleethub/fleethub/firmware-sim/scenario"
	"github.com/fleethub/fleethub/firmware-sim/swarm"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"
)

// progress shows how a run is going: bars on a terminal, else one line a
// second.
type progress struct {
	w        io.Writer
	plan     scenario.Scenario
	recorder *measure.Recorder
	now      atomic.Value // swarm.Phase
}

func newProgress(w io.Writer, plan scenario.Scenario, recorder *measure.Recorder) *progress {
	p := &progress{w: w, plan: plan, recorder: recorder}
	p.now.Store(swarm.PhaseConnecting)
	return p
}

func (p *progress) phase(now swarm.Phase) { p.now.Store(now) }

// run shows progress until ctx ends.
func (p *progress) run(ctx context.Context) {
	if f, ok := p.w.(*os.File); ok && cwriter.IsTerminal(int(f.Fd())) {
		p.bars(ctx)
		return
	}
	p.lines(ctx)
}

func (p *progress) lines(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			fmt.Fprintln(p.w, p.line())
		}
	}
}

func (p *progress) line() string {
	r := p.recorder
	return fmt.Sprintf("%s: %d of %d devices connected, %d messages sent, %d acknowledged, %d errors",
		p.now.Load(), r.Up.Load(), p.plan.Devices, r.Sent.Load(), r.Acked.Load(), r.Errors())
}

// barRefresh is how often the bars are drawn again.
const barRefresh = 200 * time.Millisecond

func (p *progress) bars(ctx context.Context) {
	// Bars draw on their own context: ending theirs and ours at once could
	// leave the last state undrawn.
	all := mpb.New(mpb.WithOutput(p.w), mpb.WithRefreshRate(barRefresh))
	connected := all.AddBar(int64(p.plan.Devices),
		mpb.PrependDecorators(decor.Name("connected  ", decor.WCSyncSpaceR), decor.CountersNoUnit("%d of %d")),
		mpb.AppendDecorators(decor.Percentage()))
	messages := all.AddBar(p.plan.Messages(),
		mpb.PrependDecorators(decor.Name("acknowledged  ", decor.WCSyncSpaceR), decor.CountersNoUnit("%d of %d")),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			return fmt.Sprintf("p99 %s, %d errors", p.recorder.Latency.Quantile(0.99).Round(time.Millisecond), p.recorder.Errors())
		})))
	ticker := time.NewTicker(barRefresh)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
		if p.plan.Duration == 0 {
			messages.SetTotal(int64(p.recorder.Sent.Load()), false)
		}
		if p.now.Load() != swarm.PhaseStopping {
			connected.SetCurrent(p.recorder.Up.Load())
		}
		messages.SetCurrent(int64(p.recorder.Acked.Load()))
	}
	// A bar that isn't full is aborted in place, or Wait would wait for it.
	connected.Abort(false)
	messages.Abort(false)
	all.Wait()
}
