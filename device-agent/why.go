package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/device-agent/agent"
	"github.com/fleethub/fleethub/device-agent/keystore"
	"github.com/fleethub/fleethub/device-agent/why"
	"github.com/spf13/cobra"
)

func newWhy(output *command.Output) *cobra.Command {
	var dir, hub string
	c := &cobra.Command{
		Use:   "why --dir DIR [--hub URL]",
		Short: "Ask the hub whether it takes this device, and if not, why",
		Long: `Ask the hub, with this device's certificate, whether the device may connect, and what
became of its last connections. The hub answers a device in any state, about itself
alone. Without --hub the question goes to the host that the agent in DIR last connected
to, at port 8443.

The exit code is 0 if the device may connect, 3 if not (revoked, suspended, not
registered, ...), and 5 if nobody answers.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			keys, err := keystore.Open(dir)
			if err != nil {
				return credentialError(err)
			}
			if hub == "" {
				if hub, err = hubOf(dir); err != nil {
					return err
				}
			}
			if err := agent.CheckRenewal(hub); err != nil {
				return command.Errorf(command.Usage, "--hub: %.200q is not of the form https://HOST:8443", hub)
			}
			answer, err := why.Ask(c.Context(), hub, keys.Credentials())
			if err != nil {
				return whyError(err)
			}
			if err := output.Print(c.OutOrStdout(), answer, func(w io.Writer) error { return writeWhy(w, answer) }); err != nil {
				return err
			}
			if !answer.MayConnect {
				return command.Errorf(command.Denied, "the hub doesn't take this device: %s", answer.Verdict)
			}
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "credential `folder` of the device")
	c.Flags().StringVar(&hub, "hub", "", "the hub's `URL`, https://HOST:8443 (default: the hub that the agent in DIR connects to)")
	markRequired(c, "dir")
	return c
}

// hubOf returns the HTTPS address of the hub that the agent of a folder connects to.
func hubOf(dir string) (string, error) {
	report, err := agent.ReadReport(dir, time.Now())
	if err != nil {
		return "", credentialError(err)
	}
	if report.Last == nil {
		return "", command.Errorf(command.Usage, "no agent has run in %s yet, so name the hub with --hub https://HOST:8443", dir)
	}
	if url := report.Last.HTTPS; url != "" {
		return url, nil
	}
	return agent.RenewalURL(report.Last.Link.Hub), nil
}

// whyError gives an error of a question its exit code.
func whyError(err error) error {
	switch {
	case errors.Is(err, why.ErrUnreachable):
		return command.WithCode(command.Unreachable, err)
	case errors.Is(err, why.ErrDenied), errors.Is(err, why.ErrUntrusted):
		return command.WithCode(command.Denied, err)
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted before the hub answered")
	}
	return err
}

func writeWhy(w io.Writer, a why.Answer) error {
	online := "not connected now"
	if a.Online {
		online = "connected now"
	}
	fmt.Fprintf(w, "%s\n%s\n", a.Verdict, online)
	if a.Clock != "" {
		fmt.Fprintf(w, "by the hub's clock, %s\n", a.Clock)
	}
	if len(a.Events) == 0 {
		_, err := fmt.Fprintf(w, "the hub remembers nothing of its connections since %s\n", stamp(a.Since))
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "what the hub remembers since %s, newest first:\n", stamp(a.Since))
	for _, e := range a.Events {
		times := ""
		if e.Times > 1 {
			times = fmt.Sprintf(" (%d times since %s)", e.Times, stamp(e.First))
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s%s\n", stamp(e.At), e.Kind, e.Address, e.Words, times)
	}
	return t.Flush()
}
