package main

import (
	"context"
	"log/slog"

	"github.com/vbauerster/mpb/v8/cwriter"
	"golang.org/x/sync/errgroup"

	"github.com/fleethub/fleethub/provisioning/label"
	"github.com/fleethub/fleethub/provisioning/screen"
	"github.com/fleethub/fleethub/provisioning/server"
	"github.com/fleethub/fleethub/provisioning/station"
)

// benchView is what people at the bench see of a server: the page, the terminal and the
// labels.
type benchView struct {
	screen   *screen.Screen
	terminal *screen.Terminal // nil: standard output is no terminal
	labels   *label.Queue     // nil: none are printed
	log      *slog.Logger
}

func newBenchView(s *station.Station, pin string, o serveOptions) *benchView {
	v := &benchView{log: o.log}
	if o.terminal != nil {
		fd := int(o.terminal.Fd())
		width := func() int {
			columns, _, err := cwriter.GetSize(fd)
			if err != nil { // the terminal was closed
				return 0
			}
			return columns
		}
		v.terminal = screen.NewTerminal(o.terminal, width, func() string { return v.screen.Status() })
		// Every board has its line there. Of the log only what none of these says remains.
		v.log = slog.New(slog.NewTextHandler(v.terminal, &slog.HandlerOptions{Level: slog.LevelError}))
	}
	config := screen.Config{Ledger: s.Ledger(), Pin: pin, Log: v.log}
	if o.print != (label.Target{}) {
		v.labels = label.NewQueue(o.print, func(id string) (*label.Label, error) { return screen.Label(s.Ledger(), id) }, v.labelled)
		config.Print = v.labels.Add
	}
	v.screen = screen.New(config)
	return v
}

// observe takes the server's events.
func (v *benchView) observe(e server.Event) {
	line := v.screen.Observe(e)
	if v.terminal != nil {
		v.terminal.Show(line)
	}
}

// labelled takes what became of a label.
func (v *benchView) labelled(id string, err error) {
	if err != nil {
		v.log.Error("a label was not printed; `provisioning label` prints it later", "device", id, "error", err)
	}
	v.screen.Labelled(id, err)
}

// run has the group do what goes on beside the server, until ctx ends.
func (v *benchView) run(ctx context.Context, group *errgroup.Group) {
	context.AfterFunc(ctx, v.screen.Close) // open pages would keep the server from stopping
	if v.terminal != nil {
		group.Go(func() error { return v.terminal.Run(ctx) })
	}
	if v.labels != nil {
		group.Go(func() error { return v.labels.Run(ctx) })
	}
}
