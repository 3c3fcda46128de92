package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/firmware-sim/measure"
	"github.com/fleethub/fleethub/firmware-sim/scenario"
	"github.com/fleethub/fleethub/firmware-sim/swarm"
	"github.com/spf13/cobra"
)

func newRun(output *command.Output) *cobra.Command {
	var (
		creds, hub, profile string

		plan = scenario.Scenario{Rate: 1, ConnectRate: 200}
	)
	c := &cobra.Command{
		Use:   "run --creds DIR --hub HOST:8883 --devices N",
		Short: "Connect N virtual devices, publish, and print what it cost",
		Long: `Connect N virtual devices, one for each credential folder below DIR in the
order of their names, have each publish telemetry at QoS 1, and print connects,
handshakes, messages, latency and errors. The exit code is 1 if anything failed
and 5 if no hub answers.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := plan.Validate(); err != nil {
				return command.WithCode(command.Usage, err)
			}
			loaded, policy, err := prepare(hub, profile, creds, plan.Devices)
			if err != nil {
				return err
			}
			var recorder measure.Recorder
			summary, err := run(c, swarm.Config{Hub: hub, Scenario: plan, Credentials: loaded, Recorder: &recorder, Profile: policy})
			if errors.Is(err, swarm.ErrUnreachable) {
				return command.WithCode(command.Unreachable, err)
			}
			if err != nil {
				return err
			}
			if err := output.Print(c.OutOrStdout(), summary, func(w io.Writer) error { return summary.WriteTable(w) }); err != nil {
				return err
			}
			if n := summary.Failed(); n > 0 {
				return fmt.Errorf("%d errors; the hub's log says more about refused devices", n)
			}
			return nil
		},
	}
	flags := c.Flags()
	flags.StringVar(&creds, "creds", "", "`folder` with one credential folder a device, as `provisioning batch` writes it")
	flags.StringVar(&hub, "hub", "", "the hub's MQTT listener, `HOST:PORT`")
	flags.IntVar(&plan.Devices, "devices", 0, "how many virtual devices")
	flags.Var(&plan.Rate, "rate", "messages of each device: 1/s, 0.5/s, 6/m")
	flags.Var(&plan.ConnectRate, "connect-rate", "connects of all devices together")
	flags.DurationVar(&plan.Duration, "duration", 30*time.Second, "`time` to publish for, once all have connected; 0 is until Ctrl-C")
	flags.IntVar(&plan.Size, "size", 128, "`bytes` of payload of each message")
	flags.StringVar(&profile, "tls-profile", string(mtls.ProfileDefault), "default (as device-agent's), constrained or pq")
	for _, name := range []string{"creds", "hub", "devices"} {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(fmt.Sprintf("flag %s: %v", name, err)) // it isn't defined above
		}
	}
	return c
}

// run runs the swarm with its progress on stderr and returns what it came to.
func run(c *cobra.Command, config swarm.Config) (measure.Summary, error) {
	show := newProgress(c.ErrOrStderr(), config.Scenario, config.Recorder)
	config.Phase = show.phase
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends when stop is called
		defer close(done)
		show.run(ctx)
	}()
	started := time.Now()
	err := swarm.Run(c.Context(), config)
	lasted := time.Since(started)
	stop()
	<-done
	return config.Recorder.Summary(config.Scenario.Devices, lasted), err
}
