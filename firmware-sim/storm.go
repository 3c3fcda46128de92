package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/firmware-sim/measure"
	"github.com/fleethub/fleethub/firmware-sim/scenario"
	"github.com/fleethub/fleethub/firmware-sim/swarm"
	"github.com/spf13/cobra"
)

func newStorm(output *command.Output) *cobra.Command {
	var (
		creds, hub, profile string

		plan = scenario.Storm{ConnectRate: 200}
	)
	c := &cobra.Command{
		Use:   "storm --creds DIR --hub HOST:8883 --devices N",
		Short: "Have N virtual devices reconnect at once, and print whether all got in",
		Long: `Have N virtual devices, one for each credential folder below DIR in the order of
their names, connect at once, as after a power cut or a restart of the hub, each
with the device agent's own backoff. With --tickets, so many of them have
connected before and come back with their session ticket. Prints who got in, how
many attempts a device needed and how long it took. The exit code is 1 if anyone
isn't in at the end and 5 if no hub answers.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := plan.Validate(); err != nil {
				return command.WithCode(command.Usage, err)
			}
			loaded, policy, err := prepare(hub, profile, creds, plan.Devices)
			if err != nil {
				return err
			}
			summary, err := runStorm(c, swarm.StormConfig{Hub: hub, Scenario: plan, Credentials: loaded, Profile: policy, Recorder: new(measure.Recorder)})
			if errors.Is(err, swarm.ErrUnreachable) {
				return command.WithCode(command.Unreachable, err)
			}
			if err != nil {
				return err
			}
			if err := output.Print(c.OutOrStdout(), summary, func(w io.Writer) error { return summary.WriteTable(w) }); err != nil {
				return err
			}
			return summary.Failed()
		},
	}
	flags := c.Flags()
	flags.StringVar(&creds, "creds", "", "`folder` with one credential folder a device, as `provisioning batch` writes it")
	flags.StringVar(&hub, "hub", "", "the hub's MQTT listener, `HOST:PORT`")
	flags.IntVar(&plan.Devices, "devices", 0, "how many virtual devices")
	flags.IntVar(&plan.Tickets, "tickets", 0, "how many of them connect once before, and have a session ticket")
	flags.Var(&plan.ConnectRate, "connect-rate", "`rate` at which the --tickets devices connect beforehand")
	flags.DurationVar(&plan.Limit, "limit", 5*time.Minute, "longest `time` for the storm")
	flags.StringVar(&profile, "tls-profile", string(mtls.ProfileConstrained), "constrained (as device-agent's), default or pq")
	for _, name := range []string{"creds", "hub", "devices"} {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(fmt.Sprintf("flag %s: %v", name, err)) // it isn't defined above
		}
	}
	return c
}

// runStorm runs the storm with a line a second on stderr.
func runStorm(c *cobra.Command, config swarm.StormConfig) (measure.Storm, error) {
	var phase atomic.Value // swarm.Phase
	phase.Store(swarm.PhaseEarning)
	config.Phase = func(p swarm.Phase) { phase.Store(p) }
	ctx, stop := context.WithCancel(context.Background())
	var telling sync.WaitGroup
	telling.Go(func() { // ends with stop
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				fmt.Fprintf(c.ErrOrStderr(), "%s: %d of %d devices in, %d failed attempts\n", phase.Load(), config.Recorder.Up.Load(), config.Scenario.Devices, config.Recorder.Errors())
			}
		}
	})
	defer telling.Wait()
	defer stop()
	return swarm.RunStorm(c.Context(), config)
}
